"""Convolution, ReLU and max-pooling, read out as tokens, in one op."""

import torch

from . import reference
from .calls import compute_dtype, expect_first_derivative, kernels, one_dtype, only_values
from .checks import expect_bool, expect_like, expect_optional, expect_tensor, pair, shape_text
from .dispatch import choose

OP = "conv_tokenizer"
MAX_WINDOW = 255  # pixels of a pooling window: the kernels keep the winner in a byte


def conv_tokenizer(
    x, weight, bias=None, *, stride=1, padding=0, relu=True, pool=(3, 2, 1), tokens=True, backend=None
):  # fmt: skip
    """out = MaxPool(ReLU(Conv2d(x))), flattened row-major to tokens.

    Args:
        x: (B, Cin, H, W), float32, float16, bfloat16 or float64.
        weight, bias: (C, Cin, kh, kw), (C,) or None.
        stride, padding: of the convolution, in pixels: an int or a pair.
        relu: False leaves the activation out (patch tokenizers).
        pool: (kernel, stride, padding) of the max-pooling, each an int or a pair; padding counts as minus infinity.
            None leaves it out (patch tokenizers).
        tokens: True gives (B, H'W', C), the form of the encoder; False (B, C, H', W'), a stage before another.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Under autocast the products run in its dtype; x, the parameters and the result of the kernels keep theirs. Training
    saves one byte for each pooled element instead of the convolved image. On the CPU, 3 x 3 kernels of stride 1 over 32, 48,
    64, ... channels run by Winograd's minimal filtering (in bfloat16 not with AMX): a NaN or infinity in x spreads to its tile
    of 2 x 2 pixels.

    Returns: (B, N, C) or (B, C, H', W') in the dtype of x; sums are float32 (float64 for float64 input). The kernels lay
        (B, C, H', W') out channels-last, as they read x best.
    Raises: ValueError for a wrong shape, dtype or device, an output without pixels, or a pooling window of more than 255
        pixels with a named backend; BackendError when a named backend cannot run;
        RuntimeError for a second derivative of a fused backend.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.4, equation for x0; Lavin and Gray, "Fast
        Algorithms for Convolutional Neural Networks", 2016.
    """
    stride, padding, pool = _check(x, weight, bias, stride, padding, pool)
    expect_bool(OP, "relu", relu)
    expect_bool(OP, "tokens", tokens)
    backend = _choose(x, pool, backend)
    if backend == "reference":
        return reference.conv_tokenizer(x, weight, bias, stride=stride, padding=padding, relu=relu, pool=pool, tokens=tokens)
    weight, bias = one_dtype(x, (weight, bias))
    window = (*pool[0], *pool[1], *pool[2]) if pool is not None else (1, 1, 1, 1, 0, 0)
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    options = x, weight, bias, stride, padding, relu, window, compute_dtype(x), keep
    out = kernels(OP, backend)[0](*options)[0] if only_values() else _ConvTokenizer.apply(*options, backend)
    if tokens:
        return out
    size = _output_size(x.shape[2:], weight.shape[2:], stride, padding)
    size = _output_size(size, window[:2], window[2:4], window[4:])
    return out.unflatten(1, size).permute(0, 3, 1, 2)


class _ConvTokenizer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, *args):
        *options, keep, backend = args
        forward, _ = kernels(OP, backend)
        out, winner = forward(x, weight, bias, *options, keep)
        ctx.save_for_backward(x, weight, winner)
        ctx.options, ctx.backend = options, backend
        return out

    @staticmethod
    def backward(ctx, dout):
        expect_first_derivative(OP)
        _, backward = kernels(OP, ctx.backend)
        wanted = ctx.needs_input_grad[:3]
        gradients = backward(dout, *ctx.saved_tensors, *ctx.options, wanted)
        return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), *[None] * 7


def _choose(x, pool, backend):
    window = pool[0][0] * pool[0][1] if pool is not None else 1
    if window <= MAX_WINDOW or backend == "reference":
        return choose(OP, x, backend)
    if backend is not None:
        raise ValueError(f"{OP}: pool kernel has {window} pixels; backend {backend!r} takes at most {MAX_WINDOW}")
    return "reference"


def _check(x, weight, bias, stride, padding, pool):
    expect_tensor(OP, "x", x, ndim=4)
    expect_tensor(OP, "weight", weight, ndim=4)
    C, _, kh, kw = weight.shape
    if 0 in (*x.shape[1:], *weight.shape):
        raise ValueError(
            f"{OP}: x has shape {shape_text(x.shape)} and weight {shape_text(weight.shape)}; expected no empty dimension but B"
        )
    expect_like(OP, "weight", weight, (C, x.shape[1], kh, kw), x)
    expect_optional(OP, "bias", bias, (C,), x)
    stride, padding = pair(OP, "stride", stride, 1), pair(OP, "padding", padding, 0)
    size = _output_size(x.shape[2:], (kh, kw), stride, padding)
    if min(size) < 1:
        raise ValueError(
            f"{OP}: x has shape {shape_text(x.shape)}; expected an image of at least the kernel, {kh} x {kw}, with padding"
        )
    if pool is not None:
        if not isinstance(pool, (tuple, list)) or len(pool) != 3:
            raise ValueError(f"{OP}: pool is {pool!r}; expected (kernel, stride, padding) or None")
        kernel, step, pad = pool = tuple(pair(OP, "pool", p, least) for p, least in zip(pool, (1, 1, 0), strict=True))
        if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
            raise ValueError(f"{OP}: pool padding is {pad}; expected at most half the pool kernel {kernel}")
        if min(_output_size(size, kernel, step, pad)) < 1:
            raise ValueError(
                f"{OP}: pool kernel is {kernel}; expected at most the convolved image, {size[0]} x {size[1]}, with padding"
            )
    return stride, padding, pool


def _output_size(size, kernel, stride, padding):
    return tuple((s + 2 * p - k) // t + 1 for s, k, t, p in zip(size, kernel, stride, padding, strict=True))
