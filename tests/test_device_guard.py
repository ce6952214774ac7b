"""Tensors on the wrong device are refused by name, before any kernel sees them. Fake and meta tensors stand for GPUs."""

import importlib

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import cct_kernels
from cct_kernels import testing
from cct_kernels.dispatch import TABLE
from cct_kernels.testing import make_inputs

OPS = ("conv_tokenizer", "layernorm_attention", "layernorm_mlp", "seqpool")
# A case of each op with every tensor argument that it has.
CASES = {op: max(testing.cases(op), key=lambda case: (len(case.shapes), case.shapes["x"][0] > 0)) for op in OPS}
ARGUMENTS = [(op, name) for op, case in CASES.items() for name in case.shapes if name != "x"]


def call(op, tensors, **more):
    return getattr(cct_kernels, op)(**tensors, **CASES[op].options, **more)


@pytest.mark.parametrize(("op", "name"), ARGUMENTS, ids=lambda p: p)
def test_a_cpu_tensor_beside_those_of_a_gpu(op, name):
    tensors = make_inputs(CASES[op], torch.float32, "meta")
    tensors[name] = make_inputs(CASES[op], torch.float32)[name]
    with pytest.raises(ValueError, match=f"{op}: {name} is on cpu; expected meta, the device of x"):
        call(op, tensors)


@pytest.mark.parametrize(("op", "name"), ARGUMENTS, ids=lambda p: p)
def test_a_tensor_on_another_gpu(op, name):
    tensors = make_inputs(CASES[op], torch.float32)
    with FakeTensorMode() as mode:
        fakes = {n: mode.from_tensor(t) for n, t in tensors.items()}
        fakes = {
            n: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=f"cuda:{int(n == name)}")
            for n, t in fakes.items()
        }
        with pytest.raises(ValueError, match=f"{op}: {name} is on cuda:1; expected cuda:0, the device of x"):
            call(op, fakes)


@pytest.mark.parametrize(("op", "backend"), [(op, b) for op in OPS for b in TABLE[op, "cuda"] if b != "reference"])
def test_cpu_tensors_for_a_gpu_backend(op, backend):
    with pytest.raises(ValueError, match=f"{op}: backend '{backend}' does not run on cpu tensors"):
        call(op, make_inputs(CASES[op], torch.float32), backend=backend)


@pytest.mark.parametrize("op", OPS)
def test_gpu_tensors_for_the_cpu_backend(op):
    with pytest.raises(ValueError, match=f"{op}: backend 'cpu' does not run on meta tensors"):
        call(op, make_inputs(CASES[op], torch.float32, "meta"), backend="cpu")


def test_the_encoder_checks_every_block():
    module = importlib.import_module("cct_kernels.encoder")  # the package's name of it may be the function
    shapes = (8, 8, (24, 8), (8, 8), 8, 8, 8, (16, 8), 16, (8, 16), 8)
    block = module.Block(*(torch.zeros(s, device="meta") for s in shapes))
    x = torch.zeros(1, 3, 8, device="meta")
    for name in block._fields:
        wrong = block._replace(**{name: torch.zeros(getattr(block, name).shape)})
        with pytest.raises(ValueError, match=r"is on cpu; expected meta, the device of x"):
            module.encoder(x, [block, wrong], num_heads=2)


def test_launchers_run_on_the_device_of_x(monkeypatch):
    """A Triton launch goes to the current GPU: a launcher makes that of x current."""
    launch = pytest.importorskip("cct_kernels.triton.launch", exc_type=ImportError)
    defined, entered = {}, []
    monkeypatch.setattr(torch.library, "define", lambda *args: None)
    monkeypatch.setattr(torch.library, "register_fake", lambda *args: None)
    monkeypatch.setattr(torch.library, "impl", lambda name, key, function: defined.setdefault(key, function))
    monkeypatch.setattr(torch.ops.cct_triton, "guarded", torch.ops.aten.add, raising=False)

    class Guard:
        def __init__(self, x):
            self.x = x

        def __enter__(self):
            entered.append(self.x)

        def __exit__(self, *args):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    launch.operator("guarded(Tensor x) -> Tensor", None)(lambda x: entered.append("launched") or x)
    x = torch.zeros(1)
    assert defined["CUDA"](x) is x and entered == [x, "launched", "left"]
