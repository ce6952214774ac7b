"""Batches: each sample once, and order, crop and flip a function of (seed, epoch, sample index) alone."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from cct.data import Augment, DataError, Split, batches, draws

repeatable = settings(max_examples=30, derandomize=True, database=None, deadline=None)
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)
PINNED = [[3614144846, 4143350740, 804572364, 1494906522], [51949290, 256459035, 2761752132, 1726151010]]


def make_split(n=23, size=(8, 6), channels=3):
    """Images without a repeated pixel row, and the sample number as label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(1, 256, (n, channels, *size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.arange(n))


def run(split, **kwargs):
    defaults = {"batch_size": 5, "seed": 3, "epoch": 2, "augment": Augment(2, True), "mean": MEAN, "std": STD}
    return list(batches.epoch(split, **(defaults | kwargs)))


def assert_equal(got, expected):
    assert len(got) == len(expected)
    for (x, y), (u, v) in zip(got, expected, strict=True):
        assert torch.equal(x, u) and torch.equal(y, v)


def test_every_sample_once_and_shuffled():
    labels = torch.cat([y for _, y in run(make_split())])
    assert sorted(labels.tolist()) == list(range(23))
    assert labels.tolist() != list(range(23))


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [5, 5, 5, 5, 3]), (True, [5, 5, 5, 5])])
def test_drop_last(drop_last, sizes):
    assert [len(y) for _, y in run(make_split(), drop_last=drop_last)] == sizes
    assert batches.num_batches(23, 5, drop_last) == len(sizes)


@repeatable
@given(seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 5000), start=st.integers(0, 6), batch_size=st.integers(1, 30))
def test_resume_gives_the_same_batches(seed, epoch, start, batch_size):
    split = make_split()
    whole = run(split, seed=seed, epoch=epoch, batch_size=batch_size)
    assert_equal(run(split, seed=seed, epoch=epoch, batch_size=batch_size, start=start), whole[start:])


@repeatable
@given(batch_size=st.integers(1, 30), other=st.integers(1, 30))
def test_a_sample_does_not_depend_on_the_batch_size(batch_size, other):
    split = make_split()
    one, two = (run(split, batch_size=b) for b in (batch_size, other))
    assert_equal(
        [(torch.cat([x for x, _ in one]), torch.cat([y for _, y in one]))],
        [(torch.cat([x for x, _ in two]), torch.cat([y for _, y in two]))],
    )


def test_global_random_state_is_neither_read_nor_changed():
    split = make_split()
    torch.manual_seed(1)
    first = run(split)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert_equal(run(split), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("whole", [True, False], ids=["split-there", "batch-there"])
def test_a_device_gives_the_same_batches(whole):
    split = make_split()
    there = run(split.to("cuda") if whole else split, device="cuda")
    assert all(x.is_cuda and y.is_cuda for x, y in there)
    assert_equal([(x.cpu(), y.cpu()) for x, y in there], run(split))


def test_seed_and_epoch_change_order_and_crops():
    split = make_split(200)
    for change in ({"seed": 4}, {"epoch": 3}, {"seed": 3 + 2**32}):
        first, second = run(split, batch_size=200)[0], run(split, batch_size=200, **change)[0]
        assert not torch.equal(first[1], second[1])
        back, again = first[0][first[1].argsort()], second[0][second[1].argsort()]
        assert not torch.equal(back, again)


def test_crop_and_flip_are_shifts_and_mirrors_of_the_padded_image():
    split = make_split(64)
    words = draws.words(1, 0, draws.CROP_FLIP, 64)
    augment = Augment(2, True)
    out = augment.pixels(split.images, augment.draw(1, 0, torch.arange(64), (8, 6)).program, (0, 0, 0))
    padded = F.pad(split.images, (2, 2, 2, 2))
    for i in range(64):
        dy, dx = (int(w) * 5 >> 32 for w in words[i, :2])
        expected = padded[i, :, dy : dy + 8, dx : dx + 6]
        if words[i, 2] >= 2**31:
            expected = expected.flip(2)
        assert torch.equal(out[i], expected)


def test_crops_are_uniform_and_flips_even():
    words = draws.words(7, 1, draws.CROP_FLIP, 81_000)
    offsets = draws.below(words[:, 0], 9) * 9 + draws.below(words[:, 1], 9)
    counts = torch.bincount(offsets, minlength=81).double()
    assert ((counts - 1000) ** 2 / 1000).sum() < 130  # chi-square, 80 degrees of freedom: p = 0.0003
    assert abs((words[:, 2] >> 31).double().mean() - 0.5) < 0.007  # 4 standard deviations


def test_permutation_is_even():
    # Where sample 0 lands over many epochs, and that neighbours are not kept together.
    first = torch.stack([draws.permutation(5, e, 10) for e in range(2000)])
    assert torch.equal(first.sort(1).values[0], torch.arange(10))
    places = torch.bincount((first == 0).nonzero()[:, 1], minlength=10).double()
    assert ((places - 200) ** 2 / 200).sum() < 30  # 9 degrees of freedom: p = 0.0004
    assert abs(((first[:, 1:] - first[:, :-1]) == 1).double().mean() - 0.1) < 0.01


def test_no_augment_and_empty_augment_agree():
    split = make_split()
    assert_equal(run(split, augment=None), run(split, augment=Augment(0, False)))


def test_draws_are_pinned():
    # A change here silently changes every published run.
    assert draws.words(1, 2, draws.CROP_FLIP, 2).tolist() == PINNED


def test_normalise_is_the_formula():
    split = make_split()
    (x, y), *_ = batches.evaluation(split, batch_size=4, mean=MEAN, std=STD)
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    exact = (split.images[:4].double() / 255 - mean) / std
    assert x.dtype == torch.float32 and torch.equal(y, torch.arange(4))
    torch.testing.assert_close(x.double(), exact, rtol=0, atol=2e-6)


def test_evaluation_keeps_the_order():
    labels = [y for _, y in batches.evaluation(make_split(), batch_size=10, mean=MEAN, std=STD)]
    assert [len(y) for y in labels] == [10, 10, 3]
    assert torch.equal(torch.cat(labels), torch.arange(23))


def test_empty_split():
    empty = make_split().subset(slice(0, 0))
    assert run(empty) == []
    assert list(batches.evaluation(empty, batch_size=4, mean=MEAN, std=STD)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.0}, r"batch_size is 2\.0"),
        ({"seed": -1}, "seed is -1"),
        ({"epoch": True}, "epoch is True"),
        ({"start": -2}, "start is -2"),
        ({"mean": (0.5,)}, "mean has 1 values; expected 3"),
        ({"std": (0.5, 0.0, 0.5)}, "expected positive"),
    ],
)
def test_bad_arguments_raise_at_the_call(change, message):
    with pytest.raises(DataError, match=message):
        batches.epoch(
            make_split(), **({"batch_size": 5, "seed": 0, "epoch": 0, "augment": None, "mean": MEAN, "std": STD} | change)
        )


@pytest.mark.parametrize(("field", "value"), [("crop_padding", -1), ("crop_padding", 1.5), ("flip", 1)])
def test_augment_checks_its_fields(field, value):
    with pytest.raises(ValueError, match=f"Augment: {field} is {value}"):
        Augment(**{field: value})


def test_split_checks_its_tensors():
    with pytest.raises(DataError, match=r"images is torch.float32 \(2, 1, 4, 4\)"):
        Split(torch.zeros(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(DataError, match=r"labels is torch.int64 \(3,\)"):
        Split(torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("n", [23, 21])  # the last batch has 3 images, or 1: fewer than pieces
def test_pieces_are_what_the_whole_batch_has_there(mode, n):
    augment = Augment(crop_padding=1, reprob=0.5, mixup=0.8, cutmix=1.0, mixup_mode=mode)
    options = {"batch_size": 10, "augment": augment, "num_classes": n}
    whole = run(make_split(n), **options)
    for own in (range(0, 1), range(1, 2), range(2, 5)):
        ours = run(make_split(n), **options, pieces=5, own=own)
        for (images, targets), (own_images, own_targets) in zip(whole, ours, strict=True):
            places = batches.places(len(targets), own, 5)
            places = places if len(places) else torch.tensor((0, len(targets) - 1)).unique()
            assert torch.equal(own_images, images[places]) and torch.equal(own_targets, targets[places])


def test_pieces_hold_every_image_once_and_partners_together():
    for n, count in ((1, 2), (3, 5), (10, 3), (479, 2), (128, 8)):
        parts = [batches.places(n, range(i, i + 1), count) for i in range(count)]
        assert sorted(i for part in parts for i in part.tolist()) == list(range(n))
        assert all(torch.equal(part, n - 1 - part.flip(0)) for part in parts)
        sizes = [len(part) for part in parts]
        assert max(sizes) - min(sizes) <= 2
        assert torch.equal(torch.cat(parts[1:]).unique(), batches.places(n, range(1, count), count))
