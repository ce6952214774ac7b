"""LayerNorm + attention on every backend that runs here, by the numerics rule, and its contract."""

import subprocess
import sys

import pytest
import torch

from cct_kernels import layernorm_attention, reference
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import attention_case, cases, compare, make_inputs, poisoned_memory, run

# More keys than the CPU's backward keeps at a time; for the interpreted GPU kernels it would take minutes.
LONG = attention_case("B3_N600_C24_H2_mask_train", "long, masked: whole, half, nothing", 3, 600, 24, 2, 0.2, 0.1, mask=True)
CASES = {case.name: case for case in [*cases("layernorm_attention"), LONG]}
NATIVE = torch.ops.cct_kernels


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", CASES)
def test_parity_at_each_instruction_set(isa, threads, name, dtype):
    with poisoned_memory():
        compare(CASES[name], dtype, lambda **kw: layernorm_attention(**kw, backend="cpu"))


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_images_that_threads_divide_in_backward(number, dtype, set_threads):
    """With two threads the last of three images, with more all of them; the last is masked as a whole."""
    set_threads(number)
    case = attention_case("divided", "odd batch", 3, 64, 256, 4, 0.1, 0.1, mask=True, drop_path=True, qkv_bias=True)
    with poisoned_memory():
        compare(case, dtype, lambda **kw: layernorm_attention(**kw, backend="cpu"))


@pytest.mark.parametrize("name", ["B2_N7_C12_H3", "B3_N40_C96_H2_mask_train"])
def test_reference_gradients(name):
    case = CASES[name]
    small = {n: t[:1, :5] if n in ("x", "mask") else t for n, t in make_inputs(case, torch.float64).items()}
    leaves = {n: t.requires_grad_() for n, t in small.items() if t.is_floating_point()}
    fixed = {n: t for n, t in small.items() if not t.is_floating_point()} | case.options

    def call(*values):
        return reference.layernorm_attention(**dict(zip(leaves, values, strict=True)), **fixed)

    assert torch.autograd.gradcheck(call, list(leaves.values()), fast_mode=True)


def test_matches_scaled_dot_product_attention():
    """The reference against PyTorch's own attention, put together by hand."""
    t = {n: v.double() for n, v in make_inputs(CASES["B3_N64_C128_H2"], torch.float32).items()}
    y = torch.nn.functional.layer_norm(t["x"], (128,), t["norm_weight"], t["norm_bias"])
    q, k, v = (y @ w.T for w in t["qkv_weight"].chunk(3))
    split = [z.view(3, 64, 2, 64).transpose(1, 2) for z in (q, k, v)]
    heads = torch.nn.functional.scaled_dot_product_attention(*split).transpose(1, 2).reshape(3, 64, 128)
    exact = t["x"] + heads @ t["proj_weight"].T + t["proj_bias"]
    torch.testing.assert_close(reference.layernorm_attention(**t, num_heads=2), exact)


def test_masked_tokens_do_not_reach_valid_ones():
    t = make_inputs(CASES["B3_N34_C128_H2_mask"], torch.float32)
    t["mask"] = torch.arange(34).expand(3, 34) < torch.tensor([[34], [20], [5]])
    other = t | {"x": torch.where(t["mask"][..., None], t["x"], torch.full_like(t["x"], 7.0))}
    a, b = layernorm_attention(**t, num_heads=2), layernorm_attention(**other, num_heads=2)
    torch.testing.assert_close(a[t["mask"]], b[t["mask"]])
    assert not torch.allclose(a[~t["mask"]], b[~t["mask"]])


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
def test_a_masked_score_may_be_anything(isa, dtype):
    """A masked key far ahead of the valid ones, for which no gradient ever limits it: its weight is 0, not infinity times 0."""
    t = make_inputs(CASES["B3_N34_C128_H2_mask"], torch.float32)
    t["mask"] = torch.arange(34).expand(3, 34) < torch.tensor([[34], [20], [5]])
    t["qkv_weight"][:256] *= 40  # scores in the hundreds
    t = {n: v if n == "mask" else v.to(dtype) for n, v in t.items()}
    found = run(layernorm_attention, t, {"num_heads": 2}, torch.ones(3, 34, 128, dtype=dtype))
    expected = run(reference.layernorm_attention, t, {"num_heads": 2}, torch.ones(3, 34, 128, dtype=dtype))
    assert all(value.isfinite().all() for value in expected.values())
    for name, value in found.items():
        assert value.isfinite().all(), name
    if dtype == torch.float32:
        torch.testing.assert_close(found["dx"], expected["dx"], rtol=1e-2, atol=1e-2 * expected["dx"].abs().max().item())


def test_memory_of_backward_grows_with_the_tokens():
    """Not with their square: 16384 tokens would take 1.3 GB of scratch."""
    code = """
import resource, torch
from cct_kernels import layernorm_attention
torch.set_num_threads(1)
def step(n):
    x = torch.randn(1, n, 16, requires_grad=True)
    w = [torch.ones(16), torch.zeros(16), torch.randn(48, 16, requires_grad=True), torch.randn(16, 16), torch.zeros(16)]
    layernorm_attention(x, *w, num_heads=1).sum().backward()
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(16384)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 300_000  # KiB


def test_autocast_computes_in_bfloat16_and_keeps_the_stream(least_bfloat16_error):
    t = make_inputs(CASES["B2_N256_C256_H4"], torch.float32)
    exact = reference.layernorm_attention(**{n: v.double() for n, v in t.items()}, num_heads=4)
    with torch.autocast("cpu", torch.bfloat16):
        out, eager = layernorm_attention(**t, num_heads=4), reference.layernorm_attention(**t, num_heads=4)
    assert out.dtype == torch.float32
    error, allowed = ((v.double() - exact).abs().max() for v in (out, eager))
    assert least_bfloat16_error < error <= 2 * allowed


def test_nothing_is_kept_without_gradients():
    t = make_inputs(CASES["B3_N64_C128_H2"], torch.float32)
    args = (*list(t.values()), 2, None, None, 0.0, 0.0, None, None, 1e-5, torch.float32)
    assert sum(s.numel() for s in NATIVE.layernorm_attention_forward(*args, False)[1:]) == 0
    torch.testing.assert_close(
        NATIVE.layernorm_attention_forward(*args, True)[0], NATIVE.layernorm_attention_forward(*args, False)[0]
    )


def test_gradients_only_where_wanted():
    t = make_inputs(CASES["B3_N64_C128_H2"], torch.float32)
    t["x"].requires_grad_()
    layernorm_attention(**t, num_heads=2).square().sum().backward()
    full = {n: v.detach().clone().requires_grad_() for n, v in t.items()}
    layernorm_attention(**full, num_heads=2).square().sum().backward()
    torch.testing.assert_close(t["x"].grad, full["x"].grad)
    assert t["qkv_weight"].grad is None and full["qkv_weight"].grad is not None


def test_same_result_from_run_to_run():
    case = CASES["B3_N70_C128_H2_train"]
    t, dout = make_inputs(case, torch.float32), torch.randn(3, 70, 128)
    runs = [run(layernorm_attention, t, case.options, dout) for _ in range(2)]
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


def test_fresh_masks_from_the_generator():
    t = make_inputs(CASES["B3_N64_C128_H2"], torch.float32)
    torch.manual_seed(5)
    first, second = (layernorm_attention(**t, num_heads=2, attn_dropout=0.5) for _ in range(2))
    torch.manual_seed(5)
    assert torch.equal(first, layernorm_attention(**t, num_heads=2, attn_dropout=0.5))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("dtype", "compute"), [(torch.float32, torch.float32), (torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)]
)
def test_opcheck(dtype, compute):
    for name in ("B3_N64_C128_H2", "B2_N33_C300_H4", "B0_N64_C128_H2"):
        t = make_inputs(CASES[name], dtype)
        args = (*list(t.values()), 2, None, None, 0.0, 0.0, None, None, 1e-5, compute)
        torch.library.opcheck(NATIVE.layernorm_attention_forward.default, (*args, True))
        out, *saved, kept_x = NATIVE.layernorm_attention_forward(*args, True)
        if kept_x.numel():
            args = (kept_x, *args[1:])
        for wanted in ([True, True], [True, False], [False, True]):
            torch.library.opcheck(NATIVE.layernorm_attention_backward.default, (torch.randn_like(out), *args, *saved, wanted))


def test_compiles_without_a_graph_break():
    t = {n: v.requires_grad_() for n, v in make_inputs(CASES["B3_N64_C128_H2"], torch.float32).items()}
    compiled = torch.compile(lambda t: layernorm_attention(**t, num_heads=2), fullgraph=True, backend="aot_eager")
    eager, traced = layernorm_attention(**t, num_heads=2), compiled(t)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(o.sum(), list(t.values())) for o in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


GOOD = {
    "x": torch.zeros(2, 3, 8),
    "norm_weight": torch.ones(8),
    "norm_bias": torch.zeros(8),
    "qkv_weight": torch.zeros(24, 8),
    "proj_weight": torch.zeros(8, 8),
    "proj_bias": torch.zeros(8),
    "num_heads": 2,
}
BAD = [
    ({"x": torch.zeros(3, 8)}, r"layernorm_attention: x has shape \(3, 8\); expected 3 dimensions"),
    ({"x": torch.zeros(2, 0, 8)}, r"layernorm_attention: x has shape \(2, 0, 8\); expected at least one token"),
    ({"num_heads": 3}, "layernorm_attention: num_heads is 3; expected a divisor of 8"),
    ({"num_heads": 0}, "layernorm_attention: num_heads is 0; expected an int of at least 1"),
    ({"qkv_weight": torch.zeros(8, 24)}, r"layernorm_attention: qkv_weight has shape \(8, 24\); expected \(24, 8\)"),
    ({"qkv_bias": torch.zeros(8)}, r"layernorm_attention: qkv_bias has shape \(8,\); expected \(24,\)"),
    ({"proj_weight": torch.zeros(8, 4)}, r"layernorm_attention: proj_weight has shape \(8, 4\); expected \(8, 8\)"),
    ({"proj_bias": torch.zeros(3)}, r"layernorm_attention: proj_bias has shape \(3,\); expected \(8,\)"),
    ({"mask": torch.ones(2, 3)}, "layernorm_attention: mask is torch.float32; expected a torch.bool tensor"),
    ({"mask": torch.ones(2, 4, dtype=torch.bool)}, r"layernorm_attention: mask has shape \(2, 4\); expected \(2, 3\)"),
    ({"attn_dropout": -0.1}, "layernorm_attention: attn_dropout is -0.1; expected a number p"),
    ({"dropout": 1.5}, "layernorm_attention: dropout is 1.5; expected a number p"),
    ({"drop_path_scale": torch.ones(3)}, r"layernorm_attention: drop_path_scale has shape \(3,\); expected \(2,\)"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:60] for _, m in BAD])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        layernorm_attention(**(GOOD | change))


def test_native_op_checks_what_it_indexes_by():
    good = [*GOOD.values(), None, None, 0.1, 0.0, None, torch.tensor([1, 2]), 1e-5, torch.float32]
    wrong = {
        0: torch.zeros(2, 8),
        3: torch.zeros(24, 3),
        4: torch.zeros(4, 8),
        6: 3,
        8: torch.ones(2, 5).bool(),
        11: torch.ones(5),
    }
    for index, value in wrong.items():
        with pytest.raises(ValueError, match="expected"):
            NATIVE.layernorm_attention_forward(*good[:index], value, *good[index + 1 :], True)
    out, *saved, _ = NATIVE.layernorm_attention_forward(*good, True)
    for index in range(len(saved)):
        broken = [s[:1] if i == index else s for i, s in enumerate(saved)]
        with pytest.raises(ValueError, match="expected"):
            NATIVE.layernorm_attention_backward(out, *good, *broken, [True, True])
