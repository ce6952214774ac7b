"""LayerNorm, multi-head self-attention, output projection and the residual, in one op."""

import torch

from . import reference
from .calls import compute_dtype, draw_seed, expect_first_derivative, kernels, one_dtype
from .checks import (
    expect_dense,
    expect_int,
    expect_like,
    expect_optional,
    expect_positive,
    expect_probability,
    expect_seed,
    expect_tensor,
    shape_text,
)
from .dispatch import choose

OP = "layernorm_attention"


def layernorm_attention(
    x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias=None, *, num_heads, qkv_bias=None, mask=None,
    attn_dropout=0.0, dropout=0.0, drop_path_scale=None, seed=None, eps=1e-5, backend=None,
):  # fmt: skip
    """q, k, v = heads(LN(x) Wqkv^T);  out = x + s * drop(proj(drop(softmax(q k^T / sqrt(hd))) v)).

    Args:
        x: (B, N, C), float32, float16, bfloat16 or float64.
        norm_weight, norm_bias: (C,), LayerNorm over C with `eps`.
        qkv_weight, qkv_bias: (3C, C), (3C,) or None. Rows 0..C-1 give q, C..2C-1 k, 2C..3C-1 v;
            head j owns rows j*hd.. of each.
        proj_weight, proj_bias: (C, C), (C,) or None.
        num_heads: nh, divides C; hd = C / nh.
        mask: bool (B, N), True for a valid token, or None. A pair counts when both tokens are valid; the row of an invalid
            token is uniform over all N keys, as in the official text models.
        attn_dropout, dropout: probabilities p, 0 <= p < 1, on the attention weights and after the projection.
        drop_path_scale: (B,), the per-sample stochastic-depth factor s (0, or 1 / keep), or None for 1; a constant.
        seed: int64 (2,) = (seed, offset) of the counter-based masks (philox.py); None draws from PyTorch's generator.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Under autocast the products run in its dtype; x, the parameters and the result keep theirs.

    Returns: (B, N, C) in the dtype of x. Sums, softmax and statistics are float32 (float64 for float64 input).
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run;
        RuntimeError for a second derivative of a fused backend.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.1, and its official code.
    """
    _check(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask)
    _check_training(x, attn_dropout, dropout, drop_path_scale, seed, eps)
    backend = choose(OP, x, backend)
    if backend == "reference":
        return reference.layernorm_attention(
            x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads=num_heads, qkv_bias=qkv_bias, mask=mask,
            attn_dropout=attn_dropout, dropout=dropout, drop_path_scale=drop_path_scale, seed=seed, eps=eps,
        )  # fmt: skip
    if seed is None and (attn_dropout > 0.0 or dropout > 0.0):
        seed = draw_seed(x.device)
    parameters = one_dtype(x, (norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, qkv_bias))
    return _LayerNormAttention.apply(
        x, *parameters, num_heads, mask,
        attn_dropout, dropout, drop_path_scale, seed, eps, compute_dtype(x), backend, torch.is_grad_enabled(),
    )  # fmt: skip


class _LayerNormAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        *tensors, qkv_bias, num_heads, mask, attn_dropout, dropout, scale, seed, eps, compute, backend, grad = args
        options = attn_dropout, dropout, scale, seed, eps, compute
        forward, _ = kernels(OP, backend)
        keep = grad and any(ctx.needs_input_grad)
        out, *saved, kept_x = forward(*tensors, num_heads, qkv_bias, mask, *options, keep)
        if keep:
            if kept_x.numel():
                tensors[0] = kept_x
            ctx.save_for_backward(*tensors, qkv_bias, mask, scale, seed, *saved)
            ctx.options = num_heads, attn_dropout, dropout, eps, compute, backend
        return out

    @staticmethod
    def backward(ctx, dout):
        expect_first_derivative(OP)
        *tensors, qkv_bias, mask, scale, seed, mean, rstd, qkv, o, lse, pairs = ctx.saved_tensors
        num_heads, attn_dropout, dropout, eps, compute, backend = ctx.options
        options = attn_dropout, dropout, scale, seed, eps, compute
        _, backward = kernels(OP, backend)
        _, _, _, need_qkv, need_proj, proj_bias, need_bias = ctx.needs_input_grad[:7]  # gradients of the norm cost nothing
        if backend != "cpu":  # nor those of biases on the CPU; elsewhere they come with those of their weights
            need_qkv, need_proj = need_qkv or need_bias, need_proj or proj_bias
        saved = mean, rstd, qkv, o, lse, pairs, [need_qkv, need_proj]
        gradients = backward(dout, *tensors, num_heads, qkv_bias, mask, *options, *saved)
        wanted = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
        return (*wanted, *[None] * 10)


def _check(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask):
    expect_tensor(OP, "x", x, ndim=3)
    _, N, C = x.shape
    if N == 0 or C == 0:
        raise ValueError(f"{OP}: x has shape {shape_text(x.shape)}; expected at least one token and one channel")
    expect_int(OP, "num_heads", num_heads, 1)
    if C % num_heads:
        raise ValueError(f"{OP}: num_heads is {num_heads}; expected a divisor of {C}, the last dimension of x")
    expect_like(OP, "norm_weight", norm_weight, (C,), x)
    expect_optional(OP, "norm_bias", norm_bias, (C,), x)
    expect_like(OP, "qkv_weight", qkv_weight, (3 * C, C), x)
    expect_optional(OP, "qkv_bias", qkv_bias, (3 * C,), x)
    expect_like(OP, "proj_weight", proj_weight, (C, C), x)
    expect_optional(OP, "proj_bias", proj_bias, (C,), x)
    _check_mask(x, mask)


def _check_mask(x, mask):
    if mask is None:
        return
    if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
        got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(f"{OP}: mask is {got}; expected a torch.bool tensor, True for a valid token")
    if tuple(mask.shape) != tuple(x.shape[:2]):
        raise ValueError(f"{OP}: mask has shape {shape_text(mask.shape)}; expected {shape_text(x.shape[:2])}")
    if mask.device != x.device:
        raise ValueError(f"{OP}: mask is on {mask.device}; expected {x.device}, the device of x")
    expect_dense(OP, "mask", mask)


def _check_training(x, attn_dropout, dropout, drop_path_scale, seed, eps):
    expect_probability(OP, "attn_dropout", attn_dropout)
    expect_probability(OP, "dropout", dropout)
    expect_optional(OP, "drop_path_scale", drop_path_scale, (x.shape[0],), x)
    expect_seed(OP, seed, x)
    expect_positive(OP, "eps", eps)
