"""All blocks of the encoder in one op: what lies between the embedded tokens and the final LayerNorm."""

from typing import NamedTuple

import torch

from . import reference
from .calls import alike, compute_dtype, draw_seed, expect_first_derivative, in_forward_mode, kernels, one_dtype, only_values
from .checks import expect_int, expect_optional, expect_tensor
from .dispatch import choose
from .layernorm_attention import _check as check_attention
from .layernorm_attention import _check_mask as check_mask
from .layernorm_attention import _check_training as check_training
from .layernorm_attention import layernorm_attention
from .layernorm_mlp import _check as check_mlp
from .layernorm_mlp import layernorm_mlp

OP = "encoder"


class Block(NamedTuple):
    """The parameters of one block, in the order of the published state dicts' modules."""

    norm_weight: torch.Tensor  # (C,)
    norm_bias: torch.Tensor  # (C,)
    qkv_weight: torch.Tensor  # (3C, C)
    proj_weight: torch.Tensor  # (C, C)
    proj_bias: torch.Tensor  # (C,)
    norm1_weight: torch.Tensor  # (C,)
    norm1_bias: torch.Tensor  # (C,)
    fc1_weight: torch.Tensor  # (F, C)
    fc1_bias: torch.Tensor  # (F,)
    fc2_weight: torch.Tensor  # (C, F)
    fc2_bias: torch.Tensor  # (C,)


def encoder(
    x, blocks, *, num_heads, mask=None, attn_dropout=0.0, dropout=0.0, drop_path_scales=None, seed=None, eps=1e-5, backend=None
):
    """For each block: x = layernorm_attention(x); x = layernorm_mlp(x).

    Args:
        x: (B, N, C), float32, float16, bfloat16 or float64: the embedded tokens.
        blocks: a sequence of L `Block`s, or of tuples in its order.
        num_heads: nh, divides C.
        mask: bool (B, N), True for a valid token, or None; see `layernorm_attention`.
        attn_dropout, dropout: probabilities p, 0 <= p < 1, of the two ops.
        drop_path_scales: (L, 2, B), the stochastic-depth factors of the attention and of the MLP of each block, or None for 1;
            constants.
        seed: int64 (2,) = (seed, offset): block l takes offset + 2 l for its attention and offset + 2 l + 1 for its MLP. None
            draws from PyTorch's generator.
        eps: of every LayerNorm.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Returns: (B, N, C) in the dtype of x, before the final LayerNorm. Equal to the loop over the two ops, but for roundings: a
        fused backend may keep the residual stream in float32 between them, and without gradients sum in another order.
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run;
        RuntimeError for a second derivative of a fused backend.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.1, and its official code.
    """
    _check(x, blocks, num_heads, drop_path_scales)
    check_training(x, attn_dropout, dropout, None, seed, eps)
    check_mask(x, mask)
    options = {"num_heads": num_heads, "mask": mask, "attn_dropout": attn_dropout, "dropout": dropout}
    options |= {"drop_path_scales": drop_path_scales, "seed": seed, "eps": eps}
    chosen = choose(OP, x, backend)
    tensors = [tensor for block in blocks for tensor in block]
    same = alike(x, tensors)
    if chosen != "cpu" or not same:  # the native op checks shapes by itself, in a tenth of the time
        for block in blocks:
            check_attention(x, *block[:5], num_heads, None, mask)
            check_mlp(x, *block[5:], dropout, None, seed, eps)
    if chosen == "reference":
        return reference.encoder(x, blocks, **options)
    if chosen == "cpu":
        plain = drop_path_scales is None and attn_dropout == dropout == 0.0
        if not plain or _needs_gradient(x, blocks):
            return _loop(x, blocks, **options, backend=backend)
        tensors = tensors if same else one_dtype(x, tensors)
        return torch.ops.cct_kernels.encoder_forward(x, tensors, num_heads, mask, eps, compute_dtype(x))
    return _whole(x, blocks, **options, backend=chosen) if len(blocks) else x


def _needs_gradient(x, blocks):
    if only_values():
        return False
    return in_forward_mode() or x.requires_grad or any(t.requires_grad for block in blocks for t in block)


def _loop(x, blocks, *, num_heads, mask, attn_dropout, dropout, drop_path_scales, seed, eps, backend):
    """The two ops in turn, each with its own backend and gradient."""
    for block, (attention_scale, mlp_scale), (attention_seed, mlp_seed) in reference.per_block(blocks, drop_path_scales, seed):
        x = layernorm_attention(
            x, *block[:5], num_heads=num_heads, mask=mask, attn_dropout=attn_dropout, dropout=dropout,
            drop_path_scale=attention_scale, seed=attention_seed, eps=eps, backend=backend,
        )  # fmt: skip
        x = layernorm_mlp(
            x, *block[5:], dropout=dropout, drop_path_scale=mlp_scale, seed=mlp_seed, eps=eps, backend=backend
        )  # fmt: skip
    return x


def _whole(x, blocks, *, num_heads, mask, attn_dropout, dropout, drop_path_scales, seed, eps, backend):
    """All blocks in one operator of the backend, forward and backward."""
    if seed is None and (attn_dropout > 0.0 or dropout > 0.0):
        seed = draw_seed(x.device)
    parameters = [tensor for block in blocks for tensor in block]
    return _Encoder.apply(
        x, num_heads, mask, attn_dropout, dropout, drop_path_scales, seed, eps, compute_dtype(x), backend,
        torch.is_grad_enabled(), *parameters,
    )  # fmt: skip


class _Encoder(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, num_heads, mask, attn_dropout, dropout, scales, seed, eps, compute, backend, grad, *parameters):
        forward, _ = kernels(OP, backend)
        keep = grad and any(ctx.needs_input_grad)
        out, saved = forward(x, parameters, num_heads, mask, attn_dropout, dropout, scales, seed, eps, compute, keep)
        if keep:
            ctx.save_for_backward(x, mask, scales, seed, *parameters, *saved)
            ctx.options = num_heads, attn_dropout, dropout, eps, compute, backend, len(parameters)
        return out

    @staticmethod
    def backward(ctx, dout):
        expect_first_derivative(OP)
        x, mask, scales, seed, *rest = ctx.saved_tensors
        num_heads, attn_dropout, dropout, eps, compute, backend, count = ctx.options
        parameters, saved = rest[:count], rest[count:]
        _, backward = kernels(OP, backend)
        wanted = ctx.needs_input_grad[-count:]
        dx, gradients = backward(
            dout, x, parameters, num_heads, mask, attn_dropout, dropout, scales, seed, eps, compute, saved, any(wanted)
        )
        gradients = (g if want else None for g, want in zip(gradients or wanted, wanted, strict=True))
        return (dx, *[None] * 10, *gradients)


def _check(x, blocks, num_heads, drop_path_scales):
    """What the two ops do not check by themselves."""
    expect_tensor(OP, "x", x, ndim=3)
    expect_int(OP, "num_heads", num_heads, 1)
    if not isinstance(blocks, (tuple, list)) or not all(isinstance(block, (tuple, list)) for block in blocks):
        raise ValueError(f"{OP}: blocks is {type(blocks).__name__}; expected a sequence of blocks, each a sequence of tensors")
    for i, block in enumerate(blocks):
        if len(block) != len(Block._fields):
            raise ValueError(f"{OP}: blocks[{i}] has {len(block)} tensors; expected {', '.join(Block._fields)}")
        for name, tensor in zip(Block._fields, block, strict=True):
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"{OP}: blocks[{i}].{name} is {type(tensor).__name__}; expected a tensor")
    expect_optional(OP, "drop_path_scales", drop_path_scales, (len(blocks), 2, x.shape[0]), x)
