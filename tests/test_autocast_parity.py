"""Products in bfloat16 of tensors in float32, as training under autocast has them, by the numerics rule in bfloat16."""

import weakref

import pytest
import torch

import cct_kernels
from cct_kernels import reference
from cct_kernels.testing import CASES, assert_no_worse, make_inputs, poisoned_memory, run

SMALL = [case for case in CASES if sum(torch.Size(shape).numel() for shape in case.shapes.values()) <= 100_000]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_parity_at_each_instruction_set(isa, threads, case):
    ours, plain = getattr(cct_kernels, case.op), getattr(reference, case.op)
    tensors = make_inputs(case, torch.float32)
    exact_tensors = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    shape = plain(**tensors, **case.options).shape
    dout = torch.randn(shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = run(plain, exact_tensors, case.options, dout)
    with torch.autocast("cpu", torch.bfloat16), poisoned_memory():
        found = run(lambda **kw: ours(**kw, backend="cpu"), tensors, case.options, dout)
    with torch.autocast("cpu", torch.bfloat16):
        torch_own = run(plain, tensors, case.options, dout)
    for name, value in found.items():
        assert value.dtype == torch.float32
        assert_no_worse(f"{case} {name}", value, torch_own[name].float(), exact[name], torch.bfloat16)


@pytest.mark.parametrize("op", ["layernorm_attention", "layernorm_mlp"])
def test_the_stream_in_float32_is_not_kept(op):
    """Backward has the rows normalised, in bfloat16."""
    case = next(case for case in CASES if case.op == op)
    tensors = make_inputs(case, torch.float32)
    tensors["x"] = tensors["x"].requires_grad_() * 1.0
    stream = weakref.ref(tensors["x"])
    with torch.autocast("cpu", torch.bfloat16):
        out = getattr(cct_kernels, op)(**tensors, **case.options, backend="cpu")
    kept = out.grad_fn.saved_tensors[0]
    assert kept.dtype == torch.bfloat16 and kept.shape == out.shape
    del tensors
    assert stream() is None
