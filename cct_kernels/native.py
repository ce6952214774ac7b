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

OPS = {
    "layernorm_mlp_forward": f"({_MLP}) -> (Tensor out, Tensor mean, Tensor rstd)",
    "layernorm_mlp_backward": f"(Tensor dout, {_MLP}, Tensor mean, Tensor rstd, bool need_weights) -> "
    "(Tensor dx, Tensor dnorm_weight, Tensor dnorm_bias, Tensor dfc1_weight, Tensor dfc1_bias, "
    "Tensor dfc2_weight, Tensor dfc2_bias)",
    "seqpool_forward": "(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, float eps) -> "
    "(Tensor out, Tensor lse, Tensor mean, Tensor rstd)",
    "seqpool_backward": "(Tensor dout, Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor lse, Tensor mean, Tensor rstd) -> (Tensor dx, Tensor dweight, Tensor dnorm_weight, Tensor dnorm_bias)",
}


def _define():
    for name, schema in OPS.items():
        torch.library.define(f"cct_kernels::{name}", schema)

    @torch.library.register_fake("cct_kernels::layernorm_mlp_forward")
    def _(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps, compute):
        stats = x.new_empty(x.shape[:2], dtype=torch.float32)
        return x.new_empty(x.shape), stats, torch.empty_like(stats)

    @torch.library.register_fake("cct_kernels::layernorm_mlp_backward")
    def _(dout, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, *rest):
        (F, C), need_weights = fc1_weight.shape, rest[-1]
        new = fc1_weight.new_empty
        dw1, dw2 = (new(F, C), new(C, F)) if need_weights else (new(0), new(0))
        return x.new_empty(x.shape), new(C), new(C), dw1, new(F), dw2, new(C)

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
    path = LIBRARIES / f"libcct_{backend}.so"
    if not path.exists():
        hint = "nvcc was not found when the package was installed" if backend == "cuda" else "the package was not built"
        return f"{path.name} is missing: {hint}; run `pip install .` again"
    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load ({error}); run `pip install --force-reinstall --no-deps .` for this PyTorch"
    return None
