"""SVHN, Flowers-102, Oxford Pets and ImageNet folders, from small files of their formats, and every way they can be wrong."""

import dataclasses
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

import cct.data
from cct.data import DataError, flowers, folder, pets, svhn
from cct.data.files import Remote
from cct.data.matlab import read_mat

savemat = pytest.importorskip("scipy.io").savemat
rng = np.random.default_rng(0)


def jpeg(size=(24, 20)):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def put(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


def without_checksums(monkeypatch, module, name, **changes):
    """The published description of a set, for files of our own."""
    spec = getattr(module, name)
    remotes = tuple(Remote(remote.url, "") for remote in spec.remotes)
    spec = dataclasses.replace(spec, remotes=remotes, **changes)
    monkeypatch.setattr(module, name, spec)
    return spec


# SVHN


def house_numbers(path, n, first=1):
    pixels = rng.integers(0, 256, (32, 32, 3, n), dtype=np.uint8)
    labels = ((np.arange(n) + first - 1) % 10 + 1).astype(np.uint8)[:, None]
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"X": pixels, "y": labels}, do_compression=True)
    return pixels, labels


@pytest.fixture
def numbers(tmp_path, monkeypatch):
    without_checksums(monkeypatch, svhn, "SVHN", counts=(20, 10))
    train = house_numbers(tmp_path / "svhn/train_32x32.mat", 20)
    house_numbers(tmp_path / "svhn/test_32x32.mat", 10)
    return tmp_path, train


def test_svhn(numbers):
    root, (pixels, labels) = numbers
    data = cct.data.load("svhn", root)
    assert (len(data.train), len(data.test), data.num_classes, data.channels) == (20, 10, 10, 3)
    assert torch.equal(data.train.images[7], torch.from_numpy(pixels[:, :, :, 7]).permute(2, 0, 1))
    assert data.train.labels.tolist() == [(label % 10) for label in labels[:, 0]] and data.train.labels[9] == 0
    assert data.split == "published split without extra: 20 train, 10 test" and not data.flip
    assert cct.data.load("svhn", root, img_size=16).train.images.shape == (20, 3, 16, 16)
    assert cct.data.check(root).parts[0].facts["data set"] == "svhn"


def test_svhn_wrong(numbers, monkeypatch):
    root, _ = numbers
    file = root / "svhn/train_32x32.mat"
    whole = file.read_bytes()
    for content, message in (
        (whole[:2000], "cannot be read as a MATLAB file"),
        (b"<html>", "cannot be read as a MATLAB file"),
    ):
        file.write_bytes(content)
        with pytest.raises(DataError, match=rf"train_32x32\.mat: {message}"):
            cct.data.load("svhn", root)
    savemat(file, {"X": np.zeros((32, 32, 3, 20), np.uint8)})
    with pytest.raises(DataError, match=r"train_32x32\.mat: lacks the variable y"):
        cct.data.load("svhn", root)
    house_numbers(file, 19)
    with pytest.raises(DataError, match=r"X is uint8 \(32, 32, 3, 19\); expected uint8 \(32, 32, 3, 20\)"):
        cct.data.load("svhn", root)
    savemat(file, {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": np.full((20, 1), 11, np.uint8)})
    with pytest.raises(DataError, match="holds the label 11; expected 1 to 10"):
        cct.data.load("svhn", root)
    for y, message in (
        (np.full((20, 1), 0.5), "y holds fractions"),
        (np.full((20, 1), np.inf), "y holds fractions"),
        (np.ones((1, 20), np.uint8), "y has the shape"),
    ):
        savemat(file, {"X": np.zeros((32, 32, 3, 20), np.uint8), "y": y})
        with pytest.raises(DataError, match=message):
            cct.data.load("svhn", root)
    file.unlink()
    with pytest.raises(DataError, match=r"SVHN: train_32x32\.mat is not here\. Put train_32x32\.mat .* into"):
        cct.data.load("svhn", root, download=False)


@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files(compressed):
    """Against SciPy's writer: types, shapes, small elements, variables in between; and MATLAB's doubles stored as bytes."""
    content = {
        "labels": np.arange(1, 8190, dtype=np.uint16)[None], "text": "abc", "small": np.array([[3]], np.uint8),
        "X": rng.integers(0, 256, (3, 4, 2, 5), dtype=np.uint8), "cell": np.array([1, "a"], dtype=object),
        "whole": np.array([[1.0, -2.0]]), "signed": np.array([[-5], [7]], np.int64), "empty": np.zeros((0, 3), np.int32),
        "ten_bytes_": np.arange(6, dtype=np.int8).reshape(2, 3),
    }  # fmt: skip
    buffer = io.BytesIO()
    savemat(buffer, content, do_compression=compressed)
    names = ("labels", "small", "X", "whole", "signed", "empty", "ten_bytes_")
    for name, array in zip(names, read_mat(buffer.getvalue(), "file", *names), strict=True):
        assert np.array_equal(array, content[name]) and array.shape == content[name].shape and array.dtype.kind in "iu"
    as_bytes = struct.pack("<IIII", 6, 8, 6, 0) + struct.pack("<IIii", 5, 8, 1, 3) + struct.pack("<HHc3x", 1, 1, b"y")
    as_bytes += struct.pack("<HH3Bx", 2, 3, 7, 8, 9)  # a double array, its values kept as unsigned bytes
    data = b" " * 124 + struct.pack("<H", 0x0100) + b"IM" + struct.pack("<II", 14, len(as_bytes)) + as_bytes
    assert read_mat(data, "file", "y")[0].tolist() == [[7, 8, 9]]
    with pytest.raises(DataError, match=r"file: cannot be read as a MATLAB file .text is no array of real numbers"):
        read_mat(buffer.getvalue(), "file", "text")


def test_damaged_matlab_files_are_refused():
    buffer = io.BytesIO()
    savemat(buffer, {"X": np.zeros((4, 4, 3, 5), np.uint8), "y": np.ones((5, 1), np.uint8)})
    whole, refused = buffer.getvalue(), 0
    for _ in range(2000):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), rng.integers(1, 6)):
            damaged[place] = rng.integers(256)
        try:
            read_mat(bytes(damaged[: rng.integers(len(whole))] if rng.random() < 0.3 else damaged), "file", "X", "y")
        except DataError as error:
            refused += str(error).startswith("file: ")
    assert refused > 500


def test_checksums_of_other_sets_are_kept(tmp_path):
    house_numbers(tmp_path / "train_32x32.mat", 2)
    with pytest.raises(DataError, match=r"damaged or changed, its md5 is .*, published is e26dedcc434d2e4c54c9b2d4a06d8373"):
        cct.data.load("svhn", tmp_path, download=False)


# Flowers-102


def official_flowers(root, n=12, archive=False, labels=None, split=None):
    images = {f"jpg/image_{i:05d}.jpg": jpeg() for i in range(1, n + 1)}
    if archive:
        tar(root / "102flowers.tgz", images)
    else:
        for name, content in images.items():
            put(root / name, content)
    savemat(root / "imagelabels.mat", {"labels": labels if labels is not None else np.arange(1, n + 1, dtype=np.uint8)[None]})
    split = split or {"trnid": [[2, 1]], "valid": [[3]], "tstid": [range(4, n + 1)]}
    savemat(root / "setid.mat", {name: np.array(part, dtype=np.uint16) for name, part in split.items()})


@pytest.mark.parametrize("archive", [False, True])
def test_flowers_official(tmp_path, monkeypatch, archive):
    without_checksums(monkeypatch, flowers, "FLOWERS", classes=12)
    root = tmp_path / "flowers-102"
    root.mkdir()
    official_flowers(root, archive=archive)
    data = cct.data.load("flowers102", tmp_path, img_size=16)
    assert [len(s) for s in (data.train, data.val, data.test)] == [2, 1, 9]
    assert data.train.labels.tolist() == [1, 0] and data.split == "official split: 2 train, 1 validation, 9 test"
    streamed = cct.data.load("flowers102", tmp_path, img_size=16, stream=True)
    [batch] = streamed.train.fetch([slice(0, 2)])[1]
    assert torch.equal(batch, data.train.images)
    assert cct.data.load("flowers102", tmp_path, img_size=16, val_split="test").val is None


def test_flowers_wrong(tmp_path, monkeypatch):
    without_checksums(monkeypatch, flowers, "FLOWERS", classes=12)

    def message(**kwargs):
        official_flowers(tmp_path, **kwargs)
        with pytest.raises(DataError) as error:
            cct.data.load("flowers102", tmp_path, download=False)
        return str(error.value)

    labels = np.full((1, 12), 13, np.uint8)
    assert "imagelabels.mat: holds the label 13; expected 1 to 12" in message(labels=labels)
    split = {"trnid": [[1, 13]], "valid": [[2]], "tstid": [[3]]}
    assert "setid.mat: names the image 13; expected 1 to 12" in message(split=split)
    (tmp_path / "jpg/image_00003.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1 of 12 images cannot be read.*\n.*image_00003\.jpg"):
        official = {"trnid": [[1]], "valid": [[2]], "tstid": [range(3, 13)]}
        savemat(tmp_path / "setid.mat", {name: np.array(part, dtype=np.uint16) for name, part in official.items()})
        cct.data.load("flowers102", tmp_path)
    (tmp_path / "jpg/image_00003.jpg").unlink()
    with pytest.raises(DataError, match=r"jpg: 1 images are missing, image_00003\.jpg first; unpack 102flowers\.tgz again"):
        cct.data.load("flowers102", tmp_path)


def test_flowers_archive_wrong(tmp_path, monkeypatch):
    without_checksums(monkeypatch, flowers, "FLOWERS", classes=12)
    official_flowers(tmp_path, archive=True)
    whole = (tmp_path / "102flowers.tgz").read_bytes()
    tar(tmp_path / "102flowers.tgz", {"jpg/image_00001.jpg": jpeg()})
    with pytest.raises(DataError, match=r"102flowers\.tgz: lacks jpg/image_00002\.jpg, .* and 5 more; delete it"):
        cct.data.load("flowers102", tmp_path)
    (tmp_path / "102flowers.tgz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"102flowers\.tgz: cannot be read"):
        cct.data.load("flowers102", tmp_path)


def test_flowers_resplit(tmp_path, monkeypatch):
    monkeypatch.setattr(flowers, "FLOWERS", dataclasses.replace(flowers.FLOWERS, classes=11))
    for kind in range(1, 12):
        for part, n in (("train", 2), ("valid", 1)):
            for i in range(n):
                put(tmp_path / part / str(kind) / f"{i}.jpg", jpeg())
    put(tmp_path / "test/unknown.jpg", jpeg())  # its 819 test images have no labels
    data = cct.data.load("flowers102_resplit", tmp_path, img_size=16, val_split="valid")
    assert (len(data.train), len(data.test), data.val) == (22, 11, None)
    assert data.test.labels.tolist() == [0, 9, 10, *range(1, 9)]  # folders in the order of their names: 1, 10, 11, 2, ...
    assert data.split == "re-split (published: 6552 train, 818 valid): 22 train, 11 valid; tested on valid"
    (tmp_path / "train/11").rename(tmp_path / "train/rose")
    (tmp_path / "valid/11").rename(tmp_path / "valid/rose")
    with pytest.raises(DataError, match=r"train: has 11 classes; the folder '11' is missing, expected are 1 to 11"):
        cct.data.load("flowers102_resplit", tmp_path)
    with pytest.raises(DataError, match=r"re-split: there are no folders train/ and valid/, .*--data flowers102"):
        cct.data.load("flowers102_resplit", tmp_path / "train")


# Oxford Pets


def pet_files(n=4):
    lists, images = {"trainval": "", "test": ""}, {}
    for number, breed in enumerate(("Abyssinian", "great_pyrenees", "Sphynx")):
        for i in range(n):
            lists["test" if i == 0 else "trainval"] += f"{breed}_{i} {number + 1} 1 1\n"
            images[f"images/{breed}_{i}.jpg"] = jpeg()
    annotations = {f"annotations/{name}.txt": f"# a comment\n{text}".encode() for name, text in lists.items()}
    return annotations, images


@pytest.mark.parametrize("archive", [False, True])
def test_pets(tmp_path, monkeypatch, archive):
    without_checksums(monkeypatch, pets, "PETS", classes=3)
    annotations, images = pet_files()
    if archive:
        tar(tmp_path / "annotations.tar.gz", annotations)
        tar(tmp_path / "images.tar.gz", images)
    else:
        for name, content in (annotations | images).items():
            put(tmp_path / "oxford-iiit-pet" / name, content)
    data = cct.data.load("pets", tmp_path, img_size=16)
    assert data.classes == ["Abyssinian", "great_pyrenees", "Sphynx"] and (len(data.train), len(data.test)) == (9, 3)
    assert data.test.labels.tolist() == [0, 1, 2] and data.split == "published split: 9 trainval, 3 test"


def test_pets_wrong(tmp_path, monkeypatch):
    without_checksums(monkeypatch, pets, "PETS", classes=3)
    annotations, images = pet_files()
    for name, content in (annotations | images).items():
        put(tmp_path / name, content)
    line = tmp_path / "annotations/test.txt"
    for text, message in (
        ("Abyssinian_1 38 1 1", r"test\.txt, line 1: got 'Abyssinian_1 38 1 1'; expected an image and its class from 1 to 3"),
        ("Abyssinian_1", r"test\.txt, line 1: got 'Abyssinian_1'"),
        ("Abyssinian_9 1 1 1", r"images: 1 images are missing, images/Abyssinian_9\.jpg first"),
    ):
        line.write_text(text)
        with pytest.raises(DataError, match=message):
            cct.data.load("pets", tmp_path)
    (tmp_path / "annotations/trainval.txt").write_text("Abyssinian_1 1 1 1\n")
    line.write_text("Abyssinian_2 1 1 1\n")
    with pytest.raises(DataError, match="the lists name 1 classes; expected 3"):
        cct.data.load("pets", tmp_path)
    line.unlink()
    with pytest.raises(DataError, match=r"test\.txt: cannot be read"):
        cct.data.load("pets", tmp_path)
    with pytest.raises(DataError, match=r"Oxford-IIIT Pet: annotations\.tar\.gz is not here"):
        cct.data.load("pets", tmp_path / "elsewhere", download=False)


# ImageNet


def test_imagenet(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "IMAGENET_CLASSES", 2)
    for part in ("train", "val"):
        for wnid in ("n01440764", "n15075141"):
            put(tmp_path / part / wnid / f"{wnid}_1.JPEG", jpeg((40, 30)))
    data = cct.data.load("imagenet", tmp_path, stream=True, crop_pct=0.9)
    assert (data.img_size, data.tested_on, data.preprocessing["crop_pct"]) == ((224, 224), "val", 0.9)
    assert cct.data.load("imagenet", tmp_path, stream=True, val_split="valid").split.endswith("there is no test/")
    with pytest.raises(DataError, match="val_split is 'tset'; expected a number between 0 and 1, val, valid"):
        cct.data.load("imagenet", tmp_path, val_split="tset")
    monkeypatch.setattr(folder, "IMAGENET_CLASSES", 1000)
    with pytest.raises(DataError, match="train: holds 2 classes; ImageNet-1k has 1000"):
        cct.data.load("imagenet", tmp_path)
    monkeypatch.setattr(folder, "IMAGENET_CLASSES", 2)
    (tmp_path / "val").rename(tmp_path / "held")
    with pytest.raises(DataError, match="there is no val/ beside the images"):
        cct.data.load("imagenet", tmp_path)
    with pytest.raises(DataError, match="imagenet: data_dir is missing"):
        cct.data.load("imagenet")
