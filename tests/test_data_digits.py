"""The embedded digits, and what `load` does for every set."""

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import cct.data
from cct.data import Augment, DataError, digits, draws


@pytest.fixture(scope="module")
def data():
    return cct.data.load("digits")


def test_split_is_fixed_stratified_and_whole(data):
    assert (len(data.train), len(data.test)) == (1438, 359)
    for split, least, most in ((data.train, 139, 147), (data.test, 35, 37)):
        counts = torch.bincount(split.labels)
        assert len(counts) == 10 and least <= counts.min() and counts.max() <= most
    assert torch.bincount(torch.cat([data.train.labels, data.test.labels])).tolist() == [
        *torch.bincount(torch.from_numpy(load_digits().target)).tolist()
    ]
    assert data.test.labels[:12].tolist() == [9, 3, 5, 5, 0, 7, 3, 5, 0, 3, 6, 5]


def test_images_and_metadata(data):
    assert data.train.images.shape[1:] == (1, *digits.DEFAULT_SIZE)
    assert data.classes == list("0123456789") and data.channels == 1 and data.num_classes == 10
    assert data.augment == Augment(crop_padding=2, flip=False)
    train, _ = draws.stratified(torch.from_numpy(load_digits().target), 0.2)
    pixels = torch.from_numpy(load_digits().images)[train] / 16
    assert data.mean == (round(pixels.mean().item(), 4),) and data.std == (round(pixels.std().item(), 4),)


@pytest.mark.parametrize(("img_size", "expected"), [(8, (8, 8)), ((24, 32), (24, 32)), ([32, 32], (32, 32))])
def test_img_size(img_size, expected):
    data = cct.data.load("digits", img_size=img_size)
    assert data.img_size == expected == tuple(data.train.images.shape[2:])
    if expected == (8, 8):
        assert data.train.images.max() == 255 and data.train.images.unique().numel() == 17


def test_upsampling_is_pillows_bicubic(data):
    first = draws.stratified(torch.from_numpy(load_digits().target), 0.2)[0][0]
    small = torch.from_numpy(load_digits().images[first] * (255 / 16)).round().to(torch.uint8)
    large = Image.fromarray(small.numpy()).resize((16, 16), Image.Resampling.BICUBIC)
    assert data.train.images[0, 0].flatten().tolist() == list(large.tobytes())


def test_val_split(data):
    held = cct.data.load("digits", val_split=0.1)
    assert len(held.train) + len(held.val) == 1438 and 135 <= len(held.val) <= 150
    assert torch.equal(held.test.images, data.test.images)
    assert "held out for validation" in held.split
    again = cct.data.load("digits", val_split=0.1)
    assert torch.equal(held.val.images, again.val.images)


def test_a_class_of_one_stays_in_train():
    kept, held = draws.stratified(torch.tensor([0, 0, 0, 1]), 0.5)
    assert sorted(kept.tolist() + held.tolist()) == [0, 1, 2, 3]
    assert 3 in kept.tolist() and len(held) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "digit"}, "'digit' is unknown; did you mean 'digits'"),
        ({"name": "digits", "img_size": 0}, "img_size is 0"),
        ({"name": "digits", "img_size": "32"}, "img_size is '32'"),
        ({"name": "digits", "img_size": (32,)}, "expected an int or a pair"),
        ({"name": "digits", "img_size": True}, "img_size is True"),
        ({"name": "digits", "val_split": 1.0}, r"val_split is 1\.0"),
        ({"name": "digits", "val_split": 0.999}, None),
    ],
)
def test_bad_arguments(arguments, message):
    if message is None:  # one image of each class is kept
        assert len(cct.data.load(**arguments).train) == 10
        return
    with pytest.raises(DataError, match=message):
        cct.data.load(**arguments)
