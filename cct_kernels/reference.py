"""The ops in plain PyTorch: the specification, the oracle of every test and the last fallback.

Letters: B batch, N tokens, C embedding dim, nh heads, hd = C / nh head dim, F hidden dim of the MLP; an image: (B, Cin, H, W).
The contract of each op (arguments, shapes, errors, source) stands in the module of its name.
"""

import torch
import torch.nn.functional as F

from . import philox


def conv_tokenizer(x, weight, bias=None, *, stride=1, padding=0, relu=True, pool=(3, 2, 1), tokens=True):
    x = F.conv2d(x, weight, bias, stride, padding)
    if relu:
        x = F.relu(x)
    if pool is not None:
        x = F.max_pool2d(x, *pool)  # padding counts as minus infinity
    return x.flatten(2).transpose(1, 2) if tokens else x  # (B, H'W', C) or (B, C, H', W')


def layernorm_attention(
    x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias=None, *, num_heads, qkv_bias=None, mask=None,
    attn_dropout=0.0, dropout=0.0, drop_path_scale=None, seed=None, eps=1e-5,
):  # fmt: skip
    B, N, C = x.shape
    y = F.layer_norm(x, (C,), norm_weight, norm_bias, eps)
    q, k, v = F.linear(y, qkv_weight, qkv_bias).view(B, N, 3, num_heads, C // num_heads).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-2, -1) * (C // num_heads) ** -0.5  # (B, nh, N, N)
    if mask is not None:  # a pair counts when both tokens are valid; a row without any pair becomes uniform
        scores = scores.masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), -torch.finfo(scores.dtype).max)
    weights = _dropout(scores.softmax(-1), attn_dropout, seed, philox.ATTENTION)
    y = F.linear((weights @ v).transpose(1, 2).reshape(B, N, C), proj_weight, proj_bias)
    return x + _drop_path(_dropout(y, dropout, seed, philox.PROJECTION), drop_path_scale)


def layernorm_mlp(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, *,
    dropout=0.0, drop_path_scale=None, seed=None, eps=1e-5,
):  # fmt: skip
    y = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)  # replaces the residual stream
    h = _dropout(F.gelu(F.linear(y, fc1_weight, fc1_bias)), dropout, seed, philox.HIDDEN)
    z = _dropout(F.linear(h, fc2_weight, fc2_bias), dropout, seed, philox.OUTPUT)
    return y + _drop_path(z, drop_path_scale)


def encoder(
    x, blocks, *, num_heads, mask=None, attn_dropout=0.0, dropout=0.0, drop_path_scales=None, seed=None, eps=1e-5
):  # fmt: skip
    for block, scales, seeds in per_block(blocks, drop_path_scales, seed):
        x = layernorm_attention(
            x, *block[:5], num_heads=num_heads, mask=mask, attn_dropout=attn_dropout, dropout=dropout,
            drop_path_scale=scales[0], seed=seeds[0], eps=eps,
        )  # fmt: skip
        x = layernorm_mlp(x, *block[5:], dropout=dropout, drop_path_scale=scales[1], seed=seeds[1], eps=eps)
    return x


def per_block(blocks, drop_path_scales, seed):
    """(parameters, drop-path scales, seeds) of each block; scales and seeds are pairs: attention, MLP."""
    for i, block in enumerate(blocks):
        scales = (None, None) if drop_path_scales is None else drop_path_scales[i].unbind()
        seeds = (None, None) if seed is None else [seed + seed.new_tensor([0, 2 * i + branch]) for branch in range(2)]
        yield block, scales, seeds


def seqpool(x, weight, bias=None, *, norm_weight=None, norm_bias=None, eps=1e-5):
    if norm_weight is not None:
        x = F.layer_norm(x, x.shape[-1:], norm_weight, norm_bias, eps)
    weights = F.linear(x, weight, bias).softmax(1)  # (B, N, 1), over the tokens
    return (weights.transpose(1, 2) @ x).squeeze(1)  # (B, C)


def _dropout(x, p, seed, site):
    """Inverted dropout: PyTorch's own generator without a seed, the counter-based mask of philox.py with one."""
    if p == 0.0:
        return x
    if seed is None:
        return F.dropout(x, p)
    keep = philox.keep_mask(seed, site, x[..., 0].numel(), x.shape[-1], p)
    return x * keep.view(x.shape) / (1 - p)


def _drop_path(x, scale):
    """scale (B,): 0 for a dropped sample, 1 / keep for a kept one (stochastic depth, Huang et al. 2016)."""
    return x if scale is None else x * scale.to(x.dtype).view(-1, 1, 1)
