"""LayerNorm, the two-layer GELU MLP and the residual, in one op."""

import torch

from . import reference
from .calls import compute_dtype, draw_seed, expect_first_derivative, kernels, one_dtype
from .checks import expect_like, expect_optional, expect_positive, expect_probability, expect_seed, expect_tensor
from .dispatch import choose

OP = "layernorm_mlp"


def layernorm_mlp(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, *,
    dropout=0.0, drop_path_scale=None, seed=None, eps=1e-5, backend=None,
):  # fmt: skip
    """y = LN(x);  out = y + s * drop(fc2(drop(gelu(fc1(y))))).

    The residual is the NORMALISED tensor y: the published checkpoints need it (paper-form blocks put norm1 on the stream).
    GELU is the exact (erf) form.

    Args:
        x: (B, N, C), float32, float16, bfloat16 or float64.
        norm_weight, norm_bias: (C,), LayerNorm over C with `eps`.
        fc1_weight, fc1_bias: (F, C), (F,).
        fc2_weight, fc2_bias: (C, F), (C,).
        dropout: probability p, 0 <= p < 1, used after GELU and after fc2; kept values are scaled by 1 / (1 - p).
        drop_path_scale: (B,), the per-sample stochastic-depth factor s (0, or 1 / keep), or None for 1; a constant.
        seed: int64 (2,) = (seed, offset) of the counter-based masks (philox.py); None draws from PyTorch's generator.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Under autocast the products run in its dtype; x, the parameters and the result keep theirs.

    Returns: (B, N, C) in the dtype of x. Sums and statistics are float32 (float64 for float64 input).
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run;
        RuntimeError for a second derivative of a fused backend.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.1, and its official code.
    """
    _check(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps)
    backend = choose(OP, x, backend)
    if backend == "reference":
        return reference.layernorm_mlp(
            x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias,
            dropout=dropout, drop_path_scale=drop_path_scale, seed=seed, eps=eps,
        )  # fmt: skip
    if dropout > 0.0 and seed is None:
        seed = draw_seed(x.device)
    parameters = one_dtype(x, (norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias))
    return _LayerNormMLP.apply(
        x, *parameters,
        dropout, drop_path_scale, seed, eps, compute_dtype(x), backend, torch.is_grad_enabled(),
    )  # fmt: skip


class _LayerNormMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *args):
        *tensors, dropout, scale, seed, eps, compute, backend, grad = args
        forward, _ = kernels(OP, backend)
        keep = grad and any(ctx.needs_input_grad)
        out, *saved, kept_x = forward(*tensors, dropout, scale, seed, eps, compute, keep)
        if keep:
            if kept_x.numel():
                tensors[0] = kept_x
            ctx.save_for_backward(*tensors, scale, seed, *saved)
            ctx.options = dropout, eps, compute, backend
        return out

    @staticmethod
    def backward(ctx, dout):
        expect_first_derivative(OP)
        *tensors, scale, seed, mean, rstd, hidden = ctx.saved_tensors
        dropout, eps, compute, backend = ctx.options
        _, backward = kernels(OP, backend)
        _, _, _, fc1, fc1_bias, fc2, fc2_bias = ctx.needs_input_grad[:7]  # gradients of the norm cost nothing
        if backend != "cpu":  # nor those of biases on the CPU; elsewhere they come with those of their weights
            fc1, fc2 = fc1 or fc1_bias, fc2 or fc2_bias
        gradients = backward(dout, *tensors, dropout, scale, seed, eps, compute, mean, rstd, hidden, [fc1, fc2])
        wanted = (g if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
        return (*wanted, *[None] * 7)


def _check(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps):
    expect_tensor(OP, "x", x, ndim=3)
    B, _, C = x.shape
    expect_like(OP, "norm_weight", norm_weight, (C,), x)
    expect_optional(OP, "norm_bias", norm_bias, (C,), x)
    expect_tensor(OP, "fc1_weight", fc1_weight, ndim=2)
    F = fc1_weight.shape[0]
    if C == 0 or F == 0:
        raise ValueError(f"{OP}: x has {C} channels and fc1_weight {F} rows; expected at least one")
    expect_like(OP, "fc1_weight", fc1_weight, (F, C), x)
    expect_optional(OP, "fc1_bias", fc1_bias, (F,), x)
    expect_like(OP, "fc2_weight", fc2_weight, (C, F), x)
    expect_optional(OP, "fc2_bias", fc2_bias, (C,), x)
    expect_probability(OP, "dropout", dropout)
    expect_optional(OP, "drop_path_scale", drop_path_scale, (B,), x)
    expect_seed(OP, seed, x)
    expect_positive(OP, "eps", eps)
