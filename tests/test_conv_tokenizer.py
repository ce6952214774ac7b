"""Convolution, ReLU and pooling as tokens on every backend that runs here, by the numerics rule, and its contract."""

import math

import pytest
import torch

from cct_kernels import conv_tokenizer, reference
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import assert_no_worse, cases, compare, make_inputs, poisoned_memory, run

CASES = {case.name: case for case in cases("conv_tokenizer")}
STAGE = CASES["B3_64x16x16_C128_k3"]
ODD = CASES["B2_5x19x23_C70_k5x3"]
TILES = CASES["B2_48x7x9_C70_k3"]
NATIVE = torch.ops.cct_kernels
F32 = torch.float32


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", CASES.values(), ids=lambda c: c.name)
def test_parity_at_each_instruction_set(isa, threads, case, dtype):
    with poisoned_memory():
        compare(case, dtype, lambda **kw: conv_tokenizer(**kw, backend="cpu"))


def compare_tensors(t, **options):
    """The numerics rule on the tensors `t`, all of one dtype, where there is no case of these sizes."""
    dout = torch.randn_like(reference.conv_tokenizer(**t, **options))
    exact = run(reference.conv_tokenizer, {n: v.double() for n, v in t.items()}, options, dout.double())
    plain, ours = (run(op, t, options, dout) for op in (reference.conv_tokenizer, conv_tokenizer))
    for name, value in ours.items():
        assert_no_worse(name, value, plain[name], exact[name], dout.dtype)


def grid(*shape):
    """Small whole numbers: every sum of products is exact, in tiles too, and no rounding chooses another winner of a window."""
    return torch.randint(-4, 5, shape).float()


@pytest.mark.parametrize("case", [ODD, TILES], ids=lambda c: c.name)
@pytest.mark.parametrize("B", [1, 2, 3, 5])
def test_shares_of_an_image_meet(threads, B, case):
    """Few images are divided among the threads; neighbouring bands and parts share rows."""
    t = {name: grid(*shape) for name, shape in case.shapes.items()}
    t["x"] = grid(B, *t["x"].shape[1:])
    compare_tensors(t, **case.options)


def test_tiles_are_the_same_in_any_batch(threads):
    """Bands of an image, cut to suit the batch, share the tiles of one grid: a result does not depend on other images."""
    weight, images = torch.randn(70, 32, 3, 3), torch.randn(5, 32, 41, 11)
    together = conv_tokenizer(images, weight, padding=1)
    for i in range(5):
        assert torch.equal(conv_tokenizer(images[i : i + 1], weight, padding=1)[0], together[i])


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (150, 130), (7, 6), (13, 5)])
def test_tall_wide_and_large_images_in_tiles(isa, size, dtype):
    """More than one band and part of an image, blocks of an odd number of tiles; images of a line are left to im2col."""
    if dtype == F32:
        options, x, weight = {}, grid(2, 32, *size), grid(9, 32, 3, 3)
    else:  # nothing that a rounding could choose
        options, x, weight = {"relu": False, "pool": None}, torch.randn(2, 32, *size), torch.randn(9, 32, 3, 3) / 17
    compare_tensors({"x": x.to(dtype), "weight": weight.to(dtype)}, padding=1, **options)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("channels", [80, 96])
def test_tiles_of_channels_between_whole_panels(isa, channels, dtype):
    x, weight = torch.randn(2, channels, 9, 6), torch.randn(70, channels, 3, 3) / 27
    compare_tensors({"x": x.to(dtype), "weight": weight.to(dtype)}, padding=1, relu=False, pool=None)


def test_kernel_rows_longer_than_a_sum_of_floats(isa):
    """320 elements each, more than gemm.h sums in one chain."""
    compare_tensors(
        {"x": torch.randn(2, 64, 11, 10), "weight": torch.randn(128, 64, 5, 5) / 40}, padding=2, relu=False, pool=None
    )


def test_a_changed_weight_is_transformed_anew():
    """And what is kept for float32 products is not used for bfloat16 ones, nor the other way round."""
    x, weight = torch.randn(1, 32, 6, 6), torch.randn(9, 32, 3, 3)
    for change in (lambda: weight.mul_(2), lambda: weight.data.add_(1), lambda: weight.numpy().__setitem__((3, 5, 1, 1), 7.0)):
        conv_tokenizer(x, weight)
        change()
        plain = reference.conv_tokenizer(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(conv_tokenizer(x, weight).float(), plain, atol=0.5, rtol=0.05)
        torch.testing.assert_close(conv_tokenizer(x, weight), plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("isa", ["avx2", "generic"], indirect=True)
def test_autocast_leaves_no_rounded_weights_behind(isa):
    """Where the CPU multiplies no bfloat16, the transformed weights are those of float32 under autocast too, and so is dW."""
    x, weight = torch.randn(2, 32, 8, 8), torch.randn(9, 32, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        inside = conv_tokenizer(x, weight, padding=1)
        (dweight,) = torch.autograd.grad(inside.sum(), weight)
    plain = reference.conv_tokenizer(x, weight, padding=1)
    torch.testing.assert_close(inside, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(conv_tokenizer(x, weight, padding=1), plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(dweight, torch.autograd.grad(plain.sum(), weight)[0], atol=1e-3, rtol=1e-4)


def test_reference_gradients():
    t = make_inputs(CASES["B2_4x11x13_C33_k3_norelu"], torch.float64)
    t = [t["x"][:1, :2, :5, :4], t["weight"][:3, :2], t["bias"][:3]]
    t = [v.clone().requires_grad_() for v in t]
    assert torch.autograd.gradcheck(lambda *a: reference.conv_tokenizer(*a, padding=1), t)


def test_by_hand():
    """Kernel (1 1; 1 1) on 1..9 sums 2 x 2 squares: 12 16 24 28; minus 20 and ReLU: 0 0 4 8."""
    x = torch.arange(1.0, 10.0).view(1, 1, 3, 3)
    args = x, torch.ones(1, 1, 2, 2), torch.tensor([-20.0])
    for backend in ("cpu", "reference"):
        assert conv_tokenizer(*args, pool=None, backend=backend).flatten().tolist() == [0, 0, 4, 8]
        assert conv_tokenizer(*args, pool=(2, 1, 0), backend=backend).flatten().tolist() == [8]
        assert conv_tokenizer(*args, relu=False, pool=(2, 2, 1), backend=backend).flatten().tolist() == [-8, -4, 4, 8]


def test_first_maximum_of_a_tie_gets_the_gradient(isa):
    x, weight = torch.ones(1, 1, 6, 6, requires_grad=True), torch.ones(40, 1, 1, 1)
    for relu in (True, False):
        for pool in ((3, 2, 1), (2, 2, 0), (3, 1, 0), None):
            ours, plain = (
                torch.autograd.grad(op(x, weight, relu=relu, pool=pool).square().sum(), x)[0]
                for op in (conv_tokenizer, reference.conv_tokenizer)
            )
            assert torch.equal(ours, plain), (relu, pool)


def test_a_window_below_zero_gets_no_gradient():
    x, weight = -torch.ones(1, 1, 4, 4), torch.ones(1, 1, 1, 1, requires_grad=True)
    out = conv_tokenizer(x.requires_grad_(), weight)
    assert not out.any()
    assert all(not g.any() for g in torch.autograd.grad(out.sum(), (x, weight)))
    zeros = torch.zeros(1, 1, 4, 4, requires_grad=True)  # ReLU's gradient at zero is zero
    assert not torch.autograd.grad(conv_tokenizer(zeros, weight).sum(), zeros)[0].any()


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf])
def test_nan_and_infinity_stay_where_they_are_seen(isa, relu, value):
    x, weight = torch.randn(1, 2, 8, 8), torch.ones(20, 2, 3, 3)
    x[0, 1, 2, 3] = value
    for dtype in DTYPES["cpu"]:
        ours, plain = (
            op(x.to(dtype), weight.to(dtype), relu=relu, padding=1).float() for op in (conv_tokenizer, reference.conv_tokenizer)
        )
        assert torch.equal(ours.isnan(), plain.isnan())
        assert torch.equal(ours.isinf(), plain.isinf())
        assert not ours.isfinite().all()


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("layout", ["channels_last", "sliced", "transposed"])
def test_layout_of_x(layout, tokens):
    t = make_inputs(ODD, F32)
    plain = run(conv_tokenizer, t, ODD.options | {"tokens": tokens}, None)["out"]
    dout = torch.randn(plain.shape)
    plain = run(conv_tokenizer, t, ODD.options | {"tokens": tokens}, dout)
    if layout == "channels_last":
        t["x"] = t["x"].to(memory_format=torch.channels_last)
    elif layout == "sliced":
        t["x"] = torch.randn(2, 7, 19, 46)[:, 1:6, :, ::2].copy_(t["x"])
    else:
        t["x"] = t["x"].transpose(2, 3).contiguous().transpose(2, 3)
    t["weight"] = t["weight"].to(memory_format=torch.channels_last)
    dout = dout.transpose(1, 2).contiguous().transpose(1, 2)
    other = run(conv_tokenizer, t, ODD.options | {"tokens": tokens}, dout)
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], msg=name)


def test_two_stages_pass_channels_last_images():
    first, second = make_inputs(CASES["B2_3x32x32_C64_k3_stage"], F32), make_inputs(STAGE, F32)
    middle = conv_tokenizer(**first, padding=1, tokens=False)
    assert middle.shape == (2, 64, 16, 16)
    assert middle.is_contiguous(memory_format=torch.channels_last)
    out = conv_tokenizer(middle, second["weight"], padding=1)
    plain = reference.conv_tokenizer(middle, second["weight"], padding=1)
    torch.testing.assert_close(out, plain, atol=1e-4, rtol=1e-4)


def test_autocast_computes_in_bfloat16_and_keeps_dtypes(least_bfloat16_error):
    t = make_inputs(STAGE, F32)
    exact = reference.conv_tokenizer(**{n: v.double() for n, v in t.items()}, **STAGE.options)
    with torch.autocast("cpu", torch.bfloat16):
        out, eager = conv_tokenizer(**t, **STAGE.options), reference.conv_tokenizer(**t, **STAGE.options)
    assert out.dtype == F32
    error, allowed = ((v.double() - exact).abs().max() for v in (out, eager))
    assert least_bfloat16_error < error <= 2 * allowed


def test_gradients_only_where_wanted():
    t = make_inputs(ODD, F32)
    full = run(conv_tokenizer, t, ODD.options, dout := torch.randn(2, 65, 70))
    for wanted in t:
        leaves = {n: v.clone().requires_grad_(n == wanted) for n, v in t.items()}
        conv_tokenizer(**leaves, **ODD.options).backward(dout)
        torch.testing.assert_close(leaves[wanted].grad, full[f"d{wanted}"])
        assert all(v.grad is None for n, v in leaves.items() if n != wanted)


def test_only_training_keeps_the_winners():
    t = {n: v.requires_grad_() for n, v in make_inputs(ODD, F32).items()}
    saved = conv_tokenizer(**t, **ODD.options).grad_fn.saved_tensors
    assert [tuple(s.shape) for s in saved] == [t["x"].shape, t["weight"].shape, (2, 65, 128)]
    assert saved[2].dtype == torch.uint8
    with torch.no_grad():
        assert conv_tokenizer(**t, **ODD.options).grad_fn is None
    window = (3, 3, 2, 2, 1, 1)
    args = t["x"].detach(), t["weight"].detach(), None, (2, 1), (1, 2)
    assert NATIVE.conv_tokenizer_forward(*args, True, window, F32, False)[1].shape[0] == 0
    assert NATIVE.conv_tokenizer_forward(*args, False, (1, 1, 1, 1, 0, 0), F32, True)[1].shape[0] == 0


def test_windows_above_a_byte_run_in_plain_pytorch():
    x, weight = torch.randn(1, 1, 20, 20), torch.randn(4, 1, 1, 1)
    out = conv_tokenizer(x, weight, pool=(16, 2, 0))
    torch.testing.assert_close(out, reference.conv_tokenizer(x, weight, pool=(16, 2, 0)))
    for backend in ("cpu", "fused"):
        with pytest.raises(
            ValueError, match=rf"conv_tokenizer: pool kernel has 256 pixels; backend '{backend}' takes at most 255"
        ):
            conv_tokenizer(x, weight, pool=(16, 2, 0), backend=backend)
    largest = (15, 17), 1, 0  # 255 pixels
    torch.testing.assert_close(
        conv_tokenizer(x, weight, pool=largest, backend="cpu"), reference.conv_tokenizer(x, weight, pool=largest)
    )


def test_same_result_from_run_to_run(threads):
    t = make_inputs(STAGE, F32)
    dout = torch.randn(3, 64, 128)
    runs = [run(conv_tokenizer, t, STAGE.options, dout) for _ in range(2)]
    assert all(torch.equal(runs[0][n], runs[1][n]) for n in runs[0])


OPCHECK = ["B2_5x19x23_C70_k5x3", "B2_4x11x13_C33_k3_norelu", "B2_2x9x31_C40_k3_nopool", "B0_3x32x32_C64_k3"]


@pytest.mark.parametrize("name", OPCHECK)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_opcheck(name, layout):
    case = CASES[name]
    t = make_inputs(case, F32)
    stride, padding = (p if isinstance(p, tuple) else (p, p) for p in (case.options.get("stride", 1), case.options["padding"]))
    pool = (3, 3, 2, 2, 1, 1) if "pool" not in case.options else (1, 1, 1, 1, 0, 0)
    options = (stride, padding, case.options.get("relu", True), pool, F32)
    x = t["x"].contiguous(memory_format=layout)
    torch.library.opcheck(NATIVE.conv_tokenizer_forward.default, (x, t["weight"], t.get("bias"), *options, True))
    out, winner = NATIVE.conv_tokenizer_forward(x, t["weight"], t.get("bias"), *options, True)
    for mask in ((True, True, True), (False, True, False)):
        args = (torch.randn_like(out), x, t["weight"], winner, *options, mask)
        torch.library.opcheck(NATIVE.conv_tokenizer_backward.default, args)


@pytest.mark.parametrize("tokens", [True, False])
def test_compiles_without_a_graph_break(tokens):
    t = {n: v.requires_grad_() for n, v in make_inputs(ODD, F32).items()}
    function = lambda t: conv_tokenizer(**t, **ODD.options, tokens=tokens)  # noqa: E731
    eager, traced = function(t), torch.compile(function, fullgraph=True, backend="aot_eager")(t)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), list(t.values())) for o in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


GOOD = {"x": torch.zeros(2, 3, 8, 8), "weight": torch.zeros(16, 3, 3, 3), "bias": torch.zeros(16)}
BAD = [
    ({"x": torch.zeros(3, 8, 8)}, r"conv_tokenizer: x has shape \(3, 8, 8\); expected 4 dimensions"),
    ({"x": torch.zeros(2, 3, 8, 8).int()}, "conv_tokenizer: x has dtype torch.int32; expected a floating-point dtype"),
    ({"x": torch.zeros(2, 3, 0, 8)}, r"conv_tokenizer: x has shape \(2, 3, 0, 8\) .* expected no empty dimension but B"),
    ({"weight": torch.zeros(16, 4, 3, 3)}, r"conv_tokenizer: weight has shape \(16, 4, 3, 3\); expected \(16, 3, 3, 3\)"),
    ({"weight": torch.zeros(0, 3, 3, 3)}, r"weight \(0, 3, 3, 3\); expected no empty dimension but B"),
    ({"bias": torch.zeros(4)}, r"conv_tokenizer: bias has shape \(4,\); expected \(16,\)"),
    ({"bias": torch.zeros(16).double()}, "conv_tokenizer: bias has dtype torch.float64; expected torch.float32"),
    ({"stride": 0}, "conv_tokenizer: stride is 0; expected an int of at least 1"),
    ({"padding": (1, 2, 3)}, r"conv_tokenizer: padding is \(1, 2, 3\); expected an int or a pair"),
    ({"padding": -1}, "conv_tokenizer: padding is -1; expected an int of at least 0"),
    ({"x": torch.zeros(2, 3, 2, 2)}, "conv_tokenizer: x has shape .* expected an image of at least the kernel, 3 x 3"),
    ({"pool": (3, 2)}, r"conv_tokenizer: pool is \(3, 2\); expected \(kernel, stride, padding\) or None"),
    ({"pool": (3, 2, 2)}, r"conv_tokenizer: pool padding is \(2, 2\); expected at most half the pool kernel \(3, 3\)"),
    ({"pool": (9, 1, 0)}, r"conv_tokenizer: pool kernel is \(9, 9\); expected at most the convolved image, 6 x 6"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:60] for _, m in BAD])
def test_bad_input(change, message):
    with pytest.raises(ValueError, match=message):
        conv_tokenizer(**(GOOD | change))


ARGUMENTS = dict(**GOOD, stride=(1, 1), padding=(0, 0), relu=True, pool=(3, 3, 2, 2, 1, 1), compute=F32, keep=True)
HUGE = 2**62
WRONG = [
    {"x": torch.zeros(3, 8, 8)},
    {"x": torch.zeros(2, 3, 8, 8).half()},
    {"x": torch.zeros(2, 3, 0, 8)},
    {"x": torch.zeros(2, 0, 8, 8)},
    {"x": torch.zeros(1).expand(2, 3, 2**31, 2**29)},
    {"x": torch.zeros(0, 3, 2**40, 2**20)},
    {"x": torch.zeros(2, 3, 2, 2)},
    {"weight": torch.zeros(16, 3, 3)},
    {"weight": torch.zeros(16, 4, 3, 3)},
    {"weight": torch.zeros(16, 3, 0, 3)},
    {"weight": torch.zeros(0, 3, 3, 3)},
    {"weight": torch.zeros(16, 3, 3, 3).double()},
    {"weight": torch.zeros(16, 3, 9, 3)},
    {"weight": torch.zeros(1).expand(2**40, 3, 3, 3)},
    {"bias": torch.zeros(15)},
    {"bias": torch.zeros(16).bfloat16()},
    {"stride": (0, 1)},
    {"stride": (-1, 1)},
    {"stride": (HUGE, 1)},
    {"padding": (0, -1)},
    {"padding": (HUGE, HUGE)},
    {"padding": (2**31 - 1, 2**31 - 1)},
    {"pool": (0, 3, 2, 2, 0, 0)},
    {"pool": (3, 3, 0, 2, 0, 0)},
    {"pool": (3, 3, 2, 2, 2, 2)},
    {"pool": (3, 3, 2, 2, -1, -1)},
    {"pool": (7, 7, 1, 1, 0, 0)},
    {"pool": (16, 16, 1, 1, 5, 5), "x": torch.zeros(1, 3, 40, 40)},
    {"pool": (HUGE, HUGE, 1, 1, 0, 0)},
    {"pool": (3, 3)},
    {"stride": (1, 1, 1)},
]


@pytest.mark.parametrize("change", WRONG, ids=lambda c: "-".join(f"{n}={getattr(v, 'shape', v)}" for n, v in c.items()))
def test_native_op_checks_what_it_indexes_by(change):
    with pytest.raises((ValueError, RuntimeError), match="expected"):
        NATIVE.conv_tokenizer_forward(**(ARGUMENTS | change))


def test_native_op_takes_extreme_geometry():
    """Padding and strides far above the image: little is computed, and what is seen is right."""
    x, weight = torch.randn(1, 2, 5, 6), torch.randn(3, 2, 3, 2)
    for stride, padding in (((1000, 2000), (2000, 4000)), ((2**31 - 1, 1), (0, 0)), ((7, 3), (9, 1))):
        t = {"x": x, "weight": weight}
        options = {"stride": stride, "padding": padding, "pool": None}
        shape = reference.conv_tokenizer(**t, **options).shape
        dout = torch.randn(shape)
        ours, plain = (run(op, t, options, dout) for op in (conv_tokenizer, reference.conv_tokenizer))
        for name in plain:
            torch.testing.assert_close(ours[name], plain[name], msg=name, atol=1e-5, rtol=1e-5)


def test_native_backward_checks_what_it_indexes_by():
    t = {n: v for n, v in ARGUMENTS.items() if n not in ("bias", "keep")}
    out, winner = NATIVE.conv_tokenizer_forward(**ARGUMENTS)
    good = {"dout": torch.zeros_like(out), "winner": winner, **t, "output_mask": (True, True, True)}
    for change in (
        {"dout": out[:1]},
        {"dout": out.bfloat16()},
        {"winner": winner[:, :-1]},
        {"winner": winner[..., :16]},
        {"winner": winner.int()},
        {"winner": winner[:0]},
        {"weight": torch.zeros(8, 3, 3, 3)},
        {"pool": (2, 2, 1, 1, 0, 0)},
    ):
        with pytest.raises(ValueError, match="expected"):
            NATIVE.conv_tokenizer_backward(**(good | change))
    dx, dweight, dbias = NATIVE.conv_tokenizer_backward(**(good | {"winner": torch.randint_like(winner, 256)}))
    assert dx.shape == t["x"].shape and dweight.shape == t["weight"].shape and dbias.shape == (16,)
