"""SeqPool: attention pooling over the tokens, with the final LayerNorm folded in."""

import torch

from . import reference
from .calls import expect_first_derivative, kernels, only_values
from .checks import expect_like, expect_optional, expect_positive, expect_tensor, shape_text
from .dispatch import choose

OP = "seqpool"


def seqpool(x, weight, bias=None, *, norm_weight=None, norm_bias=None, eps=1e-5, backend=None):
    """y = LN(x), or x without norm_weight;  out = softmax(y w^T + bias, over the tokens)^T y.

    Args:
        x: (B, N, C) with N >= 1, float32, float16, bfloat16 or float64.
        weight: (1, C), the score of a token.
        bias: (1,) or None. Softmax does not see it: its gradient is exactly zero.
        norm_weight, norm_bias: (C,) or None, LayerNorm over C with `eps`; norm_bias needs norm_weight.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Returns: (B, C) in the dtype of x. Scores, softmax, sums and statistics are float32 (float64 for float64 input); x is
        read once in the forward and once or twice in the backward pass, and nothing of size (B, N, C) is saved.
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run;
        RuntimeError for a second derivative of a fused backend.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.3.
    """
    _check(x, weight, bias, norm_weight, norm_bias, eps)
    backend = choose(OP, x, backend)
    if backend == "reference":
        return reference.seqpool(x, weight, bias, norm_weight=norm_weight, norm_bias=norm_bias, eps=eps)
    weight, norm_weight, norm_bias = (t if t is None else t.to(x.dtype) for t in (weight, norm_weight, norm_bias))
    if only_values():  # saves the price of an autograd function, which counts for single images
        return kernels(OP, backend)[0](x, weight, norm_weight, norm_bias, eps)[0]
    return _SeqPool.apply(x, weight, bias, norm_weight, norm_bias, eps, backend)


class _SeqPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, norm_weight, norm_bias, eps, backend):
        forward, _ = kernels(OP, backend)
        out, lse, mean, rstd = forward(x, weight, norm_weight, norm_bias, eps)
        ctx.save_for_backward(x, weight, bias, norm_weight, norm_bias, lse, mean, rstd)
        ctx.backend = backend
        return out

    @staticmethod
    def backward(ctx, dout):
        expect_first_derivative(OP)
        x, weight, bias, norm_weight, norm_bias, lse, mean, rstd = ctx.saved_tensors
        _, backward = kernels(OP, ctx.backend)
        dx, dweight, dnorm_weight, dnorm_bias = backward(dout, x, weight, norm_weight, norm_bias, lse, mean, rstd)
        return (
            dx,
            dweight,
            None if bias is None else torch.zeros_like(bias),
            None if norm_weight is None else dnorm_weight,
            None if norm_bias is None else dnorm_bias,
            None,
            None,
        )


def _check(x, weight, bias, norm_weight, norm_bias, eps):
    expect_tensor(OP, "x", x, ndim=3)
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise ValueError(f"{OP}: x has shape {shape_text(x.shape)}; expected at least one token and one channel")
    C = x.shape[2]
    expect_like(OP, "weight", weight, (1, C), x)
    expect_optional(OP, "bias", bias, (1,), x)
    expect_optional(OP, "norm_weight", norm_weight, (C,), x)
    expect_optional(OP, "norm_bias", norm_bias, (C,), x)
    if norm_bias is not None and norm_weight is None:
        raise ValueError(f"{OP}: norm_bias is given; expected norm_weight with it")
    expect_positive(OP, "eps", eps)
