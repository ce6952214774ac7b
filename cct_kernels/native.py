"""The native library: found, loaded, and the schema and fake kernel of each of its ops, side by side.

`cpu` and `cuda` are two dispatch keys of one op. The libraries are built by `pip install .` into cct_kernels/lib/.
"""

import functools
from pathlib import Path

import torch

LIBRARIES = Path(__file__).resolve().parent / "lib"

_MLP = (
    "Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor fc1_weight, Tensor? fc1_bias, "
    "Tensor fc2_weight, Tensor? fc2_bias, float dropout, Tensor? drop_path_scale, Tensor? seed, float eps, "
    "ScalarType compute"
)

_ATTENTION = (
    "Tensor x, Tensor? norm_weight, Tensor? norm_bias, Tensor qkv_weight, Tensor proj_weight, Tensor? proj_bias, "
    "int num_heads, Tensor? qkv_bias, Tensor? mask, float attn_dropout, float dropout, Tensor? drop_path_scale, "
    "Tensor? seed, float eps, ScalarType compute"
)

_CONV = "int[2] stride, int[2] padding, bool relu, int[6] pool, ScalarType compute"

# kept_x: what backward takes in the place of x, so that x can be freed; empty where it takes x itself.
OPS = {
    "augment_pixels": "(Tensor images, Tensor codes, Tensor args, Tensor fill) -> Tensor",
    "augment_finish": "(Tensor images, Tensor? lam, Tensor? box, Tensor? erase, Tensor scale, Tensor shift, int mode, "
    "Tensor normals) -> Tensor",
    "compact_transformer_forward": "(Tensor x, Tensor[] conv_weights, Tensor?[] conv_biases, int[] windows, bool relu, "
    "int[6] pool, Tensor? class_token, Tensor? positional, Tensor[] blocks, int num_heads, Tensor norm_weight, "
    "Tensor norm_bias, Tensor? pool_weight, Tensor? head_weight, Tensor? head_bias, float eps, ScalarType compute) -> Tensor",
    "conv_tokenizer_forward": f"(Tensor x, Tensor weight, Tensor? bias, {_CONV}, bool keep) -> (Tensor out, Tensor winner)",
    "conv_tokenizer_backward": f"(Tensor dout, Tensor x, Tensor weight, Tensor winner, {_CONV}, bool[3] output_mask) -> "
    "(Tensor dx, Tensor dweight, Tensor dbias)",
    "encoder_forward": "(Tensor x, Tensor[] blocks, int num_heads, Tensor? mask, float eps, ScalarType compute) -> Tensor",
    "layernorm_attention_forward": f"({_ATTENTION}, bool keep) -> "
    "(Tensor out, Tensor mean, Tensor rstd, Tensor qkv, Tensor o, Tensor lse, Tensor pairs, Tensor kept_x)",
    "layernorm_attention_backward": f"(Tensor dout, {_ATTENTION}, "
    "Tensor mean, Tensor rstd, Tensor qkv, Tensor o, Tensor lse, Tensor pairs, bool[2] need_weights) -> "
    "(Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dqkv_weight, Tensor dproj_weight, "
    "Tensor dproj_bias, Tensor dqkv_bias)",
    "layernorm_mlp_forward": f"({_MLP}, bool keep) -> (Tensor out, Tensor mean, Tensor rstd, Tensor hidden, Tensor kept_x)",
    "layernorm_mlp_backward": f"(Tensor dout, {_MLP}, Tensor mean, Tensor rstd, Tensor hidden, bool[2] need_weights) -> "
    "(Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dfc1_weight, Tensor dfc1_bias, "
    "Tensor dfc2_weight, Tensor dfc2_bias)",
    "seqpool_forward": "(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, float eps) -> "
    "(Tensor out, Tensor lse, Tensor mean, Tensor rstd)",
    "seqpool_backward": "(Tensor dout, Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor lse, Tensor mean, Tensor rstd) -> (Tensor dx, Tensor dweight, Tensor dnorm_weight, Tensor dnorm_bias)",
}


def _round_up(n, multiple):
    return (n + multiple - 1) // multiple * multiple


def _kept_dtype(x, compute):
    """The dtype of what is kept for backward: that of the products; on a CPU bfloat16 even where they are in float32."""
    return compute if x.device.type != "cpu" or compute == torch.bfloat16 else torch.float32


def _kept_rows(N, kept):
    """The rows kept of an image's q, k and v: whole blocks where the kernels work on them, else of the copies the N alone."""
    return N if kept == torch.bfloat16 and not torch.ops.cct_kernels.cpu_multiplies_bfloat16() else _round_up(N, 32)


def _kept_norm(x, compute, keep):
    """mean, rstd and kept_x of the LayerNorm that an op begins with: on a CPU the rows normalised where that is smaller."""
    images, normalised = x.shape[0] if keep else 0, keep and x.dtype == torch.float32 and compute == torch.bfloat16
    mean, rstd = (x.new_empty(n, x.shape[1], dtype=torch.float32) for n in (0 if normalised else images, images))
    return mean, rstd, x.new_empty(x.shape, dtype=compute) if normalised else x.new_empty(0)


def _define():
    for name, schema in OPS.items():
        torch.library.define(f"cct_kernels::{name}", schema)

    @torch.library.register_fake("cct_kernels::augment_pixels")
    def _(images, codes, args, fill):
        return images.new_empty(images.shape)

    @torch.library.register_fake("cct_kernels::augment_finish")
    def _(images, lam, box, erase, scale, shift, mode, normals):
        return images.new_empty(images.shape, dtype=torch.float32)

    @torch.library.register_fake("cct_kernels::compact_transformer_forward")
    def _(x, conv_weights, conv_biases, windows, relu, pool, class_token, positional, blocks, num_heads, norm_weight, *rest):
        head_weight = rest[2]
        classes = norm_weight.shape[0] if head_weight is None else head_weight.shape[0]
        autocast = head_weight is not None and torch.is_autocast_enabled("cpu")
        return x.new_empty(x.shape[0], classes, dtype=torch.get_autocast_dtype("cpu") if autocast else x.dtype)

    @torch.library.register_fake("cct_kernels::conv_tokenizer_forward")
    def _(x, weight, bias, stride, padding, relu, pool, compute, keep):
        (B, _, *size), (C, _, *kernel) = x.shape, weight.shape
        size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True)]
        size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, pool[:2], pool[2:4], pool[4:], strict=True)]
        N = size[0] * size[1]
        kept = B if keep and (relu or pool[0] * pool[1] > 1) else 0
        return x.new_empty(B, N, C), x.new_empty(kept, N, _round_up(C, 64), dtype=torch.uint8)

    @torch.library.register_fake("cct_kernels::conv_tokenizer_backward")
    def _(dout, x, weight, winner, stride, padding, relu, pool, compute, output_mask):
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)
        new = weight.new_empty
        shapes = (weight.shape, weight.shape[:1])
        dx = dx if output_mask[0] else x.new_empty(0)
        return dx, *(new(shape if wanted else 0) for shape, wanted in zip(shapes, output_mask[1:], strict=True))

    @torch.library.register_fake("cct_kernels::encoder_forward")
    def _(x, blocks, num_heads, mask, eps, compute):
        return x.new_empty(x.shape)

    @torch.library.register_fake("cct_kernels::layernorm_attention_forward")
    def _(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, *rest):
        (B, N, C), hd = x.shape, x.shape[2] // num_heads
        compute, keep = rest[-2:]
        attn_dropout = rest[2]
        images, kept = B if keep else 0, _kept_dtype(x, compute)
        rows = _kept_rows(N, kept)
        qkv = x.new_empty(images, 3, num_heads, rows, _round_up(hd, 64), dtype=kept)
        o = x.new_empty(images, rows, _round_up(C, 64), dtype=kept)
        lse = x.new_empty(images, num_heads, N, dtype=torch.float32)
        mean, rstd, kept_x = _kept_norm(x, compute, keep)
        pairs = (images if round(attn_dropout * 2**32) else 0, num_heads, N, _round_up(N, 64) // 64)
        return x.new_empty(x.shape), mean, rstd, qkv, o, lse, x.new_empty(pairs, dtype=torch.int64), kept_x

    @torch.library.register_fake("cct_kernels::layernorm_attention_backward")
    def _(dout, x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, *rest):
        C, (need_qkv, need_proj) = x.shape[2], rest[-1]
        new = qkv_weight.new_empty
        dqkv, dproj = new((3 * C, C) if need_qkv else 0), new((C, C) if need_proj else 0)
        return dout.new_empty(x.shape), new(C), new(C), dqkv, dproj, new(C), new(0 if qkv_bias is None else 3 * C)

    @torch.library.register_fake("cct_kernels::layernorm_mlp_forward")
    def _(x, norm_weight, norm_bias, fc1_weight, *rest):
        (B, N, _), (compute, keep) = x.shape, rest[-2:]
        mean, rstd, kept_x = _kept_norm(x, compute, keep)
        hidden = x.new_empty(-(-fc1_weight.shape[0] // 64), B * N if keep else 0, 64, dtype=_kept_dtype(x, compute))
        return x.new_empty(x.shape), mean, rstd, hidden, kept_x

    @torch.library.register_fake("cct_kernels::layernorm_mlp_backward")
    def _(dout, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, *rest):
        (F, C), (need_fc1, need_fc2) = fc1_weight.shape, rest[-1]
        new = fc1_weight.new_empty
        dw1, dw2 = new((F, C) if need_fc1 else 0), new((C, F) if need_fc2 else 0)
        return dout.new_empty(x.shape), new(C), new(C), dw1, new(F), dw2, new(C)

    @torch.library.register_fake("cct_kernels::seqpool_forward")
    def _(x, weight, norm_weight, norm_bias, eps):
        B, N, C = x.shape
        stats = (B if norm_weight is not None else 0, N)
        f32 = {"dtype": torch.float32}
        return x.new_empty(B, C), x.new_empty(B, **f32), x.new_empty(stats, **f32), x.new_empty(stats, **f32)

    @torch.library.register_fake("cct_kernels::seqpool_backward")
    def _(dout, x, weight, norm_weight, norm_bias, lse, mean, rstd):
        like = [x.new_empty(0) if t is None else torch.empty_like(t) for t in (norm_weight, norm_bias)]
        return (x.new_empty(x.shape), torch.empty_like(weight), *like)


_define()


@functools.cache
def why_not(backend):
    """Load the library of `backend` ("cpu" or "cuda") once; why it cannot be used, or None."""
    if backend == "cuda" and not torch.cuda.is_available():
        return "no CUDA GPU (torch.cuda.is_available() is False)"
    if backend == "cuda" and torch.cuda.get_device_capability() < (8, 0):
        return f"{torch.cuda.get_device_name()} has compute capability below 8.0"
    path = LIBRARIES / f"libcct_{backend}.so"
    if not path.exists():
        hint = "nvcc was not found when the package was installed" if backend == "cuda" else "the package was not built"
        return f"{path.name} is missing: {hint}; run `pip install .` again"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load ({error}); run `pip install --force-reinstall --no-deps .` for this PyTorch"
    return None


def missing(op, backend):
    """Why the loaded library of `backend` does not hold `op`: it was built from older sources. None if it does."""
    if torch._C._dispatch_has_kernel_for_dispatch_key(f"cct_kernels::{op}_forward", backend.upper()):
        return None
    return f"libcct_{backend}.so was built without it; run `pip install .` again"
