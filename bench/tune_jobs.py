"""What the search of bench/tune.py times configurations by: calls of the ops at the shapes of the models."""

from collections.abc import Callable
from typing import NamedTuple

import torch

import cct_kernels
from cct_kernels import testing

from . import gpu_encoder
from .test_ops import MODELS, with_batch
from .triton_cases import EXTRA


class Job(NamedTuple):
    """Forward and backward of an op. dry(arch): its launches, on meta tensors; make(): its tensors on the GPU and the op."""

    name: str
    dtype: torch.dtype
    dry: Callable
    make: Callable
    dropout: bool = False


def jobs(batch):
    """The shapes of the models in both dtypes, with dropout too: what a leaf is timed by is the first of them that reads it."""
    cases = [with_batch(case, batch) for case in testing.CASES if case.why.startswith(MODELS)]
    for case in list(cases):
        if "dropout" not in case.options and case.op in ("layernorm_attention", "layernorm_mlp"):
            rates = {"dropout": 0.1} | ({} if case.op == "layernorm_mlp" else {"attn_dropout": 0.1})
            shapes = case.shapes | {"seed": (2,)}
            cases.append(testing.Case(case.op, case.name + "_dropout", case.why, shapes, case.options | rates))
    cases += [case for case in testing.CASES if not case.why.startswith(MODELS) and case.shapes["x"][0] > 0] + EXTRA
    found = [_case_job(case, dtype) for dtype in (torch.bfloat16, torch.float32) for case in cases]
    random = {}, {"attn_dropout": 0.1, "drop_path": True}, {"attn_dropout": 0.1, "dropout": 0.1}
    return found + [_encoder_job(sizes, max(batch, 256), rates) for sizes in gpu_encoder.SIZES.values() for rates in random]


def _case_job(case, dtype):
    def dry(arch):
        from cct_kernels.triton import aot

        aot.compiled(arch, case, dtype)

    def make():
        def op(**tensors):
            return getattr(cct_kernels, case.op)(**tensors, **case.options, backend="triton")

        return testing.make_inputs(case, dtype, "cuda"), op

    return Job(f"{case} {str(dtype)[6:]}", dtype, dry, make, dropout="seed" in case.shapes)


def _encoder_job(sizes, batch, rates):
    """The whole encoder, of three blocks: the first, one between and the last."""
    N, C, F, heads, _ = sizes

    def dry(arch):
        from cct_kernels.triton import aot

        aot.compiled_encoder(arch, torch.bfloat16, batch, N, C, F, heads, **rates)

    def make():
        return gpu_encoder.call((N, C, F, heads, 3), batch, "cuda", backend="triton", **rates)

    return Job(f"encoder-B{batch}_N{N}_C{C}" + "".join(f"_{rate}" for rate in rates), torch.bfloat16, dry, make, bool(rates))
