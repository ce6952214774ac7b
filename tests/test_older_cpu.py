"""The instruction set of a fresh process: the fastest of this CPU, or an older one by our switch and by oneDNN's."""

import ctypes
import os
import re
import subprocess
import sys
from pathlib import Path

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


def asks_for_tiles():
    """Whether Linux lets this process use them; some containers do not (arch_prctl, ARCH_REQ_XCOMP_PERM, the tile data)."""
    return ctypes.CDLL(None).syscall(158, 0x1023, 18) == 0


@pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))
def test_the_fastest_level_is_chosen():
    """By Linux's own list of what the CPU can do. Without its tiles an Intel CPU multiplies faster in float32."""
    path = Path("/proc/cpuinfo")
    text = path.read_text() if path.exists() else ""
    flags = set("".join(re.findall(r"flags\s*: (.*)", text)[:1]).split())
    if not flags:
        pytest.skip("no list of what this CPU can do in /proc/cpuinfo")
    intel = "GenuineIntel" in text
    levels = {
        "amx": {"amx_bf16", "amx_tile", "avx512_bf16"} <= flags and asks_for_tiles(),
        "avx512_bf16": "avx512_bf16" in flags and not (intel and "avx512_fp16" in flags),
        "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags,
        "avx2": {"avx2", "fma"} <= flags,
        "generic": True,
    }
    environment = {k: v for k, v in os.environ.items() if k != "CCT_CPU_ISA"}
    found = subprocess.run([sys.executable, "-m", "cct_kernels"], env=environment, capture_output=True, text=True, check=True)
    level = next(level for level, runs in levels.items() if runs)
    assert f"CPU instruction set: {level} (" in found.stdout
