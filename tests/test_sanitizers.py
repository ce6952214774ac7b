"""The CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer, in programs without PyTorch (csrc/tests).

Here at the instruction set that this CPU runs fastest; `make sanitize` goes through all of them, and through ThreadSanitizer.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cct_kernels.dispatch import machine_why_not

ROOT = Path(__file__).resolve().parents[1]
KIND = "address,undefined"


def call(*command, again=(), **kwargs):
    """Once more, with the words `again` as well, where the system put something in the place of AddressSanitizer's shadow: that
    is a matter of the random addresses of a process."""
    for _ in range(10):
        result = subprocess.run(command, capture_output=True, text=True, timeout=2400, **kwargs)
        if result.returncode == 0 or "Shadow memory range" not in result.stdout + result.stderr:
            break
        command = (*command, *again)
        again = ()
    return result


def why_not(folder):
    """Why the programs cannot be built or run here, or None."""
    for tool in ("cmake", "ctest", "ninja"):
        if shutil.which(tool) is None:
            return f"{tool} is not here: pip install cmake ninja"
    source, program = folder / "probe.cpp", folder / "probe"
    source.write_text("int main() { return 0; }")
    try:
        built = call(os.environ.get("CXX", "c++"), f"-fsanitize={KIND}", str(source), "-o", str(program))
    except FileNotFoundError as error:
        return f"no C++ compiler ({error})"
    if built.returncode:
        return f"the compiler has no sanitizers: {built.stderr.strip()[-200:]}"
    if call(str(program)).returncode:
        return "a program under AddressSanitizer does not start here"
    return machine_why_not("cpu")


def test_kernels_touch_only_their_own_memory(tmp_path):
    if reason := why_not(tmp_path):
        pytest.skip(reason)
    isa = torch.ops.cct_kernels.cpu_isa()
    options = {
        "CCT_TORCH": Path(torch.__file__).parent, "CCT_CUDA": 0, "CCT_TESTS": 1, "CCT_SANITIZE": KIND, "CCT_TEST_ISAS": isa,
    }  # fmt: skip
    steps = (
        ["cmake", "-S", str(ROOT), "-B", str(tmp_path), "-G", "Ninja", *(f"-D{k}={v}" for k, v in options.items())],
        ["cmake", "--build", str(tmp_path), "--target", "cct_tests"],
        ["ctest", "--test-dir", str(tmp_path), "--output-on-failure", "--no-tests=error"],
    )
    environment = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}
    for step in steps:
        result = call(*step, again=["--rerun-failed"] if step[0] == "ctest" else (), env=environment)
        assert result.returncode == 0, f"{' '.join(step[:3])}:\n{(result.stdout + result.stderr)[-6000:]}"
    assert "100% tests passed" in result.stdout and "Skipped" not in result.stdout
