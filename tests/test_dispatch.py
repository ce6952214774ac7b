"""`python -m cct_kernels` says of every op and device what runs and why the rest does not."""

import subprocess
import sys

import pytest
import torch

from cct_kernels.dispatch import OPS, TABLE


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_report(dtype):
    command = [sys.executable, "-m", "cct_kernels", "--dtype", dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    for op in OPS:
        for device in ("cpu", "cuda"):
            lines = [line for line in done.stdout.splitlines() if line.split()[:2] == [op, device]]
            assert len(lines) == len(TABLE.get((op, device), ("its ops",))), done.stdout
    assert f"PyTorch {torch.__version__}" in done.stdout and f"for {dtype} tensors" in done.stdout


def test_wrong_dtype():
    done = subprocess.run([sys.executable, "-m", "cct_kernels", "--dtype", "int8"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "float32" in done.stderr
