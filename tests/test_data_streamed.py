"""Decoding while training: the same pixels as in memory, crops cut from the picture itself, prefetch in bounds."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cct.data
from cct.data import Augment, DataError, batches, streamed
from cct.data.augment import crops
from cct.data.images import as_array
from cct.data.streamed import AHEAD, Frame, Picture, StreamedSplit

rng = np.random.default_rng(0)


@pytest.fixture
def photos(tmp_path):
    """Two classes of 9 and 5 pictures, of different sizes."""
    for name in ("cat", "dog"):
        for part, n in (("train", 9), ("val", 5)):
            for i in range(n):
                path = tmp_path / part / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                coarse = rng.integers(0, 256, (5 + i, 8, 3), dtype=np.uint8)
                Image.fromarray(coarse.repeat(8, 0).repeat(8, 1)).save(path)
    return tmp_path


def load(photos, **kwargs):
    return cct.data.load("folder", photos, img_size=(24, 20), **kwargs)


def epoch(data, augment, **kwargs):
    usual = {"batch_size": 4, "seed": 1, "epoch": 2, "num_classes": 2, "mean": data.mean, "std": data.std}
    return list(batches.epoch(data.train, augment=augment, **{**usual, **kwargs}))


@pytest.mark.parametrize("augment", [None, Augment(crop_padding=2), Augment(aa="rand-m9-mstd0.5-inc1", mixup=0.8, reprob=0.5)])
def test_as_in_memory(photos, augment):
    """Where the whole picture is used, a streamed split gives bit for bit what one in memory does."""
    there, here = load(photos, stream=True), load(photos, stream=False)
    assert isinstance(there.train, StreamedSplit) and there.split == here.split and len(there.train) == 18
    for (x, y), (a, b) in zip(epoch(there, augment), epoch(here, augment), strict=True):
        assert torch.equal(x, a) and torch.equal(y, b)
    images = [x for x, _ in batches.evaluation(there.test, batch_size=3, mean=there.mean, std=there.std)]
    again = [x for x, _ in batches.evaluation(here.test, batch_size=3, mean=here.mean, std=here.std)]
    assert [len(x) for x in images] == [3, 3, 3, 1] and all(map(torch.equal, images, again))


def test_evaluation_keeps_crop_pct(photos):
    there, here = load(photos, stream=True, crop_pct=0.7), load(photos, stream=False, crop_pct=0.7)
    whole = load(photos, stream=False)
    [a], [b], [c] = (list(d.test.fetch([slice(0, 10)])[1]) for d in (there, here, whole))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(here.train.images, whole.train.images)  # the random crop cuts enough


def test_images_held_out_of_train_are_evaluated_as_others(photos):
    """Also in memory, where they were read with the whole images of `train`."""
    (photos / "val").rename(photos / "unused")
    of_classes = {s: cct.data.load("folder", photos / "train", img_size=24, stream=s, crop_pct=0.7) for s in (True, False)}
    (photos / "unused").rename(photos / "test")
    asked = {s: load(photos, stream=s, crop_pct=0.7, val_split=0.2) for s in (True, False)}
    whole = load(photos, stream=False, val_split=0.2)
    for there, here in ((of_classes[True].test, of_classes[False].test), (asked[True].val, asked[False].val)):
        assert isinstance(here, cct.data.Split) and torch.equal(here.labels, there.labels)
        [a], [b] = (list(split.fetch([slice(0, 4)])[1]) for split in (there, here))
        assert torch.equal(a, b)
    assert not torch.equal(asked[False].val.images, whole.val.images)
    for part in (slice(0, 3), torch.arange(3)):  # whole images are left to train on
        assert torch.equal(asked[False].train.subset(part).images, whole.train.images[:3])


def test_resized_crops_are_cut_from_the_picture(photos):
    """Box, filter and mirror image are those that are drawn for the sample, whatever the batch."""
    data = load(photos, stream=True)
    augment = Augment(scale=(0.1, 0.5), hflip=0.5, vflip=0.5)
    order, turns = torch.randperm(18), set()
    rest, read = data.train.fetch([order], augment, seed=3, epoch=4)
    assert (rest.scale, rest.crop_padding, rest.flip) == (None, 0, False)
    [batch] = read
    for image, i in zip(batch, order.tolist(), strict=True):
        picture = Image.open(data.train.pictures[i].where)
        size = picture.size[::-1]
        _, args = crops.resized_crop(3, 4, torch.tensor([i]), size, (0.1, 0.5), (3 / 4, 4 / 3), "random", 0.5, 0.5)
        top, left, height, width, _, flips, filter = (int(v) for v in args[0])
        turns.add(flips)
        cut = picture.crop((left, top, left + width, top + height))
        expected = torch.from_numpy(as_array(cut.resize((20, 24), {1: Image.BILINEAR, 2: Image.BICUBIC}[filter])))
        expected = expected.flip(-1) if flips & 1 else expected
        assert torch.equal(image, expected.flip(-2) if flips & 2 else expected)
    assert turns == {0, 1, 2, 3}
    first, second = epoch(data, augment), epoch(data, augment)
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))
    resumed = epoch(data, augment, start=3)
    assert torch.equal(resumed[0][0], first[3][0]) and len(resumed) == len(first) - 3
    assert not torch.equal(epoch(data, augment, epoch=5)[0][0], first[0][0])


def test_reads_ahead_and_no_further(photos, monkeypatch):
    """At most AHEAD + 1 batches are in work, and an abandoned epoch leaves no thread."""
    started = []
    whole = Frame.read
    monkeypatch.setattr(Frame, "read", lambda self, picture, *a: started.append(picture) or whole(self, picture, *a))
    split = load(photos, stream=True).train
    before = set(threading.enumerate())
    _, read = split.fetch([slice(i, i + 2) for i in range(0, 18, 2)])
    next(read)
    assert AHEAD == 2 and 2 <= len(started) <= 6
    read.close()
    assert set(threading.enumerate()) <= before and len(started) <= 6


def test_a_picture_that_does_not_decode_is_named(photos):
    split = load(photos, stream=True).train
    file = Path(split.pictures[3].where)
    file.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"cat/3\.png: cannot be read as an image .*; replace or remove it"):
        list(split.fetch([slice(0, 6)])[1])
    file.unlink()
    with pytest.raises(DataError, match=r"cat/3\.png: there is no such file"):
        list(split.fetch([slice(0, 6)])[1])


def test_parts_and_bytes(photos):
    data = load(photos, stream=True, val_split=0.2, samples_per_class=4)
    assert (len(data.train), len(data.val), data.train.labels.tolist()) == (8, 4, [0] * 4 + [1] * 4)
    split = data.train
    assert split.to("cpu") is split and split.img_size == (24, 20) and split.channels == 3
    [whole], [part] = split.fetch([slice(0, 8)])[1], split.subset(torch.tensor([5, 1])).fetch([slice(0, 2)])[1]
    assert torch.equal(part, whole[[5, 1]])
    content = [Picture("archive/a", p.label, Path(p.where).read_bytes()) for p in split.pictures]
    assert torch.equal(next(StreamedSplit(content, split.frame).fetch([slice(0, 8)])[1]), whole)


def test_memory_is_what_a_container_may_have(tmp_path, monkeypatch):
    limit, none = tmp_path / "memory.max", tmp_path / "unlimited"
    limit.write_text("1048576\n"), none.write_text("max\n")
    for paths, expected in (((none,), None), ((tmp_path / "missing", limit), 1048576)):
        monkeypatch.setattr(cct.data.pictures, "CONTAINER_LIMITS", paths)
        whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert cct.data.pictures._memory() == (expected or whole)


def test_half_of_the_memory_decides(photos, monkeypatch):
    needed = 28 * 3 * 24 * 20
    for memory, expected in ((2 * needed, cct.data.Split), (2 * needed - 2, streamed.StreamedSplit)):
        monkeypatch.setattr(cct.data.pictures, "_memory", lambda memory=memory: memory)
        assert isinstance(load(photos).train, expected)


def test_sets_of_arrays_have_nothing_to_decode():
    with pytest.raises(DataError, match=r"stream: got True; digits holds no image files, so expected None"):
        cct.data.load("digits", stream=True)
    with pytest.raises(DataError, match=r"crop_pct: got 0\.9; digits holds no image files"):
        cct.data.load("digits", crop_pct=0.9)


def test_class_subsets_are_nested():
    some, more = (cct.data.load("digits", samples_per_class=n) for n in (5, 30))
    assert torch.bincount(some.train.labels).tolist() == [5] * 10 and len(more.train) == 300
    assert int(some.train.images.sum()) == 984179  # the same ones in every version
    rows = {tuple(image.flatten().tolist()) for image in more.train.images}
    assert all(tuple(image.flatten().tolist()) in rows for image in some.train.images)
    assert more.split.endswith("; 30 training images of each class") and len(more.test) == 359
    with pytest.raises(DataError, match=r"samples_per_class is 1000; embedded in scikit-learn has 142 training images of 0"):
        cct.data.load("digits", samples_per_class=1000)


def test_mean_and_std_of_the_caller():
    data = cct.data.load("digits", mean=(0.5,), std=[0.25])
    assert (data.mean, data.std) == ((0.5,), (0.25,)) and data.preprocessing["mean"] == [0.5]
    with pytest.raises(DataError, match=r"mean: got 3 values; the images of digits have 1 channel"):
        cct.data.load("digits", mean=(0.5, 0.5, 0.5))


def test_interpolation_reaches_arrays():
    a, b = (cct.data.load("digits", img_size=24, interpolation=name) for name in ("bicubic", "nearest"))
    assert not torch.equal(a.train.images, b.train.images) and b.preprocessing["interpolation"] == "nearest"
