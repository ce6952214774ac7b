"""LayerNorm + MLP on every backend that runs here, by the numerics rule, and its contract."""

import pytest
import torch

from cct_kernels import layernorm_mlp, reference
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import cases, compare, make_inputs, mlp_case, poisoned_memory, run

CASES = cases("layernorm_mlp")
NATIVE = torch.ops.cct_kernels


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_parity_at_each_instruction_set(isa, threads, case, dtype):
    with poisoned_memory():
        compare(case, dtype, lambda **kw: layernorm_mlp(**kw, backend="cpu"))


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
def test_a_share_of_more_rows_than_pass_by_a_weight_at_a_time(isa, dtype, set_threads):
    """Of one thread's 1,100 rows a slice has 272 or 288; 256 are the most of a pass."""
    set_threads(1)
    compare(mlp_case("1100 rows", "several passes", 5, 220, 33, 70), dtype, lambda **kw: layernorm_mlp(**kw, backend="cpu"))


def test_reference_gradients():
    t = make_inputs(CASES[4], torch.float64)
    assert torch.autograd.gradcheck(
        lambda *a: reference.layernorm_mlp(*a), [v.requires_grad_() for v in t.values()], fast_mode=True
    )


def test_reference_by_hand():
    """x = (1, -1): LN gives itself (up to eps); fc1 = identity, fc2 = identity: y + gelu(y)."""
    x, eye = torch.tensor([[[1.0, -1.0]]]), torch.eye(2)
    out = layernorm_mlp(x, torch.ones(2), torch.zeros(2), eye, torch.zeros(2), eye, torch.zeros(2))
    torch.testing.assert_close(out, torch.tensor([[[1.8413, -1.1587]]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
def test_units_that_are_off_give_and_get_nothing(isa, dtype):
    t = {n: v.to(dtype) for n, v in make_inputs(CASES[1], torch.float32).items()}
    t["fc1_bias"] = torch.full_like(t["fc1_bias"], -30.0)
    found = run(layernorm_mlp, t, {}, torch.ones_like(t["x"]))
    for name in ("dfc1_weight", "dfc1_bias", "dfc2_weight"):
        assert found[name].abs().max() < 1e-30, name


def test_an_infinite_hidden_unit_stays_infinite(isa):
    t = make_inputs(CASES[1], torch.float32)
    t["fc1_bias"][0], t["fc2_weight"][:, 0] = torch.inf, 1.0
    assert (layernorm_mlp(**t) == torch.inf).all()


def test_autocast_to_float16_says_what_the_kernel_gives():
    """The CPU kernels multiply in bfloat16 or float32 only; traced and run, the results have one dtype."""
    t = make_inputs(CASES[1], torch.float32)
    with torch.autocast("cpu", torch.float16):
        args = (*t.values(), 0.0, None, None, 1e-5, torch.float16, True)  # in the order of the schema
        torch.library.opcheck(NATIVE.layernorm_mlp_forward.default, args)


def test_autocast_computes_in_bfloat16_and_keeps_the_stream(least_bfloat16_error):
    t = make_inputs(CASES[0], torch.float32)
    exact = reference.layernorm_mlp(**{n: v.double() for n, v in t.items()})
    with torch.autocast("cpu", torch.bfloat16):
        out, eager = layernorm_mlp(**t), reference.layernorm_mlp(**t)
    assert out.dtype == torch.float32
    error, allowed = ((v.double() - exact).abs().max() for v in (out, eager))
    assert least_bfloat16_error < error <= 2 * allowed


def test_gradients_only_where_wanted():
    t = make_inputs(CASES[1], torch.float32)
    t["x"].requires_grad_()
    (layernorm_mlp(**t) * 2).sum().backward()
    frozen = t["x"].grad.clone()
    full = {n: v.detach().clone().requires_grad_() for n, v in t.items()}
    (layernorm_mlp(**full) * 2).sum().backward()
    torch.testing.assert_close(frozen, full["x"].grad)
    assert t["fc1_weight"].grad is None and full["fc1_weight"].grad is not None


def test_dropout_rate_and_fresh_masks():
    t = make_inputs(CASES[1], torch.float32)
    t["fc2_weight"], t["fc1_bias"] = torch.zeros_like(t["fc2_weight"]), torch.zeros_like(t["fc1_bias"])
    t["fc2_bias"] = torch.ones_like(t["fc2_bias"])  # the output mask alone is left
    torch.manual_seed(3)
    y = layernorm_mlp(**t) - 1
    first, second = (layernorm_mlp(**t, dropout=0.25) - y for _ in range(2))
    torch.manual_seed(3)
    again = layernorm_mlp(**t, dropout=0.25) - y
    kept = first > 0.5
    assert 0.74 < kept.float().mean() < 0.76
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 4 / 3), rtol=1e-5, atol=1e-5)
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_same_result_from_run_to_run():
    t = make_inputs(CASES[6], torch.float32)
    dout = torch.randn(4, 17, 64)
    runs = [run(layernorm_mlp, t, {"dropout": 0.3}, dout) for _ in range(2)]
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
def test_opcheck(compute):
    for case in (CASES[1], CASES[8]):
        args = (*make_inputs(case, torch.float32).values(), 0.0, None, None, 1e-5, compute)
        nothing = NATIVE.layernorm_mlp_forward(*args, False)[1:]  # is kept for a backward that does not come
        assert sum(kept.numel() for kept in nothing) == 0
        torch.library.opcheck(NATIVE.layernorm_mlp_forward.default, (*args, True))
        out, *saved, kept_x = NATIVE.layernorm_mlp_forward(*args, True)
        if kept_x.numel():
            args = (kept_x, *args[1:])
        for wanted in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(NATIVE.layernorm_mlp_backward.default, (torch.randn_like(out), *args, *saved, wanted))


def test_compiles_without_a_graph_break():
    t = {n: v.requires_grad_() for n, v in make_inputs(CASES[1], torch.float32).items()}
    compiled = torch.compile(lambda t: layernorm_mlp(**t), fullgraph=True, backend="aot_eager")
    eager, traced = layernorm_mlp(**t), compiled(t)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(o.sum(), list(t.values())) for o in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


GOOD = {
    "x": torch.zeros(2, 3, 8),
    "norm_weight": torch.ones(8),
    "norm_bias": torch.zeros(8),
    "fc1_weight": torch.zeros(16, 8),
    "fc1_bias": torch.zeros(16),
    "fc2_weight": torch.zeros(8, 16),
    "fc2_bias": torch.zeros(8),
}
BAD = [
    ({"x": torch.zeros(3, 8)}, r"layernorm_mlp: x has shape \(3, 8\); expected 3 dimensions"),
    ({"norm_weight": torch.ones(4)}, r"layernorm_mlp: norm_weight has shape \(4,\); expected \(8,\)"),
    ({"fc1_weight": torch.zeros(16, 4)}, r"layernorm_mlp: fc1_weight has shape \(16, 4\); expected \(16, 8\)"),
    ({"fc1_bias": torch.zeros(8)}, r"layernorm_mlp: fc1_bias has shape \(8,\); expected \(16,\)"),
    ({"fc2_weight": torch.zeros(16, 8)}, r"layernorm_mlp: fc2_weight has shape \(16, 8\); expected \(8, 16\)"),
    ({"fc2_bias": torch.zeros(8).double()}, "layernorm_mlp: fc2_bias has dtype torch.float64; expected torch.float32"),
    ({"dropout": 1.0}, "layernorm_mlp: dropout is 1.0; expected a number p with 0 <= p < 1"),
    ({"drop_path_scale": torch.ones(3)}, r"layernorm_mlp: drop_path_scale has shape \(3,\); expected \(2,\)"),
    ({"seed": torch.zeros(2)}, "layernorm_mlp: seed is torch.float32"),
    ({"eps": 0}, "layernorm_mlp: eps is 0; expected a positive number"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:60] for _, m in BAD])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        layernorm_mlp(**(GOOD | change))


def test_native_op_checks_what_it_indexes_by():
    good = [*GOOD.values(), 0.0, None, None, 1e-5, torch.float32]
    out, mean, rstd, hidden, _ = NATIVE.layernorm_mlp_forward(*good, True)
    for index, wrong in (
        (0, torch.zeros(2, 8)),
        (1, torch.zeros(3)),
        (3, torch.zeros(16, 3)),
        (5, torch.zeros(16, 8)),
        (8, torch.ones(5)),
    ):
        with pytest.raises(ValueError, match="expected"):
            NATIVE.layernorm_mlp_forward(*good[:index], wrong, *good[index + 1 :], True)
    with pytest.raises(ValueError, match="mean has shape"):
        NATIVE.layernorm_mlp_backward(out, *good, mean[:1], rstd, hidden, [True, True])
    with pytest.raises(ValueError, match="hidden has shape"):
        NATIVE.layernorm_mlp_backward(out, *good, mean, rstd, hidden[:, :1], [True, True])
    with pytest.raises(ValueError, match="seed is missing"):
        NATIVE.layernorm_mlp_forward(*good[:7], 0.5, *good[8:], True)
