"""Products in bfloat16 of tensors in float32, as training under autocast has them, by the numerics rule in bfloat16."""

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
