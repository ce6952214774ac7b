"""On a GPU: every op on each of its backends and every case by the numerics rule, streams and compilation, whole models."""

import pytest
import torch

import cct_kernels
from cct.models import create_model
from cct_kernels import reference, testing
from cct_kernels.dispatch import TABLE, why_not
from cct_kernels.encoder import Block, encoder
from cct_kernels.testing import compare, make_inputs, poisoned_memory, run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
DTYPES = [torch.bfloat16, torch.float32, torch.float16]
PAIRS = [
    pytest.param(case, backend, id=f"{case}-{backend}")
    for (op, device), backends in TABLE.items()
    if device == "cuda"
    for backend in backends
    if backend != "reference"
    for case in testing.cases(op)
]
LAST = [
    pytest.param(case, backend, id=f"{case}-{backend}")
    for case, backend in {(p.values[0].op, p.values[1]): p.values for p in PAIRS}.values()
]


@pytest.fixture(autouse=True)
def full_precision(monkeypatch):
    """PyTorch's own float32 convolutions would use tf32, and widen the rule."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def need(op, backend, dtype):
    if reason := why_not(op, backend, "cuda", dtype):
        pytest.skip(f"{backend}: {reason}")


def on(backend, op):
    return lambda **arguments: getattr(cct_kernels, op)(**arguments, backend=backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize(("case", "backend"), PAIRS)
def test_parity(case, backend, dtype):
    need(case.op, backend, dtype)
    with poisoned_memory():
        compare(case, dtype, on(backend, case.op), "cuda")


@pytest.mark.parametrize(("case", "backend"), LAST)
def test_same_bits_again_and_from_a_compiled_graph(case, backend):
    case = next(c for c in testing.cases(case.op) if c.shapes["x"][0] > 1)
    need(case.op, backend, torch.bfloat16)
    tensors = make_inputs(case, torch.bfloat16, "cuda")
    function = on(backend, case.op)
    dout = torch.randn_like(function(**tensors, **case.options))
    first, again = (run(function, tensors, case.options, dout) for _ in range(2))
    compiled = torch.compile(lambda t: function(**t, **case.options), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(tensors), first["out"])
    assert all(torch.equal(again[name], value) for name, value in first.items())


@pytest.mark.parametrize(("case", "backend"), LAST)
def test_runs_on_the_current_stream_and_the_device_of_x(case, backend):
    need(case.op, backend, torch.float32)
    case = next(c for c in testing.cases(case.op) if c.shapes["x"][0] > 1)
    tensors = make_inputs(case, torch.float32, "cuda")
    expected = on(backend, case.op)(**tensors, **case.options)
    late = {name: torch.zeros_like(t) for name, t in tensors.items()}
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)  # a kernel on another stream would not wait for the copies behind it
        for name, t in tensors.items():
            late[name].copy_(t)
        out = on(backend, case.op)(**late, **case.options)
    stream.synchronize()
    assert torch.equal(out, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ["cct_2_3x2", "vit_lite_7_4", "cct_7_3x1"])
def test_models_are_no_worse_than_pytorch(name, dtype):
    def results(fused, precision):
        torch.manual_seed(0)
        options = {"attention_dropout": 0.0, "stochastic_depth": 0.0}
        model = create_model(name, fused=fused, **options).cuda().to(precision).train()
        logits = model(x.to(precision))
        return logits, *torch.autograd.grad(
            logits.float().square().sum(), [model.classifier.fc.weight, model.classifier.norm.weight]
        )

    x = torch.randn(4, 3, 32, 32, device="cuda")
    exact, plain, fused = results(False, torch.float64), results(False, dtype), results(True, dtype)
    for what, ours, own, true in zip(("logits", "dfc", "dnorm"), fused, plain, exact, strict=True):
        error, allowed = (value.double() - true for value in (ours, own))  # L2: one element of many may lie farther out
        bound = 2 * allowed.norm() + 4 * torch.finfo(dtype).eps * true.norm()
        assert error.norm() <= bound, f"{what}: {error.norm():.3g} above {bound:.3g}"


ENCODERS = {  # enough rows for two kernels a layer, narrow and odd, and what is random
    "cct_7": ((20, 256, 256, 4, 512, 3), {}),
    "cct_7_train": ((20, 256, 256, 4, 512, 2), {"attn_dropout": 0.1, "dropout": 0.1, "drop_path": True}),
    "cct_2": ((100, 64, 128, 2, 128, 2), {"drop_path": True}),
    "cct_14": ((4, 196, 384, 6, 1152, 2), {"attn_dropout": 0.1}),
    "odd": ((67, 65, 72, 3, 100, 2), {"drop_path": True}),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_is_no_worse_than_pytorch(name, dtype):
    """Output and every gradient of every layer, in the L2 norm."""
    (B, N, C, heads, F, L), options = ENCODERS[name]
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(*shape, scale=1.0, shift=0.0):
        value = shift + scale * torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)
        return value.to(dtype).double()  # the same rounded numbers for all

    def vector(size, shift=0.0):
        return draw(size, scale=0.1, shift=shift)

    x, dout = draw(B, N, C), draw(B, N, C)
    blocks = [
        Block(
            vector(C, 1.0), vector(C), draw(3 * C, C, scale=1.5 * C**-0.5), draw(C, C, scale=C**-0.5), vector(C),
            vector(C, 1.0), vector(C), draw(F, C, scale=C**-0.5), vector(F), draw(C, F, scale=F**-0.5), vector(C),
        )
        for _ in range(L)
    ]  # fmt: skip
    scales = (torch.rand(L, 2, B, generator=generator, device="cuda") > 0.2) * 1.25 if options.get("drop_path") else None
    fixed = {"num_heads": heads, "seed": torch.tensor([1234567890123, 7], device="cuda")}
    fixed |= {name: options.get(name, 0.0) for name in ("attn_dropout", "dropout")}

    def results(function, precision):
        leaves = [t.to(precision).requires_grad_() for t in (x, *(t for block in blocks for t in block))]
        layers = [Block(*leaves[1 + 11 * i : 12 + 11 * i]) for i in range(L)]
        out = function(leaves[0], layers, drop_path_scales=None if scales is None else scales.to(precision), **fixed)
        return out, *torch.autograd.grad(out, leaves, dout.to(precision))

    names = ["out", "dx", *(f"d{name} of layer {i}" for i in range(L) for name in Block._fields)]
    exact, plain = results(reference.encoder, torch.float64), results(reference.encoder, dtype)
    ours = results(lambda *args, **more: encoder(*args, **more, backend="triton"), dtype)
    for what, value, own, true in zip(names, ours, plain, exact, strict=True):
        error, allowed = (value.double() - true).norm(), (own.double() - true).norm()
        bound = 2 * allowed + 4 * torch.finfo(dtype).eps * true.norm()
        assert error <= bound, f"{what}: {error:.3g} above {bound:.3g}"


def test_dropout_masks_are_those_of_the_reference():
    (case,) = (c for c in testing.cases("layernorm_attention") if c.name == "B3_N70_C128_H2_train")
    tensors = make_inputs(case, torch.float32, "cuda")
    ours = cct_kernels.layernorm_attention(**tensors, **case.options)
    plain = reference.layernorm_attention(**{n: t.cpu() for n, t in tensors.items()}, **case.options)
    torch.testing.assert_close(ours.cpu(), plain, rtol=1e-4, atol=1e-4)


def test_training_gives_the_same_bits_with_and_without_graphs(tmp_path, monkeypatch):
    """`cct train` on the digits: augmentation, gradients and update replayed, or launched one by one. 2^-10 is a float32."""
    for needed in ("yaml", "safetensors", "sklearn"):  # a machine with a GPU may have PyTorch alone
        pytest.importorskip(needed)
    from cct.cli import main
    from cct.models.checkpoints import load_checkpoint

    flags = "--epochs 2 --device cuda --amp bf16 --sched constant --warmup-epochs 0 --lr 0.0009765625 --clip-grad 1 --model-ema"
    flags += " --aa rand-m9-mstd0.5-inc1 --mixup 0.8 --reprob 0.25"
    weights = []
    for graphs in ("1", "0"):
        monkeypatch.setenv("CCT_CUDA_GRAPH", graphs)
        assert main(["train", *flags.split(), "--output", str(tmp_path / graphs)]) == 0
        weights.append(load_checkpoint(tmp_path / graphs / "last.safetensors")[0])
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_augmentation_gives_the_bits_of_the_cpu():
    """An epoch of images and mixed targets, drawn by (seed, epoch, index), on both devices."""
    from cct.data import Augment, batches
    from cct.data.dataset import Split

    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, 10, (24,), generator=generator)
    augment = Augment(scale=(0.5, 1.0), aa="rand-m9-mstd0.5-inc1", reprob=0.5, mixup=0.8, cutmix=1.0, smoothing=0.1)
    found = []
    for device in ("cpu", "cuda"):
        options = {"batch_size": 8, "seed": 1, "epoch": 2, "augment": augment, "num_classes": 10, "device": device}
        split = Split(images, labels)
        found.append([t.cpu() for pair in batches.epoch(split, mean=(0.5,) * 3, std=(0.25,) * 3, **options) for t in pair])
    assert len(found[0]) == 6 and all(torch.equal(a, b) for a, b in zip(*found, strict=True))
