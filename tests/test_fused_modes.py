"""A fused model under the modes of PyTorch: the same numbers, and the gradients that are asked for, no others."""

import copy
import os
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import forward_ad
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils._python_dispatch import TorchDispatchMode

import cct_kernels
from cct.models import CCT, CVT, ViTLite
from cct_kernels.dispatch import machine_why_not
from cct_kernels.testing import assert_no_worse, cases, make_inputs

pytestmark = pytest.mark.skipif(machine_why_not("cpu") is not None, reason=str(machine_why_not("cpu")))

SMALL = {"img_size": 16, "embedding_dim": 40, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1.5, "num_classes": 5}
FAMILIES = {
    "cct": lambda **k: CCT(**SMALL, kernel_size=3, n_conv_layers=2, **k),
    "cvt": lambda **k: CVT(**SMALL, kernel_size=4, **k),
    "vit": lambda **k: ViTLite(**SMALL, kernel_size=4, **k),
}
RATES = {"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0}


def build(family="cct", fused="strict", **kwargs):
    torch.manual_seed(0)
    return FAMILIES[family](fused=fused, **RATES | kwargs)


def images(batch=3):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def gradients(model, x, autocast=False):
    """Logits and every gradient, of x too, by name."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(x)
    F.cross_entropy(out.to(x.dtype), torch.arange(len(x)) % 5).backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "dx": x.grad, **found}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_gradients_keep_the_rule(family, autocast):
    """The rule of cct_kernels.testing for a whole model, in the L2 norm of each gradient, the image's among them."""
    exact = gradients(build(family, fused=False).double(), images().double())
    plain, fused = (gradients(build(family, fused=f), images(), autocast) for f in (False, "strict"))
    assert fused.keys() == plain.keys() == exact.keys()
    for name, value in exact.items():
        ours, own = ((r[name].double() - value).norm() for r in (fused, plain))
        eps = 2**-8 if autocast else 2**-23
        assert ours <= 2 * own + 4 * eps * value.norm(), f"{name}: {ours:.3g}, PyTorch's own {own:.3g}"
        assert fused[name].dtype == plain[name].dtype, name


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("family", FAMILIES)
def test_modes_without_gradients(family, autocast):
    model, x = build(family).eval(), images()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = model(x).detach()
        with torch.no_grad():
            one = model(x)
        with torch.inference_mode():
            two = model(x)
            born_here = build(family).eval()  # its parameters are inference tensors, which count no versions
            three = born_here(x)
            born_here.classifier.blocks[0].linear1.weight.mul_(2)
            changed = born_here(x)
    assert not one.requires_grad and two.is_inference()
    tolerance = 2**-5 if autocast else 1e-5
    for out in (one, two, three):
        torch.testing.assert_close(out, expected, rtol=0, atol=tolerance)
    assert torch.equal(two, three)
    assert not torch.equal(three, changed)
    again = model(x.requires_grad_())  # and gradients after all that
    again.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_one_graph_in_every_mode(mode):
    torch.compiler.reset()
    model, x = build().eval(), images()
    with mode():
        expected = model(x)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler")
def test_inductor_trains_it_in_one_graph():
    torch.compiler.reset()
    model, x = build(), images()
    expected = gradients(model, x, autocast=True)
    model.zero_grad()
    found = gradients(torch.compile(model, fullgraph=True), x, autocast=True)
    found = {name.removeprefix("_orig_mod."): value for name, value in found.items()}
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name] - value).norm() <= 2**-6 * value.norm() + 1e-6, name


class Backwards(TorchDispatchMode):
    """The backward calls of our ops, by name, with their last argument: which weight gradients are wanted."""

    def __init__(self):
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "cct_kernels" and "_backward" in str(func):
            self.calls.setdefault(func.__name__.split(".")[0], []).append(args[-1])
        return func(*args, **(kwargs or {}))


def trained(*names):
    """Backward with only those parameters trainable whose name holds one of `names`: the calls, and the gradients."""
    model = build()
    for name, p in model.named_parameters():
        p.requires_grad_(any(part in name for part in names))
    with Backwards() as seen:
        model(images()).square().sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in model.parameters())
    return seen.calls, {n: p.grad for n, p in model.named_parameters() if p.requires_grad}


def test_frozen_parameters_cost_nothing():
    _, everything = trained("")
    none = [False, False]
    for names, calls in (
        (["classifier.fc"], {"seqpool_backward": 0}),
        (["fc", "attention_pool", "classifier.norm"], {"seqpool_backward": 1}),
        (["blocks.1.norm1", "blocks.1.pre_norm"], {"layernorm_mlp_backward": [none], "layernorm_attention_backward": [none]}),
        (["blocks.1.linear2"], {"layernorm_mlp_backward": [[False, True]]}),
        (["blocks.1.linear1"], {"layernorm_mlp_backward": [[True, False]]}),
        (
            ["blocks.1.self_attn.qkv"],
            {"layernorm_mlp_backward": [none], "layernorm_attention_backward": [[True, False]]},
        ),
        (
            ["blocks.1.self_attn.proj"],
            {"layernorm_mlp_backward": [none], "layernorm_attention_backward": [[False, True]]},
        ),
        (
            ["blocks.1.linear1.bias", "blocks.1.linear2.bias", "blocks.1.self_attn.proj.bias"],
            {"layernorm_mlp_backward": [none], "layernorm_attention_backward": [none]},
        ),
        (
            ["tokenizer"],
            {
                "layernorm_mlp_backward": [none, none],
                "layernorm_attention_backward": [none, none],
                "conv_tokenizer_backward": [[True, True, False], [False, True, False]],
            },
        ),
    ):
        seen, some = trained(*names)
        assert len(seen.pop("seqpool_backward", [])) == calls.pop("seqpool_backward", 1)
        assert {op: [list(c) for c in found] for op, found in seen.items()} == calls
        for name, value in some.items():
            torch.testing.assert_close(value, everything[name], msg=name)


def test_moving_average_of_a_fused_model():
    model, x = build(), images()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for _ in range(3):
        with torch.no_grad():
            average(x)  # packs the weights that the next step changes
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        average.update_parameters(model)
    fresh = build()
    fresh.load_state_dict(average.module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(average.eval()(x), fresh.eval()(x), rtol=0, atol=0)
        assert not torch.equal(average(x), model.eval()(x))


@pytest.mark.parametrize("assign", [False, True])
def test_state_round_trip(assign, tmp_path):
    model, x = build().eval(), images()
    other = build().eval()
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1 * torch.randn_like(p))
        before, expected = model(x), other(x)
        torch.save(other.state_dict(), tmp_path / "state.pt")
        model.load_state_dict(torch.load(tmp_path / "state.pt"), assign=assign)
        assert torch.equal(model(x), expected) and not torch.equal(before, expected)


def test_a_deep_copy_trains_alone():
    model, x = build(), images()
    before = model(x).detach()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), lr=1.0)
    twin(x).square().sum().backward()
    optimizer.step()
    assert torch.equal(model(x), before) and not torch.equal(twin(x), before)
    assert all(p.grad is None for p in model.parameters())


def test_checkpointing_under_autocast():
    plain, again = build(dropout=0.1, attention_dropout=0.2), build(dropout=0.1, attention_dropout=0.2)
    again.set_grad_checkpointing()
    results = []
    for model in (plain, again):
        torch.manual_seed(5)
        results.append(gradients(model, images(), autocast=True))
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name


def test_a_whole_batch_is_the_sum_of_its_parts():
    """Gradients accumulated over two halves, against float64, are no worse than PyTorch's."""

    def accumulated(model, x):
        for half in x.chunk(2):
            F.cross_entropy(model(half), torch.zeros(len(half), dtype=torch.long), reduction="sum").backward()
        return {n: p.grad for n, p in model.named_parameters()}

    exact = accumulated(build(fused=False).double(), images(4).double())
    plain, fused = accumulated(build(fused=False), images(4)), accumulated(build(), images(4))
    name = "classifier.blocks.0.self_attn.qkv.weight"
    assert_no_worse(name, fused[name], plain[name], exact[name], torch.float32)


@pytest.mark.parametrize("family", FAMILIES)
def test_matrices_in_bfloat16_beside_vectors_in_float32(family):
    """As some mixed-precision code has it; under autocast."""

    def mixed(fused, x):
        model = build(family, fused=fused)
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16 if parameter.dim() > 1 else torch.float32)
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        out.float().square().sum().backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x), out.detach(), rtol=2**-6, atol=2**-6)
        return {"out": out.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}

    plain, fused = mixed(False, images()), mixed(True, images())
    assert plain.keys() == fused.keys()
    for name, value in plain.items():
        assert fused[name].dtype == value.dtype, name
        assert (fused[name].float() - value.float()).norm() <= 2**-3 * value.float().norm() + 1e-3, name


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("op", ["conv_tokenizer", "layernorm_attention", "layernorm_mlp", "seqpool", "encoder", "model"])
def test_forward_mode_is_refused_and_not_zero(op, grad):
    """By PyTorch itself, with and without the gradients of backward mode."""
    if op == "model":
        call, x = build().eval(), images()
    elif op == "encoder":
        blocks = [[torch.ones(8), torch.zeros(8), torch.ones(24, 8), torch.ones(8, 8), torch.zeros(8)]]
        blocks[0] += [torch.ones(8), torch.zeros(8), torch.ones(9, 8), torch.zeros(9), torch.ones(8, 9), torch.zeros(8)]
        call, x = (lambda x: cct_kernels.encoder(x, blocks, num_heads=2)), torch.randn(1, 4, 8)
    else:
        case = cases(op)[1]
        tensors = make_inputs(case, torch.float32)
        x = tensors.pop("x")
        call = lambda x: getattr(cct_kernels, op)(x, **tensors, **case.options)  # noqa: E731
    with torch.set_grad_enabled(grad):
        with pytest.raises(RuntimeError, match=r"autograd.Function with functorch transforms"):
            torch.func.jvp(call, (x,), (torch.ones_like(x),))
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="forward mode AD"):
            call(forward_ad.make_dual(x, torch.ones_like(x)))


@pytest.mark.parametrize("op", ["conv_tokenizer", "layernorm_attention", "layernorm_mlp", "seqpool"])
def test_second_derivatives_are_refused_and_not_zero(op):
    case = cases(op)[1]
    tensors = {name: t.requires_grad_() for name, t in make_inputs(case, torch.float32).items()}
    for backend in ("reference", "cpu"):
        out = getattr(cct_kernels, op)(**tensors, **case.options, backend=backend)
        if backend == "cpu":
            with pytest.raises(RuntimeError, match=f"{op}: the kernels have no second derivative; use backend='reference'"):
                torch.autograd.grad(out.square().sum(), tensors["x"], create_graph=True)
        else:
            (dx,) = torch.autograd.grad(out.square().sum(), tensors["x"], create_graph=True)
            assert torch.autograd.grad(dx.square().sum(), tensors["x"])[0].abs().max() > 0
