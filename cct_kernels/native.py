"""The native library: found, loaded, and the schema and fake kernel of each of its ops, side by side.

`cpu` and `cuda` are two dispatch keys of one op. The libraries are built by `pip install .` into cct_kernels/lib/.
"""

import functools
from pathlib import Path

import torch

LIBRARIES = Path(__file__).resolve().parent / "lib"

OPS = {
    "seqpool_forward": "(Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, float eps) -> "
    "(Tensor out, Tensor lse, Tensor mean, Tensor rstd)",
    "seqpool_backward": "(Tensor dout, Tensor x, Tensor weight, Tensor? norm_weight, Tensor? norm_bias, "
    "Tensor lse, Tensor mean, Tensor rstd) -> (Tensor dx, Tensor dweight, Tensor dnorm_weight, Tensor dnorm_bias)",
}


def _define():
    for name, schema in OPS.items():
        torch.library.define(f"cct_kernels::{name}", schema)

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
