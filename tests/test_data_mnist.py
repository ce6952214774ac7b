"""idx files: made here in small, and the real ones where they are."""

import dataclasses
import gzip
import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import cct.data
from cct.data import DataError, files, mnist, published

TRAIN, TEST = 20, 10


def idx(array):
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def contents(seed):
    rng = np.random.default_rng(seed)
    arrays = {}
    for prefix, n in (("train", TRAIN), ("t10k", TEST)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{prefix}-labels-idx1-ubyte"] = ((np.arange(n) + seed) % 10).astype(np.uint8)
    return arrays


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Two sets of 20 + 10 images with known checksums, the first of them written in the layout of torchvision."""
    monkeypatch.setenv("CCT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    arrays = {}
    for seed, name in enumerate(("mnist", "fashion_mnist")):
        arrays[name] = contents(seed)
        zipped = [gzip.compress(idx(arrays[name][file]), mtime=0) for file in published.FILES]
        spec = dataclasses.replace(
            published.MNIST[name],
            counts=(TRAIN, TEST),
            sha256=tuple(files.checksum(idx(arrays[name][file])) for file in published.FILES),
            gz_sha256=tuple(files.checksum(z) for z in zipped),
            url=(tmp_path / "server" / name).as_uri() + "/",
        )
        monkeypatch.setitem(published.MNIST, name, spec)
    write(tmp_path / "data/MNIST/raw", arrays["mnist"])
    return arrays


def write(folder, arrays, zipped=True):
    folder.mkdir(parents=True, exist_ok=True)
    for file, array in arrays.items():
        if zipped:
            (folder / f"{file}.gz").write_bytes(gzip.compress(idx(array), mtime=0))
        else:
            (folder / file).write_bytes(idx(array))


def test_load(small, tmp_path):
    data = cct.data.load("mnist", tmp_path / "data", download=False)
    assert data.img_size == (32, 32) and data.pad == 2 and data.channels == 1 and not data.flip
    pixels = torch.from_numpy(small["mnist"]["t10k-images-idx3-ubyte"])[:, None]
    assert torch.equal(data.test.images, F.pad(pixels, (2, 2, 2, 2)))
    assert data.test.labels.tolist() == [i % 10 for i in range(TEST)] and len(data.train) == TRAIN
    assert data.source == str(tmp_path / "data/MNIST/raw")


@pytest.mark.parametrize("folder", ["", "mnist", "mnist/raw"])
def test_plain_idx_in_any_layout_and_the_search_order(small, tmp_path, monkeypatch, folder):
    write(tmp_path / "other" / folder, small["mnist"], zipped=False)
    monkeypatch.setenv("CCT_DATA", str(tmp_path / "other"))
    assert cct.data.load("mnist", download=False).source == str(tmp_path / "other" / folder)
    assert cct.data.load("mnist", tmp_path / "data", download=False).source == str(tmp_path / "data/MNIST/raw")


@pytest.mark.parametrize(("size", "pad"), [(28, 0), (32, 2), (64, 4), ((48, 64), 3)])
def test_img_size(small, tmp_path, size, pad):
    data = cct.data.load("mnist", tmp_path / "data", img_size=size, download=False)
    assert data.pad == pad and data.train.images.shape[2:] == data.img_size
    border = data.train.images[:, :, pad:-pad, pad:-pad] if pad else data.train.images
    assert border.sum() == data.train.images.sum() and border.float().mean() > 90


def damage(data, how):
    return {
        "empty": b"",
        "header": data[:9],
        "short": data[:-1],
        "long": data + b"x",
        "magic": b"\0\0\x0d" + data[3:],
        "shape": data[:7] + b"\x07" + data[8:],
        "bit": data[:-1] + bytes([data[-1] ^ 1]),
    }[how]


@pytest.mark.parametrize("file", published.FILES)
@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("empty", "starts with nothing"),
        ("header", "truncated, expected"),
        ("short", "truncated, expected"),
        ("long", "too long, expected"),
        ("magic", "starts with 00000d0"),
        ("shape", r"its header says \(7,( 28, 28)?\); expected"),
        ("bit", "damaged or changed, its sha256"),
    ],
)
def test_damage_is_named(small, tmp_path, file, how, message):
    path = tmp_path / "data/MNIST/raw" / f"{file}.gz"
    path.write_bytes(gzip.compress(damage(idx(small["mnist"][file]), how)))
    with pytest.raises(DataError, match=message) as error:
        cct.data.load("mnist", tmp_path / "data", download=False)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("cut", [0.0, 0.5, 0.99])
def test_a_truncated_or_changed_gz_is_named(small, tmp_path, cut):
    path = tmp_path / "data/MNIST/raw/train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole))])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte.gz: .*(cannot be read|starts with nothing)"):
        cct.data.load("mnist", tmp_path / "data", download=False)
    path.write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=r"cannot be read \(Not a gzipped file"):
        cct.data.load("mnist", tmp_path / "data", download=False)


def test_label_out_of_range(small, tmp_path, monkeypatch):
    labels = np.full(TEST, 10, np.uint8)
    path = tmp_path / "data/MNIST/raw/t10k-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(idx(labels)))
    spec = published.MNIST["mnist"]
    monkeypatch.setitem(published.MNIST, "mnist", dataclasses.replace(spec, sha256=(*spec.sha256[:3], None)))
    with pytest.raises(DataError, match="holds the label 10; expected 0 to 9"):
        cct.data.load("mnist", tmp_path / "data", download=False)


def test_the_other_set_with_the_same_file_names(small, tmp_path):
    with pytest.raises(mnist.WrongSet, match="belongs to MNIST, not to Fashion-MNIST"):
        cct.data.load("fashion_mnist", tmp_path / "data/MNIST/raw", download=False)
    report = cct.data.check(tmp_path / "data/MNIST/raw")
    assert report.ok and [part.facts["data set"] for part in report.parts] == ["mnist"]
    write(tmp_path / "alone", small["fashion_mnist"])
    report = cct.data.check(tmp_path / "alone")
    assert report.ok and [part.facts["data set"] for part in report.parts] == ["fashion_mnist"]
    write(tmp_path / "both/mnist", small["mnist"])
    write(tmp_path / "both/fashion_mnist", small["fashion_mnist"])
    report = cct.data.check(tmp_path / "both")
    assert report.ok and [part.facts["data set"] for part in report.parts] == ["mnist", "fashion_mnist"]


def test_check_names_a_damaged_file_once(small, tmp_path):
    path = tmp_path / "data/MNIST/raw/train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-20])
    report = cct.data.check(tmp_path / "data/MNIST/raw")
    assert not report.ok and len(report.parts) == 1 and str(path) in report.parts[0].problems[0]
    assert str(path) in str(report).replace("\n", "")


def test_missing_file_is_downloaded(small, tmp_path):
    write(tmp_path / "server/fashion_mnist", small["fashion_mnist"])
    data = cct.data.load("fashion_mnist", tmp_path / "new")
    assert data.source == str(tmp_path / "new/fashion_mnist") and data.flip
    assert sorted(p.name for p in (tmp_path / "new/fashion_mnist").iterdir()) == sorted(f"{f}.gz" for f in published.FILES)


def test_offline_says_which_file_to_put_where(small, tmp_path):
    with pytest.raises(DataError) as error:
        cct.data.load("fashion_mnist", tmp_path / "new")
    message = str(error.value)
    for part in ("Fashion-MNIST: train-images-idx3-ubyte.gz", "could not be downloaded", f"into {tmp_path}/new/fashion_mnist"):
        assert part in message
    with pytest.raises(DataError, match=r"is not here\. Put train-images-idx3-ubyte.gz"):
        cct.data.load("fashion_mnist", tmp_path / "new", download=False)


def test_data_dir_that_is_a_file(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file; give the folder that holds it"):
        cct.data.load("mnist", tmp_path / "file")


@pytest.mark.parametrize(
    ("name", "count"),
    [("mnist", [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]), ("fashion_mnist", [1000] * 10)],
)
def test_real(shared_data, name, count):
    data = cct.data.load(name, shared_data, img_size=28, download=False)
    assert torch.bincount(data.test.labels).tolist() == count
    pixels = data.train.images.double() / 255
    assert data.mean == (round(pixels.mean().item(), 4),) and data.std == (round(pixels.std().item(), 4),)
