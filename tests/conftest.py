"""Shared fixtures: where the reference numbers and data sets of the project lie, if they are there at all."""

import os
import random
import sys
import zlib
from pathlib import Path

# PyTorch's own bfloat16 convolution by AMX has given NaN for zeros, and a backward pass of it a crash (2.13.0, November 2026):
# oneDNN keeps to AVX-512 in the tests. It reads this at its first use; our own kernels never do, and run by AMX all the same.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")

import pytest
import torch

from cct_kernels.dispatch import machine_why_not

ROOT = Path(__file__).resolve().parents[1]
machine_why_not("cpu")  # loads the native library, so that tests may call torch.ops.cct_kernels first
SHARED = Path(os.environ.get("CCT_SHARED", ROOT.parent / "shared"))


def pytest_collection_modifyitems(config, items):
    """CCT_TEST_SHARD=I/N runs one test of N, beginning with number I: bench/gpu.sh has several processes share the tests."""
    if shard := os.environ.get("CCT_TEST_SHARD"):
        i, n = map(int, shard.split("/"))
        config.hook.pytest_deselected(items=[item for k, item in enumerate(items) if k % n != i])
        items[:] = items[i::n]


def _seed(name):
    seed = zlib.crc32(name.encode())
    random.seed(seed)
    torch.manual_seed(seed)
    if "numpy" in sys.modules:  # a machine with a GPU may lack it
        sys.modules["numpy"].random.seed(seed)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """What the fixtures of a module draw does not depend on which of its tests comes first."""
    _seed(item.path.name)


@pytest.fixture(autouse=True)
def _seeded(request):
    """What a test draws does not depend on which tests ran before it."""
    _seed(request.node.nodeid)


def _shared_folder(name):
    folder = SHARED / name
    if not folder.is_dir():
        pytest.skip(f"{name} of the shared folder is not here (set CCT_SHARED)")
    return folder


@pytest.fixture
def fixtures():
    """The folder of numbers computed in float64 with the official models."""
    return _shared_folder("fixtures")


@pytest.fixture
def shared_data():
    """The folder of real data sets."""
    return _shared_folder("data")


@pytest.fixture
def design():
    """The folder of the paper's tables."""
    return _shared_folder("design")


@pytest.fixture
def least_bfloat16_error():
    """What products in bfloat16 are off by at least, of results near 1; 0 where the CPU's kernels take float32 instead."""
    return 1e-4 if machine_why_not("cpu") is None and torch.ops.cct_kernels.cpu_multiplies_bfloat16() else 0.0


@pytest.fixture(params=["generic", "avx2", "avx512", "avx512_bf16", "amx"])
def isa(request):
    """Each instruction set this CPU runs, one after the other."""
    reason = machine_why_not("cpu")
    if reason:
        pytest.skip(f"cpu: {reason}")
    native = torch.ops.cct_kernels
    before = native.cpu_isa()
    try:
        native.set_cpu_isa(request.param)
    except ValueError as error:
        pytest.skip(str(error))
    yield request.param
    native.set_cpu_isa(before)


@pytest.fixture(params=[1, 2])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture
def set_threads():
    """A function that sets the number of PyTorch's threads for the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def checkpoint(tmp_path):
    """A function (name="cct_7_3x1", **model arguments) -> file of a small untrained model, as `cct train` writes them."""
    from cct.models import create_model
    from cct.models.checkpoints import save_checkpoint

    def make(name="cct_7_3x1", **kwargs):
        torch.manual_seed(0)
        small = {"img_size": 8, "num_classes": 3, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1, "embedding_dim": 16}
        model = create_model(name, **{**small, **kwargs})
        torch.nn.init.normal_(model.classifier.fc.weight)  # predictions that differ
        channels = model.in_chans
        preprocessing = {
            "size": list(model.img_size), "mean": [0.5] * channels, "std": [0.25] * channels, "channels": channels,
            "interpolation": "bicubic", "crop_pct": 1.0, "pad": 0,
        }  # fmt: skip
        path = tmp_path / f"{name}.safetensors"
        config = {"model": model.config, "preprocessing": preprocessing, "classes": ["ant", "bee", "cow"]}
        save_checkpoint(path, model.state_dict(), config)
        return path

    return make
