"""A process told to run as on an older CPU, by our switch and by oneDNN's: the numerics rule in a fresh start."""

import os
import subprocess
import sys

import pytest
import torch

from cct_kernels.dispatch import machine_why_not

SCRIPT = """
import torch
import cct_kernels
from cct_kernels.testing import CASES, compare

ops = "conv_tokenizer", "layernorm_attention", "layernorm_mlp", "seqpool"
small = []
for op in ops:
    small += [case for case in CASES if case.op == op and max(case.shapes["x"]) < 80][::2]
for case in small:
    for dtype in (torch.float32, torch.bfloat16):
        compare(case, dtype, lambda **kw: getattr(cct_kernels, case.op)(**kw, backend="cpu"))
print(torch.ops.cct_kernels.cpu_isa(), len(small), {case.op for case in small} == set(ops))
"""


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", SCRIPT], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )  # fmt: skip


@pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
def test_switches_of_a_fresh_process():
    level = "avx2" if torch.ops.cct_kernels.cpu_isa() != "generic" else "generic"
    result = run(CCT_CPU_ISA=level, ONEDNN_MAX_CPU_ISA="AVX2")
    assert result.returncode == 0, result.stderr[-3000:]
    isa, count, all_ops = result.stdout.split()
    assert (isa, all_ops) == (level, "True") and int(count) >= 8


@pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
def test_an_unknown_level_is_named():
    result = run(CCT_CPU_ISA="sse9")
    assert result.returncode != 0
    assert "CCT_CPU_ISA: expected generic, avx2, avx512, avx512_bf16 or amx, got sse9" in result.stderr
