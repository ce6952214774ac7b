"""SeqPool on every backend that runs here, by the numerics rule, and its contract."""

import pytest
import torch

from cct_kernels import BackendError, reference, seqpool
from cct_kernels.dispatch import BACKENDS, DTYPES, TABLE, why_not
from cct_kernels.testing import cases, compare, make_inputs, poisoned_memory

CASES = cases("seqpool")
PAIRS = [(device, backend) for (op, device), backends in TABLE.items() if op == "seqpool" for backend in backends]
NATIVE = torch.ops.cct_kernels


def need(device, backend, dtype):
    reason = why_not("seqpool", backend, device, dtype)
    if reason:
        pytest.skip(f"{backend}: {reason}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize(("device", "backend"), [p for p in PAIRS if p[1] != "reference"], ids=lambda p: p)
def test_parity(device, backend, case, dtype):
    need(device, backend, dtype)
    with poisoned_memory():
        compare(case, dtype, lambda **kw: seqpool(**kw, backend=backend), device)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity_at_each_instruction_set(isa, threads, case, dtype):
    with poisoned_memory():
        compare(case, dtype, lambda **kw: seqpool(**kw, backend="cpu"))


def test_reference_gradients():
    tensors = {n: t.requires_grad_() for n, t in make_inputs(CASES[6], torch.float64).items()}
    assert torch.autograd.gradcheck(
        lambda *a: reference.seqpool(a[0], a[1], a[2], norm_weight=a[3], norm_bias=a[4]), list(tensors.values())
    )


def test_reference_by_hand():
    """Two tokens (1, 0) and (0, 1), scores log 3 and 0: weights 3/4 and 1/4."""
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    weight = torch.tensor([[1.0, 0.0]]) * torch.log(torch.tensor(3.0))
    for backend in ("reference", None):
        torch.testing.assert_close(seqpool(x, weight, torch.tensor([5.0]), backend=backend), torch.tensor([[0.75, 0.25]]))


def test_bias_is_inert():
    t = make_inputs(CASES[1], torch.float32)
    bias = t.pop("bias").requires_grad_()
    out = seqpool(**t, bias=bias)
    torch.testing.assert_close(out, seqpool(**t))
    (dbias,) = torch.autograd.grad(out.sum(), bias)
    assert torch.equal(dbias, torch.zeros(1))


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "offset"])
def test_non_contiguous(layout):
    need("cpu", "cpu", torch.float32)
    t = make_inputs(CASES[1], torch.float32)
    x = t["x"]
    views = {
        "transposed": x.transpose(1, 2).contiguous().transpose(1, 2),
        "strided": torch.stack([x, x + 1], -1)[..., 0],
        "expanded": x[:1].expand_as(x),
        "offset": torch.cat([x.flatten(), x.flatten()])[3:][: x.numel()].view_as(x),
    }
    t["x"] = views[layout].detach()
    t["norm_weight"] = torch.stack([t["norm_weight"]] * 2, 1)[:, 0]
    torch.testing.assert_close(seqpool(**t, backend="cpu"), reference.seqpool(**t), rtol=1e-5, atol=1e-6)


def test_large_scores_do_not_overflow():
    t = make_inputs(CASES[1], torch.float32)
    t["weight"] = t["weight"] * 1e4
    torch.testing.assert_close(seqpool(**t), reference.seqpool(**t), rtol=1e-4, atol=1e-4)


def test_nan_reaches_the_output():
    t = make_inputs(CASES[1], torch.float32)
    t["x"][1, 5, 3] = float("nan")
    out = seqpool(**t)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


def test_same_result_from_run_to_run():
    t = make_inputs(CASES[2], torch.float32)
    t = {n: v.requires_grad_() for n, v in t.items()}
    runs = [torch.autograd.grad(seqpool(**t).square().sum(), list(t.values())) for _ in range(3)]
    assert all(torch.equal(a, b) for other in runs[1:] for a, b in zip(runs[0], other, strict=True))


def test_opcheck():
    need("cpu", "cpu", torch.float32)
    for case in (CASES[0], CASES[7], CASES[8]):
        t = make_inputs(case, torch.float32)
        args = (t["x"], t["weight"], t.get("norm_weight"), t.get("norm_bias"))
        torch.library.opcheck(NATIVE.seqpool_forward.default, (*args, 1e-5))
        out, *saved = NATIVE.seqpool_forward(*args, 1e-5)
        torch.library.opcheck(NATIVE.seqpool_backward.default, (torch.randn_like(out), *args, *saved))


def test_compiles_without_a_graph_break():
    t = {n: v.requires_grad_() for n, v in make_inputs(CASES[1], torch.float32).items()}
    compiled = torch.compile(lambda t: seqpool(**t), fullgraph=True, backend="aot_eager")
    eager, traced = seqpool(**t), compiled(t)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(o.sum(), list(t.values())) for o in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


def test_autocast_and_inference_mode():
    t = make_inputs(CASES[1], torch.float32)
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        out = seqpool(**t)
        mixed = seqpool(t["x"].bfloat16(), *list(t.values())[1:3])
    torch.testing.assert_close(out, reference.seqpool(**t), rtol=1e-5, atol=1e-6)
    assert mixed.dtype == torch.bfloat16


BAD = [
    ({"x": torch.zeros(4, 8)}, r"seqpool: x has shape \(4, 8\); expected 3 dimensions"),
    ({"x": torch.zeros(2, 0, 8)}, r"seqpool: x has shape \(2, 0, 8\); expected at least one token"),
    ({"x": torch.zeros(2, 3, 8, dtype=torch.int64)}, "seqpool: x has dtype torch.int64; expected a floating-point"),
    ({"x": [[1.0]]}, "seqpool: x is list; expected a tensor"),
    ({"x": torch.zeros(2, 3, 8).to_sparse()}, "seqpool: x has layout"),
    ({"weight": torch.zeros(3, 8)}, r"seqpool: weight has shape \(3, 8\); expected \(1, 8\)"),
    ({"weight": torch.zeros(1, 8, dtype=torch.float64)}, "seqpool: weight has dtype torch.float64; expected torch.float32"),
    ({"weight": torch.zeros(1, 8, device="meta")}, "seqpool: weight is on meta; expected cpu"),
    ({"bias": torch.zeros(2)}, r"seqpool: bias has shape \(2,\); expected \(1,\)"),
    ({"norm_weight": torch.zeros(7)}, r"seqpool: norm_weight has shape \(7,\); expected \(8,\)"),
    ({"norm_bias": torch.zeros(8)}, "seqpool: norm_bias is given; expected norm_weight"),
    ({"eps": -1.0}, "seqpool: eps is -1.0; expected a positive number"),
    ({"backend": "fastest"}, "seqpool: backend is 'fastest'; expected None"),
    ({"backend": "triton"}, "seqpool: backend 'triton' does not run on cpu tensors"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:60] for _, m in BAD])
def test_bad_input(change, message):
    good = {"x": torch.zeros(2, 3, 8), "weight": torch.zeros(1, 8)}
    with pytest.raises(ValueError, match=message):
        seqpool(**(good | change))


def test_native_op_checks_what_it_indexes_by():
    need("cpu", "cpu", torch.float32)
    x, weight = torch.zeros(2, 3, 8), torch.zeros(1, 8)
    out, lse, mean, rstd = NATIVE.seqpool_forward(x, weight, None, None, 1e-5)
    with pytest.raises(ValueError, match="weight has shape"):
        NATIVE.seqpool_forward(x, torch.zeros(1, 4), None, None, 1e-5)
    with pytest.raises(ValueError, match="lse has shape"):
        NATIVE.seqpool_backward(out, x, weight, None, None, lse[:1], mean, rstd)
    with pytest.raises(ValueError, match="rstd has shape"):
        NATIVE.seqpool_backward(out, x, weight, torch.zeros(8), None, lse, torch.zeros(2, 3), rstd)
    with pytest.raises(ValueError, match="dtype"):
        NATIVE.seqpool_forward(x.double(), weight.double(), None, None, 1e-5)


def test_a_named_backend_never_falls_back():
    x, weight = torch.zeros(2, 3, 8, dtype=torch.float64), torch.zeros(1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match="backend 'cpu' does not compute in float64; it does in float32, bfloat16"):
        seqpool(x, weight, backend="cpu")
    with pytest.raises(BackendError, match="no fused backend runs here"):
        seqpool(x, weight, backend="fused")
    assert seqpool(x, weight).dtype == torch.float64  # None may take plain PyTorch
    assert set(BACKENDS) >= {backend for _, backend in PAIRS}


@pytest.mark.parametrize(("device", "backend"), [p for p in PAIRS if p[1] != "reference"], ids=lambda p: p)
def test_a_score_of_minus_infinity_counts_nothing(device, backend):
    """One that overflows: of the first token, and of one among many."""
    need(device, backend, torch.float32)
    weight = torch.tensor([[-1e10, 0.0]])
    for at in (0, 200):
        x = torch.randn(2, 300, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-9, 1.0])
        x[:, at, 0] = 1e30
        out = seqpool(x.to(device), weight.to(device), backend=backend).cpu()
        torch.testing.assert_close(out, seqpool(x, weight, backend="reference"))
        assert out.isfinite().all()


def test_backward_does_not_depend_on_the_rounding_of_the_sum():
    """A log-sum-exp that is a little off is off for all weights of an image alike: it is taken out of the gradients."""
    need("cpu", "cpu", torch.float32)
    case = next(case for case in CASES if "norm_weight" in make_inputs(case, torch.float32))
    tensors = make_inputs(case, torch.float32)
    x, weight, norm = tensors["x"], tensors["weight"], (tensors["norm_weight"], tensors.get("norm_bias"))
    out, lse, mean, rstd = NATIVE.seqpool_forward(x, weight, *norm, 1e-5)
    exact, off = (NATIVE.seqpool_backward(out, x, weight, *norm, lse + error, mean, rstd) for error in (0.0, 1e-3))
    for a, b in zip(exact, off, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * a.abs().max().item() if a.numel() else 0.0)
