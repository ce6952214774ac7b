"""Convolution, ReLU and max-pooling, read out as tokens, in one op."""

from . import reference
from .checks import expect_like, expect_optional, expect_tensor, pair, shape_text
from .dispatch import choose

OP = "conv_tokenizer"


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

    Returns: (B, N, C) or (B, C, H', W') in the dtype of x; sums are float32 (float64 for float64 input).
    Raises: ValueError for a wrong shape, dtype or device, or an output without pixels; BackendError when a named backend
        cannot run.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.4, equation for x0.
    """
    stride, padding, pool = _check(x, weight, bias, stride, padding, pool)
    choose(OP, x, backend)
    return reference.conv_tokenizer(x, weight, bias, stride=stride, padding=padding, relu=relu, pool=pool, tokens=tokens)


def _check(x, weight, bias, stride, padding, pool):
    expect_tensor(OP, "x", x, ndim=4)
    expect_tensor(OP, "weight", weight, ndim=4)
    C, _, kh, kw = weight.shape
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
