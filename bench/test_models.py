"""Whole models: inference and training steps, and the peak memory of a training step."""

import json
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from cct.models import count_macs, count_parameters, create_model
from cct_kernels.testing import assert_no_worse, max_error

from . import record
from .peers import INFERENCE, MODULES, autocast
from .session import PEER_FACTOR
from .test_ops import DEVICES, PROBE
from .timing import after_rest

# label: registered name, batches of inference, batches of training
MODELS = {
    "CCT-7/3x1": ("cct_7_3x1_32", (1, 8, 64, 256), (64, 128)),
    "CCT-2/3x2": ("cct_2_3x2_32", (1, 8, 64, 256), (64, 128)),
    "CCT-14/7x2": ("cct_14_7x2_224", (1, 8, 64, 256), (16, 64)),
    "CVT-7/4": ("cvt_7_4_32", (1, 8, 64, 256), (64, 128)),
    "ViT-Lite-7/4": ("vit_lite_7_4_32", (1, 8, 64, 256), (64, 128)),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
AUTOTUNED = {("inference", "CCT-7/3x1", 64), ("training", "CCT-7/3x1", 64), ("training", "CCT-2/3x2", 128)}  # max-autotune too
WITHOUT_DROPOUT = {"attention_dropout": 0.0, "stochastic_depth": 0.0}


def rows(column):
    return [pytest.param(label, batch, id=f"{label}-B{batch}") for label, spec in MODELS.items() for batch in spec[column]]


def plain_model(label, device, **kwargs):
    torch.manual_seed(0)
    return create_model(MODELS[label][0], fused=False, **kwargs).to(device)


def images(model, batch, device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, model.in_chans, *model.img_size, generator=generator)
    return x.to(device), torch.randint(model.num_classes, (batch,), generator=generator).to(device)


def key(kind, label, batch, dtype, device):
    return {"kind": kind, "what": label, "device": device, "dtype": dtype, "batch": batch}


def hold_to_rule(name, result, value, torch_own, exact, dtype):
    if name == "ours":
        return assert_no_worse(result, value.to(torch_own.dtype), torch_own, exact, dtype)
    bound = PEER_FACTOR * (2 * max_error(torch_own, exact) + 4 * torch.finfo(dtype).eps * exact.abs().max().item())
    assert max_error(value, exact) <= bound, f"wrong {result}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("label", "batch"), rows(1))
@pytest.mark.parametrize("device", DEVICES)
def test_inference(bench, device, label, batch, dtype):
    inference(bench, key("inference", label, batch, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("label", ["CCT-7/3x1", "CCT-2/3x2"])
@pytest.mark.parametrize("device", DEVICES)
def test_inference_after_rest(bench, device, label, dtype):
    """A single image after 0.2 s without one, as a camera or a server with few visitors sends them."""
    inference(bench, key("inference after 0.2 s of rest", label, 1, dtype, device), timer=after_rest)


def inference(bench, row, timer=None):
    device, label, batch, dtype = (row[name] for name in ("device", "what", "batch", "dtype"))
    bench.begin(row, INFERENCE)
    model = plain_model(label, device).eval()
    x, _ = images(model, batch, device)
    with torch.inference_mode():
        exact = plain_model(label, device).eval().double()(x[:PROBE].double())
        with autocast(device, DTYPES[dtype]):
            torch_own = model(x[:PROBE]).float()

    def check(name, call):
        hold_to_rule(name, "logits", call()[:PROBE].float(), torch_own, exact, DTYPES[dtype])

    parameters = count_parameters(model).total
    bench.row(
        row,
        {name: lambda b=build: b(model, x, DTYPES[dtype], bench.threads) for name, build in INFERENCE.items()},
        check,
        flops=2 * batch * count_macs(model).full,
        moved=x.nbytes + DTYPES[dtype].itemsize * parameters,
        slow=(row["kind"], label, batch) in AUTOTUNED,
        timer=timer,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("label", "batch"), rows(2))
@pytest.mark.parametrize("device", DEVICES)
def test_training_step(bench, device, label, batch, dtype):
    """Forward, backward and AdamW, with the dropout of the published recipes; checked without dropout, gradient by gradient."""
    row = key("training", label, batch, dtype, device)
    bench.begin(row, MODULES)
    quiet = plain_model(label, device, **WITHOUT_DROPOUT).train()
    x, labels = images(quiet, batch, device)
    exact = gradients(plain_model(label, device, **WITHOUT_DROPOUT).double(), x[:PROBE].double(), torch.float64)
    torch_own = gradients(quiet, x[:PROBE], DTYPES[dtype])
    modules = {}

    def build(name):
        model = plain_model(label, device).train()
        modules[name] = module = MODULES[name](model)
        optimizer = torch.optim.AdamW(module.parameters(), lr=5e-4, weight_decay=0.06, fused=True)
        return lambda: training_step(module, optimizer, x, labels, DTYPES[dtype])

    def check(name, _):
        found = gradients(MODULES[name](plain_model(label, device, **WITHOUT_DROPOUT).train()), x, DTYPES[dtype])
        for result, value in found.items():
            hold_to_rule(name, result, value, torch_own[result], exact[result], DTYPES[dtype])

    model, parameters = quiet, count_parameters(quiet).total
    bench.row(
        row,
        {name: lambda name=name: build(name) for name in MODULES},
        check,
        flops=3 * 2 * batch * count_macs(model).full,
        moved=x.nbytes + 4 * parameters * 10,  # float32 weight, gradient and two moments: forward, backward and AdamW
        slow=("training", label, batch) in AUTOTUNED,
    )


def gradients(module, x, dtype):
    """Logits and parameter gradients, by name, of the first images of x under a fixed incoming gradient."""
    device = x.device.type
    with autocast(device, dtype if dtype != torch.float64 else torch.float32):
        logits = module(x)[:PROBE]
    dout = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(device, logits.dtype)
    named = {n.removeprefix("_orig_mod.").removeprefix("model."): p for n, p in module.named_parameters() if p.requires_grad}
    found = torch.autograd.grad(logits, list(named.values()), dout)
    return {"logits": logits.detach().to(found[0].dtype)} | dict(zip(named, found, strict=True))


def training_step(module, optimizer, x, labels, dtype):
    with autocast(x.device.type, dtype):
        loss = F.cross_entropy(module(x), labels, label_smoothing=0.1)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("label", "batch"), rows(2))
@pytest.mark.parametrize("device", DEVICES)
def test_training_memory(bench, device, label, batch, dtype):
    """The highest memory of two training steps above that before them, each peer in a process of its own."""
    row, peers, names = key("memory", label, batch, dtype, device), {}, ("ours", "unfused", "published", "published+sdpa")
    bench.begin(row, names)
    for name in filter(bench.wants, names):
        command = [sys.executable, "-m", "bench.memory", label, name, str(batch), dtype, device, str(bench.threads)]
        done = subprocess.run(command, cwd=record.ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peers[name] = {"median": json.loads(done.stdout)}
    bench.keep(record.make(row | {"threads": bench.threads}, peers, {}, unit="bytes"))
