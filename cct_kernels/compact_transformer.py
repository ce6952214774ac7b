"""The whole network from images to logits in one op, for inference."""

import torch

from .calls import alike, compute_dtype, only_values
from .checks import expect_bool, expect_int, expect_like, expect_optional, expect_positive, expect_tensor, pair
from .conv_tokenizer import MAX_WINDOW, conv_tokenizer
from .dispatch import TABLE, choose
from .encoder import Block, encoder
from .seqpool import seqpool

OP = "compact_transformer"


def compact_transformer(
    x, stages, blocks, norm_weight, norm_bias, *, num_heads, relu=True, pool=(3, 2, 1), class_token=None, positional=None,
    pool_weight=None, pool_bias=None, head_weight=None, head_bias=None, eps=1e-5, backend=None,
):  # fmt: skip
    """Tokenizer, class token, positional embedding, encoder, final LayerNorm with SeqPool or class token, head.

        t = conv_tokenizer of each stage in turn;  t = [class_token; t] + positional;  t = encoder(t)
        z = seqpool(LN(t)), or LN(t)[0] without pool_weight;  out = z head_weight^T + head_bias

    Args:
        x: images (B, Cin, H, W), float32, float16, bfloat16 or float64.
        stages: a sequence of (weight, bias or None, stride, padding), the convolutions of `conv_tokenizer`.
        blocks: a sequence of `encoder.Block`s, or of tuples in its order.
        norm_weight, norm_bias: (C,) of the final LayerNorm.
        num_heads: nh, divides C.
        relu, pool: of every stage, see `conv_tokenizer`.
        class_token: (1, 1, C), or None; needed without pool_weight.
        positional: (1, N, C), added to the tokens, or None.
        pool_weight, pool_bias: (1, C), (1,) of `seqpool`, or None: the first token is read out.
        head_weight, head_bias: (classes, C), (classes,), or None: the pooled features are the result.
        eps: of every LayerNorm.
        backend: None (fastest that runs), "fused", or a name of `dispatch.BACKENDS`.

    Without gradients the CPU backend makes one native call of it; else the ops run in turn, each on its own backend, with
    their gradients. The results are the same up to rounding: for few images sums have another order.

    Returns: (B, classes), or (B, C) without a head, in the dtype of x; under autocast a head gives its dtype.
    Raises: ValueError for a wrong shape, dtype or device; BackendError when a named backend cannot run.
    Source: "Escaping the Big Data Paradigm with Compact Transformers", section 3.
    """
    _check_plain(x, stages, num_heads, relu, pool, eps)
    if pool_weight is None and class_token is None:
        raise ValueError(f"{OP}: pool_weight and class_token are None; expected one of them, to read the tokens out")
    parameters = [norm_weight, norm_bias, class_token, positional, pool_weight, pool_bias, head_weight, head_bias]
    chosen = choose(OP, x, backend) if (OP, x.device.type) in TABLE else None
    if chosen == "reference":
        backend = chosen  # for all ops: under autocast the first may give a dtype that the kernels know
    if chosen == "cpu" and only_values():
        weights, biases, strides, paddings = zip(*stages, strict=True)
        flat = _flat(blocks)
        window = [v for part in pool for v in pair(OP, "pool", part, 0)] if pool is not None else [1, 1, 1, 1, 0, 0]
        native = norm_bias is not None and len(window) == 6 and window[0] * window[1] <= MAX_WINDOW
        required = None if flat is None else [*weights, norm_weight, *flat]
        if native and required and alike(x, required, none=False) and alike(x, [*biases, *parameters]):
            windows = []
            for stride, padding in zip(strides, paddings, strict=True):
                windows += [*pair(OP, "stride", stride, 1), *pair(OP, "padding", padding, 0)]
            return torch.ops.cct_kernels.compact_transformer_forward(
                x, weights, biases, windows, relu, window, class_token, positional, flat, num_heads, norm_weight, norm_bias,
                pool_weight, head_weight, head_bias, eps, compute_dtype(x),
            )  # fmt: skip
    _check_tensors(stages, *parameters)
    for i, (weight, bias, stride, padding) in enumerate(stages, 1):
        window = {"stride": stride, "padding": padding, "relu": relu, "pool": pool}
        x = conv_tokenizer(x, weight, bias, **window, tokens=i == len(stages), backend=backend)
    if class_token is not None:
        x = torch.cat([class_token.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)
    if positional is not None:
        x = x + positional.to(x.dtype)
    x = encoder(x, blocks, num_heads=num_heads, eps=eps, backend=backend)
    if pool_weight is not None:
        x = seqpool(x, pool_weight, pool_bias, norm_weight=norm_weight, norm_bias=norm_bias, eps=eps, backend=backend)
    else:
        x = torch.nn.functional.layer_norm(x[:, 0], norm_weight.shape, norm_weight, norm_bias, eps)
    return x if head_weight is None else torch.nn.functional.linear(x, head_weight, head_bias)


def _flat(blocks):
    """What all blocks are made of, or None where the encoder will find fault with them."""
    several, fields, flat = (tuple, list), len(Block._fields), []
    if not isinstance(blocks, several):
        return None
    for block in blocks:
        if not isinstance(block, several) or len(block) != fields:
            return None
        flat += block
    return flat


def _check_plain(x, stages, num_heads, relu, pool, eps):
    """What the native call does not check by itself."""
    expect_tensor(OP, "x", x, ndim=4)
    expect_int(OP, "num_heads", num_heads, 1)
    expect_bool(OP, "relu", relu)
    expect_positive(OP, "eps", eps)
    if pool is not None and (not isinstance(pool, (tuple, list)) or len(pool) != 3):
        raise ValueError(f"{OP}: pool is {pool!r}; expected (kernel, stride, padding) or None")
    if not isinstance(stages, (tuple, list)) or not stages or any(len(stage) != 4 for stage in stages):
        raise ValueError(f"{OP}: stages is {type(stages).__name__}; expected a sequence of (weight, bias, stride, padding)")


def _check_tensors(stages, norm_weight, norm_bias, class_token, positional, pool_weight, pool_bias, head_weight, head_bias):
    """What the ops in turn do not check by themselves."""
    for weight, *_ in stages:
        expect_tensor(OP, "weight of a stage", weight, ndim=4)
    expect_tensor(OP, "norm_weight", norm_weight, ndim=1)
    C = norm_weight.shape[0]
    expect_optional(OP, "norm_bias", norm_bias, (C,), norm_weight)
    expect_optional(OP, "class_token", class_token, (1, 1, C), norm_weight)
    if positional is not None:
        expect_tensor(OP, "positional", positional, ndim=3)
    if head_weight is not None:
        expect_tensor(OP, "head_weight", head_weight, ndim=2)
        expect_like(OP, "head_weight", head_weight, (head_weight.shape[0], C), norm_weight)
        expect_optional(OP, "head_bias", head_bias, head_weight.shape[:1], head_weight)
