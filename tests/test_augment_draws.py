"""What is drawn: ranges and frequencies of every choice, and that a sample's choices are its own."""

import math

import pytest
import torch

from cct.data import Augment, draws
from cct.data.augment import crops, mixing, policies
from cct.data.augment import program as p

N = 20_000
TIMM = "rand-m9-mstd0.5-inc1"
SIZE = (32, 32)


def drawn(n=N, size=SIZE, seed=1, epoch=2, **fields):
    return Augment(crop_padding=0, flip=False, **fields).draw(seed, epoch, torch.arange(n), size)


def assert_even(values, shares):
    """Chi-square test of counts against expected shares, at 5 standard deviations."""
    counts = torch.bincount(values, minlength=len(shares)).double()
    expected = torch.tensor(shares, dtype=torch.float64) * len(values)
    assert (counts[expected == 0] == 0).all()
    used = expected > 0
    freedom = used.sum().item() - 1
    assert (((counts - expected) ** 2 / expected)[used].sum() < freedom + 5 * math.sqrt(2 * freedom) + 5).item()


def test_normal_and_beta_numbers_have_their_distributions():
    words = draws.words(3, 0, draws.MIX, 50_000)
    z = draws.normal(words[:, 0], words[:, 1])
    assert abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02 and abs((z.abs() < 1).double().mean() - 0.6827) < 0.01
    for alpha in (0.2, 0.8, 1.0, 4.0):
        x = draws.beta(words[:, 2], words[:, 3], alpha)
        assert (x >= 0).all() and (x <= 1).all() and abs(x.mean() - 0.5) < 0.01
        assert abs(x.var() - 1 / (4 * (2 * alpha + 1))) < 0.004
        fourth = 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3))  # central moment of Beta(a, a)
        assert abs(((x - 0.5) ** 4).mean() - fourth) < 0.001
    assert torch.isfinite(draws.beta(torch.zeros(4, dtype=torch.int64), words[:4, 3], 0.01)).all()


def test_rand_augment_draws_what_timm_draws():
    program = drawn(aa=TIMM).program
    assert program.codes.shape == (N, 2)
    for layer in range(2):
        code, arg = program.codes[:, layer], program.args[:, layer]
        each = 0.5 / 15
        shares = [0.5, 0, 0, 5 * each] + [each] * 10
        assert_even(code, shares)
        bits = arg[code == p.POSTERIZE, 0]
        # 4 - floor(0.4 m), m ~ N(9, 0.5): one bit from 7.5 to 10, none at 10, two below 7.5
        assert set(bits.tolist()) <= {0.0, 1.0, 2.0} and (bits == 1).double().mean() > 0.9
        threshold = arg[code == p.SOLARIZE, 0]
        assert abs(threshold.mean() - (256 - 25.6 * 9)) < 2 and (threshold == threshold.round()).all()
        assert abs(arg[code == p.SOLARIZE_ADD, 0].mean() - 98.5) < 1.5
        for kind in (p.COLOR, p.CONTRAST, p.BRIGHTNESS, p.SHARPNESS):
            factor = arg[code == kind, 0]
            assert ((factor - 1).abs() <= 0.9 + 1e-12).all() and abs((factor - 1).abs().mean() - 0.81) < 0.02
            assert abs((factor > 1).double().mean() - 0.5) < 0.1
        affine = arg[code == p.AFFINE]
        assert_even(affine[:, p.FILTER].long(), [0, 0.5, 0.5])
        shear_x = affine[(affine[:, 1] != 0) & (affine[:, 3] == 0)][:, 1]
        assert abs(shear_x.abs().mean() - 0.27) < 0.01 and abs(shear_x.mean()) < 0.05
        slide = affine[(affine[:, 1] == 0) & (affine[:, 3] == 0) & (affine[:, 2] != 0)][:, 2]
        assert abs(slide.abs().mean() - 0.405 * 32) < 0.3
        turned = affine[(affine[:, 1] != 0) & (affine[:, 3] != 0)]
        angle = torch.atan2(turned[:, 3], turned[:, 0]) * (180 / math.pi)
        assert abs(angle.abs().mean() - 27) < 0.5 and abs((angle > 0).double().mean() - 0.5) < 0.1
    both = (program.codes[:, 0] != 0) & (program.codes[:, 1] != 0)
    assert abs(both.double().mean() - 0.25) < 0.02


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rand", policies.RandAugment()),
        (TIMM, policies.RandAugment(m=9, mstd=0.5, inc=1)),
        ("rand-n3-m7-p0.9-mmax20-mstd101-w0", policies.RandAugment(7, 3, 101.0, 20, 0.9, 0, True)),
        ("autoaugment", policies.AutoAugment()),
    ],
)
def test_policies_are_parsed(text, expected):
    assert policies.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("original", "expected autoaugment, or rand"),
        ("rand-m9-x3", "'x3' is not understood"),
        ("rand-m9.5", r"'m9.5' is not understood"),
        ("rand-m", "'m' is not understood"),
        ("rand-p1.5", r"p is 1.5; expected 0 to 1"),
        ("rand-w1", "w is 1; expected 0 to 0"),
        ("rand-w0-n14", "from 13 operations"),
        ("rand-n0", "n is 0; expected 1 to 16"),
    ],
)
def test_bad_policies_raise(text, message):
    with pytest.raises(ValueError, match=message):
        Augment(aa=text)


def test_magnitudes_follow_the_text():
    still = drawn(aa="rand-m5-p1-inc1").program
    assert set(still.args[still.codes == p.SOLARIZE][:, 0].tolist()) == {128.0}
    assert set(still.args[still.codes == p.POSTERIZE][:, 0].tolist()) == {2.0}
    assert not (still.codes == p.IDENTITY).any()
    older = drawn(aa="rand-m5-p1").program
    assert older.args[older.codes == p.COLOR][:, 0].unique().tolist() == [1.0]
    wide = drawn(aa="rand-m20-p1-mmax20-inc1").program
    assert wide.args[wide.codes == p.BRIGHTNESS][:, 0].unique().tolist() == pytest.approx([0.1, 2.8])
    assert wide.args[wide.codes == p.SOLARIZE_ADD][:, 0].unique().tolist() == [128.0]  # timm adds no more
    uniform = drawn(aa="rand-m9-mstd101-p1-inc1").program
    factor = (uniform.args[uniform.codes == p.SHARPNESS][:, 0] - 1).abs()
    assert abs(factor.mean() - 0.405) < 0.02 and factor.max() <= 0.81 and factor.min() < 0.02


def test_weighted_operations_do_not_repeat():
    program = drawn(aa="rand-p1-w0-n13").program
    names = [[(c, *a[:7]) if c == p.AFFINE else c for c, a in zip(codes, args, strict=True)]
             for codes, args in zip(program.codes[:50].tolist(), program.args[:50].tolist(), strict=True)]  # fmt: skip
    assert all(len(set(row)) == 13 for row in names)
    assert not ((program.codes == p.INVERT) | (program.codes == p.POSTERIZE)).any()
    first = drawn(aa="rand-p1-w0-n1").program.codes[:, 0]
    assert abs((first == p.AFFINE).double().mean() - 0.9) < 0.01


def test_auto_augment_is_the_published_table():
    steps = policies.PAIRS
    named = [[policies.NAMES[int(step[0])] for step in pair] for pair in steps]
    assert len(named) == 25
    assert named[0] == ["Invert", "Contrast"] and named[7] == ["Sharpness", "Brightness"]
    assert named[24] == ["TranslateY", "AutoContrast"]
    assert steps[1][0][1:3] == pytest.approx((0.7, 2 * 30 / 9)) and not steps[1][0][3]  # rotations have one direction
    assert steps[5][1][2] == 5 and steps[14][0][2] == pytest.approx(256 - 512 / 9)
    assert steps[3][0][2] == pytest.approx(0.3 * 8 / 9) and steps[3][0][4] == p.BICUBIC and steps[3][1][4] == p.NEAREST
    program = drawn(aa="autoaugment").program
    # Equalize comes in steps of these probabilities, one pair in 25 each.
    first = (0.6 + 0.3 + 0.2 + 0.2 + 0.8) / 25
    assert abs((program.codes[:, 0] == p.EQUALIZE).double().mean() - first) < 0.008
    assert abs((program.codes[:, 1] == p.EQUALIZE).double().mean() - (0.9 + 0.5 + 0.6 + 0.6) / 25) < 0.01
    assert Augment(aa="autoaugment").fill((0.1, 0.2, 0.3)) == (128, 128, 128)
    assert Augment(aa=TIMM).fill((0.4914, 0.4822, 0.4465)) == (125, 123, 114)


def test_resized_crops_have_the_area_and_shape_asked_for():
    for size in ((32, 32), (48, 20)):
        program = drawn(size=size, scale=(0.3, 0.8), ratio=(0.5, 1.5)).program
        top, left, h, w = program.args[:, 0, :4].long().unbind(1)
        assert (program.codes == p.RESIZE).all() and program.codes.shape == (N, 1)
        assert (top >= 0).all() and (left >= 0).all() and (top + h <= size[0]).all() and (left + w <= size[1]).all()
        share, ratio = (h * w).double() / (size[0] * size[1]), w.double() / h
        assert share.min() > 0.27 and share.max() < 0.85 and ratio.min() > 0.45 and ratio.max() < 1.6
        assert left.unique().numel() > 8 and (top == 0).any() and (top + h == size[0]).any()
    square = drawn(scale=(0.25, 0.25), ratio=(1.0, 1.0)).program
    assert (square.args[:, 0, 2:4] == 16).all()
    assert_even(square.args[:, 0, 0].long(), [1 / 17] * 17)
    assert_even(square.args[:, 0, p.FILTER].long(), [0, 0.5, 0.5])
    named = drawn(scale=(0.25, 0.25), train_interpolation="bicubic").program
    assert (named.args[:, 0, p.FILTER] == p.BICUBIC).all()


@pytest.mark.parametrize(
    ("size", "box"), [((10, 40), (0, 13, 10, 13)), ((40, 10), (13, 0, 13, 10)), ((20, 21), (0, 0, 20, 21))]
)
def test_a_crop_that_never_fits_is_central(size, box):
    program = drawn(n=200, size=size, scale=(1.0, 1.0)).program
    boxes = {tuple(row) for row in program.args[:, 0, :4].long().tolist()}
    assert box in boxes


def test_flips_have_their_probabilities():
    for fields in ({"crop_padding": 2}, {"scale": (0.5, 1.0)}):
        program = Augment(**fields, hflip=0.3, vflip=0.8).draw(0, 0, torch.arange(N), SIZE).program
        assert_even(program.args[:, 0, p.FLIPS].long(), [0.7 * 0.2, 0.3 * 0.2, 0.7 * 0.8, 0.3 * 0.8])
        none = Augment(**fields, flip=False).draw(0, 0, torch.arange(N), SIZE).program
        assert not none.args[:, 0, p.FLIPS].any()


def test_colour_jitter_has_its_range_and_every_order():
    program = drawn(color_jitter=0.4).program
    factors = program.args[:, :, 0]
    assert 0.6 <= factors.min() < 0.61 and 1.39 < factors.max() <= 1.4
    order = program.codes[:, 0] * 100 + program.codes[:, 1]
    assert_even(torch.unique(order, return_inverse=True)[1], [1 / 6] * 6)
    assert (program.codes.sort(1).values == torch.tensor([p.BRIGHTNESS, p.CONTRAST, p.COLOR])).all()
    assert drawn(color_jitter=0.4, aa=TIMM).program.codes.shape[1] == 2  # as in timm, not beside a policy


def test_erased_boxes_are_those_of_timm():
    boxes = drawn(reprob=0.25).boxes
    assert boxes.shape == (N, 1, 5)
    top, left, h, w, _ = boxes[:, 0].unbind(1)
    chosen = h > 0
    assert abs(chosen.double().mean() - 0.25) < 0.015
    assert (top[chosen] + h[chosen] <= 32).all() and (left[chosen] + w[chosen] <= 32).all()
    assert (h[chosen] < 32).all() and (w[chosen] < 32).all()
    share = (h * w)[chosen].double() / 1024
    assert 0.012 < share.min() < 0.025 and 0.32 < share.max() < 0.37 and abs(share.mean() - 0.17) < 0.01
    ratio = (h.double() / w)[chosen]
    assert 0.25 < ratio.min() < 0.35 and 2.9 < ratio.max() < 4.0 and abs(ratio.log().mean()) < 0.03
    several = drawn(reprob=1.0, recount=3).boxes
    assert_even((several[:, :, 2] > 0).sum(1) - 1, [1 / 3] * 3)
    assert boxes[chosen, 0, 4].unique().numel() == chosen.sum()


def test_choices_of_a_sample_are_its_own():
    augment = Augment(scale=(0.5, 1.0), aa=TIMM, reprob=0.5)
    whole = augment.draw(5, 6, torch.arange(100), SIZE)
    some = torch.tensor([99, 3, 3, 42])
    part = augment.draw(5, 6, some, SIZE)
    assert torch.equal(part.program.codes, whole.program.codes[some]) and torch.equal(
        part.program.args, whole.program.args[some]
    )
    assert torch.equal(part.boxes, whole.boxes[some])
    for seed, epoch in ((6, 6), (5, 7), (5 + 2**32, 6)):
        assert not torch.equal(augment.draw(seed, epoch, torch.arange(100), SIZE).program.args, whole.program.args)
    tensors = augment.draw(torch.tensor(5), torch.tensor(6), some, SIZE)
    assert torch.equal(tensors.program.args, part.program.args) and torch.equal(tensors.boxes, part.boxes)


def test_draws_do_not_overlap():
    """The blocks of one draw end before the next site begins."""
    assert draws.RESIZED_CROP + crops.TRIES // 2 + 1 <= draws.JITTER < draws.POLICY
    assert draws.POLICY + 16 <= draws.MIX and draws.MIX + 2 <= draws.ERASE
    assert draws.ERASE + 1 + 16 * (crops.TRIES // 2 + 1) <= 256


@pytest.mark.parametrize("mode", mixing.MODES)
def test_mixing_follows_its_probabilities(mode):
    augment = Augment(mixup=0.8, cutmix=1.0, mixup_prob=0.9, mixup_switch_prob=0.4, mixup_mode=mode)
    mix = augment.draw_mix(1, 2, torch.arange(4000), 6, SIZE)
    cut = mix.box[:, 0, 1] > mix.box[:, 0, 0]
    assert mix.lam.shape == (4000, 6) and mix.box.shape == (4000, 6, 4)
    assert abs((mix.lam[:, 0] == 1).double().mean() - 0.1) < 0.03
    assert abs(cut.double().mean() - 0.9 * 0.4) < 0.04
    top, bottom, left, right = mix.box[cut, 0].unbind(1)
    area = ((bottom - top) * (right - left)).double() / 1024
    assert torch.equal(mix.lam[cut, 0], 1 - area)
    assert (mix.lam == mix.lam[:, :1]).all() == (mode == "batch")
    assert (mix.lam == mix.lam.flip(1)).all() == (mode != "elem")
    again = augment.draw_mix(1, 2, torch.tensor([17]), 6, SIZE)
    assert torch.equal(again.lam[0], mix.lam[17]) and torch.equal(again.box[0], mix.box[17])
    assert augment.draw_mix(1, 3, torch.arange(3), 6, SIZE).lam.tolist() != mix.lam[:3].tolist()


def test_mixing_alone_and_switched_off():
    only = Augment(mixup=0.8).draw_mix(0, 0, torch.arange(500), 2, SIZE)
    assert not only.box.any() and (only.lam < 1).all()
    cut = Augment(cutmix=1.0).draw_mix(0, 0, torch.arange(500), 2, SIZE)
    assert (cut.box[:, 0, 1] > cut.box[:, 0, 0]).double().mean() > 0.9
    assert Augment().draw_mix(0, 0, torch.arange(3), 2, SIZE) is None
    off = Augment(mixup=0.8, mixup_off_epoch=5)
    assert (off.draw_mix(0, 4, torch.arange(3), 2, SIZE).lam < 1).all()
    assert (off.draw_mix(0, 5, torch.arange(3), 2, SIZE).lam == 1).all()


def test_minmax_boxes_keep_their_range():
    mix = Augment(cutmix_minmax=(0.25, 0.5)).draw_mix(0, 0, torch.arange(3000), 2, (32, 48))
    top, bottom, left, right = mix.box[:, 0].unbind(1)
    assert_even(bottom - top - 8, [1 / 8] * 8)
    assert_even(right - left - 12, [1 / 12] * 12)
    assert (top >= 0).all() and (bottom <= 32).all() and (left >= 0).all() and (right <= 48).all()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hflip", 1.1), ("vflip", True), ("scale", (0.5,)), ("scale", (0.8, 0.5)), ("scale", (0.0, 1.0)), ("ratio", (2, 1)),
        ("train_interpolation", "nearest"), ("aa", 3), ("color_jitter", -0.1), ("reprob", 2), ("remode", "noise"),
        ("recount", 0), ("recount", 17), ("mixup", -1), ("cutmix", "1"), ("cutmix_minmax", (0.2, 1.2)), ("mixup_prob", -0.1),
        ("mixup_switch_prob", 1.5), ("mixup_mode", "half"), ("mixup_off_epoch", -1), ("smoothing", 1.5),
    ],
)  # fmt: skip
def test_each_field_is_checked(field, value):
    with pytest.raises(ValueError, match=f"Augment: {field} is .*; expected"):
        Augment(**{field: value})
