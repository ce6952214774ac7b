"""The Triton kernels of augmentation without a GPU: the bits of the PyTorch form under the interpreter, and compilation."""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch.torch_version import Version

from cct.data import Augment

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
INTERPRETER = Path(__file__).with_name("augment_interpreter.py")


def test_under_the_interpreter():
    if version("triton").startswith("3.6.") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip("the interpreter of triton 3.6 needs numpy < 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(INTERPRETER)]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


def test_compiles_to_few_launches_without_fused_multiply_adds():
    from cct_kernels.triton import aot, augment

    def empty(*shape, dtype):
        return torch.empty(*shape, dtype=dtype, device="meta")

    drawn = Augment(scale=(0.8, 1.0), aa="rand-m9-mstd0.5-inc1", reprob=0.25).draw(0, 0, torch.arange(8), (32, 32))
    images, steps = empty(8, 3, 32, 32, dtype=torch.uint8), drawn.program.codes.shape[1]
    codes, args = empty(8, steps, dtype=torch.int64), empty(8, steps, 7, dtype=torch.float64)
    scale, normals = empty(3, 1, 1, dtype=torch.float32), empty(65536, dtype=torch.float32)
    mix = empty(8, dtype=torch.float64), empty(8, 4, dtype=torch.int64)
    with aot._compiling("sm_90", "augment") as launches:
        augment.pixels(images, codes, args, drawn.program.kinds, empty(3, dtype=torch.uint8))
        augment.finish(images, *mix, empty(8, 1, 5, dtype=torch.int64), scale, scale, 0, normals)
    names = [launch.kernel.name for launch in launches]  # the resized crop, the two steps of the policy, the rest
    assert set(names) == {"augment_step_kernel", "augment_tables_kernel", "augment_finish_kernel"} and len(names) <= 6
    for launch in launches:
        assert "fma.rn" not in launch.kernel.asm["ptx"]
        used = aot.resources(launch.kernel)
        assert used["local"] == used["stack"] == 0, f"{launch.kernel.name} spills: {used}"
