"""Augmented batches: mixing, targets and erasing by hand, the same bits wherever a run resumes, work that a graph can hold."""

import numpy as np
import pytest
import torch

from cct.data import Augment, DataError, Split, batches
from cct.data.augment import carry_out, mixing
from cct.training.losses import cross_entropy

V4 = {"scale": (0.8, 1.0), "aa": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "reprob": 0.25}  # the paper's recipe
V1 = {"aa": "autoaugment", "crop_padding": 2}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture(params=["pytorch", "native"])
def finish(request, monkeypatch):
    """`Augment.finish`, in PyTorch and in C++."""
    if request.param == "pytorch":
        monkeypatch.setattr(carry_out, "compiled", lambda images: False)
    elif not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    return lambda images, mix, boxes, mode="pixel": Augment(remode=mode).finish(images, mix, boxes, SCALE, SHIFT)


SCALE, SHIFT = torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1), torch.tensor([1.0, -3.0, 0.0]).view(3, 1, 1)


def make_images(n=6, channels=3, size=(12, 10), seed=0):
    return torch.randint(0, 256, (n, channels, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def make_split(n=50, channels=3, size=(12, 10)):
    return Split(make_images(n, channels, size), torch.arange(n) % 7)


def run(split, fields=V4, **kwargs):
    channels = split.images.shape[1]
    defaults = {"batch_size": 8, "seed": 3, "epoch": 2, "augment": Augment(**fields), "num_classes": 7}
    return list(batches.epoch(split, mean=MEAN[:channels], std=STD[:channels], **(defaults | kwargs)))


def test_mixup_is_rounded_and_cutmix_pastes(finish):
    images = make_images()
    lam = torch.tensor([0.3, 0.7, 1.0, 1.0, 0.5, 0.9], dtype=torch.float64)
    box = torch.zeros(6, 4, dtype=torch.int64)
    box[1], lam[1] = torch.tensor([2, 7, 1, 9]), 1 - 5 * 8 / 120
    out = finish(images, mixing.Mix(lam, box), None)
    own, other = images.numpy().astype(np.float32), images.flip(0).numpy().astype(np.float32)
    expected = np.rint(own * lam.numpy().astype(np.float32)[:, None, None, None]
                       + other * (1 - lam.numpy()).astype(np.float32)[:, None, None, None])  # fmt: skip
    expected[1] = own[1]
    expected[1, :, 2:7, 1:9] = other[1, :, 2:7, 1:9]
    assert torch.equal(out, torch.from_numpy(expected) * SCALE + SHIFT)


def test_targets_are_those_of_the_fixture(fixtures):
    stored = np.load(fixtures / "losses.npz")
    labels = torch.from_numpy(stored["targets"])
    mix = mixing.Mix(torch.full((6,), 0.3, dtype=torch.float64), torch.zeros(6, 4, dtype=torch.int64))
    targets = Augment(mixup=0.8, smoothing=0.1).targets(labels, mix, 10)
    np.testing.assert_allclose(targets, stored["mixup_target_lam0.3_s0.1"], rtol=0, atol=1e-7)
    logits = torch.from_numpy(stored["logits"]).requires_grad_()
    loss = cross_entropy(logits, targets, smoothing=0.1)
    loss.backward()
    np.testing.assert_allclose(loss.item(), stored["soft_ce"], rtol=1e-6)
    np.testing.assert_allclose(logits.grad, stored["soft_ce_grad"], atol=1e-7)


def test_cutmix_boxes_are_those_of_the_fixture(fixtures):
    for height, width, lam, cy, cx, *sides, corrected in np.load(fixtures / "losses.npz")[
        "cutmix_H_W_lam_cy_cx_yl_yh_xl_xh_lam2"
    ]:
        # the middle of the words that `below` takes to this row and column
        row, column = (torch.tensor([int((c + 0.5) / side * 2**32)]) for c, side in ((cy, height), (cx, width)))
        box = mixing.cut_box(torch.tensor([lam]), row, column, (int(height), int(width)))[0].tolist()
        assert box == [int(s) for s in sides]
        assert 1 - (box[1] - box[0]) * (box[3] - box[2]) / (height * width) == pytest.approx(corrected)


@pytest.mark.parametrize("mode", mixing.FILLS)
def test_erasing_fills_the_boxes_and_nothing_else(finish, mode):
    images = make_images(4)
    boxes = torch.zeros(4, 2, 5, dtype=torch.int64)
    boxes[0, 0] = torch.tensor([2, 3, 5, 6, 11])
    boxes[0, 1] = torch.tensor([0, 0, 1, 2, -12])
    boxes[3, 1] = torch.tensor([4, 0, 8, 10, 13])
    out, plain = finish(images, None, boxes, mode), finish(images, None, None, mode)
    inside = torch.zeros(4, 1, 12, 10, dtype=torch.bool)
    inside[0, :, 2:7, 3:9] = inside[0, :, 0, :2] = inside[3, :, 4:] = True
    inside = inside.expand_as(out)
    assert torch.equal(out[~inside], plain[~inside])
    filled = out[3, :, 4:]
    if mode == "const":
        assert not out[inside].any()
    elif mode == "rand":
        assert (filled == filled[:, :1, :1]).all() and len(filled[:, 0, 0].unique()) == 3
    else:
        assert filled.unique().numel() > 230 and abs(filled.mean()) < 0.3 and 0.8 < filled.std() < 1.2
        assert not torch.equal(out[0, :, 2:7, 3:9], out[3, :, 4:9, 3:9])


def test_both_forms_fill_with_the_same_bits():
    if not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    augment = Augment(**V4, recount=3)
    images = make_images(32)
    drawn, mix = augment.draw(0, 0, torch.arange(32), (12, 10)), augment.draw_mix(0, 0, torch.arange(4), 32, (12, 10))
    for i, mode in enumerate(("pixel", "rand", "const", "pixel")):
        one = Augment(remode=mode).finish(images, mix.of(i), drawn.boxes, SCALE, SHIFT)
        values = mixing.mixed(images, mix.of(i)).float() * SCALE + SHIFT
        assert torch.equal(one, mixing.erased(values, drawn.boxes, mode))


def test_noise_is_normal():
    noise = mixing.fill(torch.tensor([5, 6]), (3, 64, 64), "pixel")
    assert noise.shape == (2, 3, 64, 64) and not torch.equal(noise[0], noise[1])
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02 and 3.5 < noise.abs().max() < 4.4
    pairs = noise[:, :, :, 1:] * noise[:, :, :, :-1]
    assert abs(pairs.mean()) < 0.03
    table = mixing.normals(torch.device("cpu"))
    assert (table.diff() > 0).all() and torch.equal(table, -table.flip(0))


@pytest.mark.parametrize(
    "fields", [V4, V1, {"color_jitter": 0.3, "vflip": 0.5, "mixup": 0.2, "mixup_mode": "elem"}], ids=["v4", "v1", "jitter"]
)
def test_a_resumed_epoch_goes_on_with_the_same_bits(fields, monkeypatch):
    split = make_split()
    whole = run(split, fields)
    for start in (1, 4, 6):
        for (x, y), (u, v) in zip(run(split, fields, start=start), whole[start:], strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)
    monkeypatch.setitem(batches.DRAWN_AHEAD, "cpu", 17)  # whatever is drawn in advance
    for (x, y), (u, v) in zip(run(split, fields), whole, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_samples_do_not_depend_on_the_batch_size():
    fields = {k: v for k, v in V4.items() if k not in ("mixup", "cutmix")} | {"color_jitter": 0.2}
    split = make_split()
    one, two = (run(split, fields, batch_size=size) for size in (8, 50))
    assert torch.equal(torch.cat([x for x, _ in one]), two[0][0])
    assert torch.equal(torch.cat([y for _, y in one]), two[0][1])


def test_every_instruction_set_makes_the_batches_of_pytorch(isa, threads, monkeypatch):
    split = make_split(24)
    native = [run(split, fields) for fields in (V4, V1)]
    monkeypatch.setattr(carry_out, "compiled", lambda images: False)
    for fields, expected in zip((V4, V1), native, strict=True):
        for (x, y), (u, v) in zip(run(split, fields), expected, strict=True):
            assert torch.equal(x, u) and torch.equal(y, v)


@pytest.mark.parametrize("fields", [V4, V1], ids=["v4", "v1"])
def test_grey_images_are_augmented(fields):
    split = make_split(channels=1)
    out = run(split, fields)
    assert len(out) == 7 and all(x.shape[1] == 1 and x.isfinite().all() for x, _ in out)
    plain = run(split, {"crop_padding": 0, "flip": False}, augment=None)
    assert not torch.equal(out[0][0], plain[0][0])


def test_soft_targets_stay_after_mixing_ends():
    split = make_split(16)
    off = V4 | {"mixup_off_epoch": 2}
    (x, y), _ = run(split, off)
    unmixed = {key: value for key, value in off.items() if key not in ("mixup", "cutmix")}
    (u, labels), _ = run(split, unmixed)
    assert torch.equal(x, u) and labels.dtype == torch.int64
    torch.testing.assert_close(y, torch.nn.functional.one_hot(labels, 7) * 0.9 + 0.1 / 7)
    (_, mixed), _ = run(split, off, epoch=1)
    assert ((mixed > 0.02).sum(1) > 1).any()
    torch.testing.assert_close(mixed.sum(1), torch.ones(8))


def test_mixing_needs_the_number_of_classes():
    with pytest.raises(DataError, match="num_classes is missing"):
        run(make_split(), V4, num_classes=None)


def test_colour_operations_refuse_other_channels():
    split = make_split(channels=2)
    for fields, name in ((V1, "aa"), ({"color_jitter": 0.1}, "color_jitter")):
        with pytest.raises(ValueError, match=f"Augment: {name} is for images with 1 or 3 channels, these have 2"):
            run(split, fields)


@pytest.mark.parametrize(
    "fields", [V4 | {"recount": 2}, V1, {"color_jitter": 0.4, "mixup": 1.0, "mixup_mode": "pair"}], ids=["v4", "v1", "jitter"]
)
def test_nothing_looks_at_the_data_from_the_host(fields):
    """On tensors without data, such as a graph is captured with, any look at a value raises."""
    augment = Augment(**fields)
    with torch.device("meta"):
        images, labels, index = (
            torch.empty(8, 3, 12, 10, dtype=torch.uint8),
            torch.zeros(8, dtype=torch.int64),
            torch.arange(8),
        )
        seed, epoch, batch = torch.tensor(1), torch.tensor(2), torch.arange(1)
        drawn = augment.draw(seed, epoch, index, (12, 10))
        mix = augment.draw_mix(seed, epoch, batch, 8, (12, 10))
        out = carry_out.pixel.apply(images, drawn.program, torch.empty(3, dtype=torch.uint8))
        if mix is not None:
            mix = mix.of(0)
            out = mixing.mixed(out, mix)
        out = out.float()
        out = out if drawn.boxes is None else mixing.erased(out, drawn.boxes, "pixel")
        targets = augment.targets(labels, mix, 7)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert targets.shape == ((8,) if mix is None else (8, 7))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("fields", [V4, V1], ids=["v4", "v1"])
def test_a_gpu_gives_the_same_batches_without_waiting(fields):
    split = make_split(24)
    there = run(split.to("cuda"), fields, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = run(split.to("cuda"), fields, device="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (u, v) in zip(there, run(split, fields), strict=True):
        torch.testing.assert_close(x.cpu(), u, rtol=0, atol=1 / 255 / min(STD))
        torch.testing.assert_close(y.cpu(), v, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, "images has dtype Float; expected Byte"),
        ({"codes": torch.full((2, 1), 14)}, "codes holds 14; expected 0 to 13"),
        ({"codes": torch.full((2, 1), -1)}, "codes holds -1"),
        ({"args": torch.zeros(2, 1, 6, dtype=torch.float64)}, r"args has shape \[2, 1, 6\]; expected \[2, 1, 7\]"),
        ({"fill": torch.zeros(4, dtype=torch.uint8)}, r"fill has shape \[4\]; expected \[3\]"),
    ],
)
def test_the_native_op_checks_what_it_reads(change, message):
    if not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    given = {
        "images": torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "codes": torch.ones(2, 1, dtype=torch.int64),
        "args": torch.zeros(2, 1, 7, dtype=torch.float64), "fill": torch.zeros(3, dtype=torch.uint8),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=message):
        torch.ops.cct_kernels.augment_pixels(*given.values())


def test_the_native_ops_survive_any_arguments(isa, threads):
    """Boxes outside of the image, not-a-numbers, infinities: whatever comes out, nothing outside is read or written."""
    images = make_images(13, size=(7, 5))
    wild = torch.tensor([0.0, -3.0, 1e300, -1e300, float("nan"), float("inf"), 2.5, 1e6])
    for code in range(14):
        args = wild[torch.randint(0, 8, (13, 1, 7), generator=torch.Generator().manual_seed(code))].double()
        codes, fill = torch.full((13, 1), code), torch.zeros(3, dtype=torch.uint8)
        assert torch.ops.cct_kernels.augment_pixels(images, codes, args, fill).shape == images.shape
    box = torch.tensor([-9, 2**40, 3, -(2**40)]).expand(13, 4)
    erase = torch.tensor([-5, 2**62, 2**62, 2**62, -1]).expand(13, 2, 5)
    lam = torch.full((13,), float("nan"), dtype=torch.float64)
    normals = mixing.normals(images.device)
    torch.ops.cct_kernels.augment_finish(images, lam, box, erase, SCALE, SHIFT, 0, normals)


def test_native_ops_pass_opcheck():
    if not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    augment = Augment(**V4)
    drawn, mix = augment.draw(0, 0, torch.arange(4), (12, 10)), augment.draw_mix(0, 0, torch.arange(1), 4, (12, 10)).of(0)
    fill, normals = torch.zeros(3, dtype=torch.uint8), mixing.normals(torch.device("cpu"))
    ops = torch.ops.cct_kernels
    torch.library.opcheck(ops.augment_pixels.default, (make_images(4), drawn.program.codes, drawn.program.args, fill))
    torch.library.opcheck(ops.augment_finish.default, (make_images(4), *mix, drawn.boxes, SCALE, SHIFT, 0, normals))
    torch.library.opcheck(ops.augment_finish.default, (make_images(4), None, None, None, SCALE, SHIFT, 2, normals))
