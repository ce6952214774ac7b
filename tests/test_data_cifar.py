"""CIFAR in every published form: small files made here, and the real binary files where they are."""

import dataclasses
import importlib.util
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

import cct.data
from cct.data import DataError, cifar, files, published

COUNTS = (20, 10)


def python_2_pickle(batch):
    """A dict as Python 2 pickled it: protocol 2, byte strings as SHORT_BINSTRING, numpy by its old module name."""

    def string(s):
        s = s.encode()
        return b"U" + bytes([len(s)]) + s if len(s) < 256 else b"T" + len(s).to_bytes(4, "little") + s

    def value(v):
        if isinstance(v, str):
            return string(v)
        if isinstance(v, list):
            return b"](" + b"".join(value(x) for x in v) + b"e"
        if isinstance(v, int):
            return b"K" + bytes([v])
        raw = v.tobytes()
        shape = b"".join(b"M" + s.to_bytes(2, "little") for s in v.shape)
        dtype = (
            b"cnumpy\ndtype\n"
            + string("u1")
            + b"K\x00K\x01\x87R(K\x03"
            + string("|")
            + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + string("b") + b"\x87R"
        return array + b"(K\x01" + shape + b"\x86" + dtype + b"\x89T" + len(raw).to_bytes(4, "little") + raw + b"tb"

    return b"\x80\x02}(" + b"".join(string(k) + value(v) for k, v in batch.items()) + b"u."


def modern_pickle(batch):
    return pickle.dumps({k.encode(): v for k, v in batch.items()}, protocol=4)


def arrays(name):
    """For each file of the sets: pixels and labels, every pixel different enough to notice a wrong order."""
    rng = np.random.default_rng(len(name))
    classes = len(published.CIFAR[name].classes)
    form = published.CIFAR[name].forms[0]
    out = []
    for part, count in zip((form.train, form.test), COUNTS, strict=True):
        for _ in part:
            n = count // len(part)
            out.append((rng.integers(0, 256, (n, 3072), dtype=np.uint8), rng.integers(0, classes, n)))
    return out


def render(name, form, pixels, labels, dump):
    if not form.pickled:
        coarse = [] if name == "cifar10" else [labels // 5]
        return np.concatenate([np.stack([*coarse, labels], 1).astype(np.uint8), pixels], 1).tobytes()
    keys = {"labels": labels.tolist()} if name == "cifar10" else {"fine_labels": labels.tolist(), "coarse_labels": []}
    return dump({"data": pixels, "filenames": ["a.png"], **keys})


def build(name, number, folder, dump=python_2_pickle):
    """Write one form of a set of 20 + 10 images; returns the form with the checksums of these files."""
    form = published.CIFAR[name].forms[number]
    blobs = [render(name, form, *a, dump) for a in arrays(name)]
    folder.mkdir(parents=True)
    for file, blob in zip([*form.train, *form.test], blobs, strict=True):
        (folder / file).write_bytes(blob)
    sums = [files.checksum(b, "md5" if form.pickled else "sha256") for b in blobs]
    train, test = dict(zip(form.train, sums, strict=False)), dict(zip(form.test, sums[-1:], strict=True))
    return dataclasses.replace(form, train=train, test=test)


@pytest.fixture
def make(monkeypatch, tmp_path):
    """make(name, number of the form, packed) -> the folder to give as data_dir."""
    monkeypatch.setenv("CCT_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def make(name, number, packed=False, dump=python_2_pickle, check=True):
        root = tmp_path / "data"
        form = build(name, number, root / published.CIFAR[name].forms[number].folder, dump)
        if not check:
            form = dataclasses.replace(form, train=dict.fromkeys(form.train), test=dict.fromkeys(form.test))
        forms = [dataclasses.replace(f, train=dict(f.train), test=dict(f.test)) for f in published.CIFAR[name].forms]
        forms[number] = form
        spec = dataclasses.replace(published.CIFAR[name], counts=COUNTS, forms=tuple(forms))
        monkeypatch.setitem(published.CIFAR, name, spec)
        if packed is not False:
            with tarfile.open(root / form.archive, "w:gz") as tar:
                tar.add(root / form.folder, packed + form.folder)
            (root / form.folder).rename(tmp_path / "unpacked")
        return root

    return make


SETS = ["cifar10", "cifar100"]


@pytest.mark.parametrize("packed", [False, "", "./"], ids=["folder", "tar", "tar-dot"])
@pytest.mark.parametrize("number", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize("name", SETS)
def test_load(make, name, number, packed):
    root = make(name, number, packed)
    data = cct.data.load(name, root, download=False)
    expected = arrays(name)
    pixels = np.concatenate([p for p, _ in expected]).reshape(-1, 3, 32, 32)
    labels = np.concatenate([y for _, y in expected])
    assert torch.equal(torch.cat([data.train.images, data.test.images]), torch.from_numpy(pixels))
    assert torch.equal(torch.cat([data.train.labels, data.test.labels]), torch.from_numpy(labels))
    assert (len(data.train), len(data.test)) == COUNTS and data.flip and data.img_size == (32, 32)
    if packed is not False:
        assert [p.name for p in root.iterdir()] == [published.CIFAR[name].forms[number].archive]  # nothing extracted
    assert cct.data.check(root).parts[0].counts["test"] == np.bincount(labels[20:], minlength=data.num_classes).tolist()


@pytest.mark.parametrize("dump", [python_2_pickle, modern_pickle])
def test_both_pickles(make, dump):
    assert len(cct.data.load("cifar10", make("cifar10", 0, dump=dump), download=False).train) == 20


def test_the_folder_itself_as_data_dir_and_img_size(make):
    root = make("cifar10", 1)
    data = cct.data.load("cifar10", root / "cifar-10-batches-bin", img_size=(24, 16), download=False)
    assert data.train.images.shape == (20, 3, 24, 16)


def test_class_names():
    names = published.CIFAR["cifar100"].classes
    assert len(set(names)) == 100 and list(names) == sorted(names)
    assert names[0] == "apple" and names[58] == "pickup_truck" and names[99] == "worm"


class Evil:
    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "wrap", [lambda e: e, lambda e: {b"data": e, b"labels": []}, lambda e: {e: 1}], ids=["bare", "value", "key"]
)
def test_malicious_pickle_is_refused(tmp_path, protocol, wrap):
    mark = tmp_path / "ran"
    for evil in (
        Evil(exec, f"open({str(mark)!r}, 'w')"),
        Evil(os.system, f"touch {mark}"),
        Evil(tmp_path.__class__.touch, mark),
    ):
        data = pickle.dumps(wrap(evil), protocol)
        with pytest.raises(DataError, match=r"^FILE: refused: the pickle asks for .*; do not use this file$"):
            cifar.parse_python(data, "FILE", 1, "labels")
    assert not mark.exists()


@pytest.mark.parametrize(
    "data",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x02\x8c\x05numpy\x8c\x0bndarray.dump\x93.",
        b"Pid\n.",
    ],
)
def test_refused_opcodes(data):
    with pytest.raises(DataError, match=r"^FILE: (refused: the pickle asks for|cannot be read)"):
        cifar.parse_python(data, "FILE", 1, "labels")


def test_a_changed_pickle_is_not_even_read(make, monkeypatch):
    root = make("cifar10", 0)
    (root / "cifar-10-batches-py/data_batch_1").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    monkeypatch.setattr(cifar, "parse_python", lambda *a: pytest.fail("unpickled a file with a wrong checksum"))
    with pytest.raises(DataError, match=r"data_batch_1: damaged or changed, its md5"):
        cct.data.load("cifar10", root, download=False)


@pytest.mark.parametrize("number", [0, 1], ids=["python", "binary"])
@pytest.mark.parametrize(("name", "which"), [("cifar10", 0), ("cifar10", 3), ("cifar10", 5), ("cifar100", 0), ("cifar100", 1)])
@pytest.mark.parametrize("check", [True, False], ids=["checksum", "structure"])
def test_truncation_is_named(make, name, number, which, check):
    root = make(name, number, check=check)
    form = published.CIFAR[name].forms[number]
    path = root / form.folder / [*form.train, *form.test][which]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"delete it|replace it") as error:
        cct.data.load(name, root, download=False)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("number", [0, 1], ids=["python", "binary"])
def test_one_changed_pixel_is_named(make, number):
    root = make("cifar10", number)
    path = root / published.CIFAR["cifar10"].forms[number].folder / [*published.CIFAR["cifar10"].forms[number].train][1]
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match="damaged or changed") as error:
        cct.data.load("cifar10", root, download=False)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_is_named(make):
    root = make("cifar10", 1)
    (root / "cifar-10-batches-bin/data_batch_4.bin").unlink()
    with pytest.raises(DataError, match=r"cifar-10-batches-bin: data_batch_4.bin is missing"):
        cct.data.load("cifar10", root, download=False)


@pytest.mark.parametrize("cut", [0, 1, 100, 0.5, 0.98])
def test_a_truncated_archive_is_named(make, cut):
    root = make("cifar10", 1, "")
    path = root / "cifar-10-binary.tar.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(cut * len(whole)) if isinstance(cut, float) else cut])
    with pytest.raises(DataError, match=r"cannot be read|lacks cifar-10-batches-bin/") as error:
        cct.data.load("cifar10", root, download=False)
    assert str(error.value).startswith(f"{path}: ") and "delete it" in str(error.value)


def test_links_in_an_archive_are_not_followed(make, tmp_path):
    root = make("cifar10", 1, "")
    (tmp_path / "secret").write_bytes(b"secret")
    with tarfile.open(root / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for i in range(1, 6):
            tar.add(tmp_path / f"unpacked/data_batch_{i}.bin", f"cifar-10-batches-bin/data_batch_{i}.bin")
        link = tarfile.TarInfo("cifar-10-batches-bin/test_batch.bin")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret")
        tar.addfile(link)
    with pytest.raises(DataError, match=r"lacks cifar-10-batches-bin/test_batch.bin"):
        cct.data.load("cifar10", root, download=False)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([1], "holds a list; expected a dict with data and labels"),
        ({"labels": []}, "data is NoneType; expected uint8"),
        ({"data": np.zeros((2, 3072)), "labels": [0, 0]}, r"data is float64 \(2, 3072\); expected uint8 \(2, 3072\)"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [0]}, r"data is uint8 \(1, 3072\)"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "labels is no list of 2 ints"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [0, 0.5]}, "labels is no list of 2 ints"),
        ({"data": np.zeros((2, 3072), np.uint8), "fine_labels": [0, 0]}, "labels is no list of 2 ints"),
    ],
)
def test_wrong_content_of_a_pickle(batch, message):
    with pytest.raises(DataError, match="^FILE: " + message):
        cifar.parse_python(pickle.dumps(batch, 4), "FILE", 2, "labels")


@pytest.mark.parametrize(("number", "label"), [(0, 10), (0, -1), (1, 10)])
def test_label_out_of_range(make, number, label):
    root = make("cifar10", number, check=False)
    form = published.CIFAR["cifar10"].forms[number]
    pixels = np.zeros((4, 3072), np.uint8)
    if form.pickled:
        blob = pickle.dumps({"data": pixels, "labels": [0, 1, label, 2]}, 4)
    else:
        blob = b"".join(bytes([y]) + p.tobytes() for y, p in zip([0, 1, label, 2], pixels, strict=True))
    (root / form.folder / next(iter(form.train))).write_bytes(blob)
    with pytest.raises(DataError, match=f"data_batch_1.*: holds the label {label}; expected 0 to 9"):
        cct.data.load("cifar10", root, download=False)


def test_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"CIFAR-100: cifar-100-python.tar.gz is not here. Put .* into {tmp_path}"):
        cct.data.load("cifar100", tmp_path, download=False)


def test_download(make, tmp_path, monkeypatch):
    root = make("cifar10", 0, "")
    archive = root / "cifar-10-python.tar.gz"
    remote = files.Remote(archive.as_uri(), files.checksum(archive.read_bytes()))
    monkeypatch.setitem(published.CIFAR, "cifar10", dataclasses.replace(published.CIFAR["cifar10"], remote=remote))
    assert len(cct.data.load("cifar10", tmp_path / "new").test) == 10
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["cifar-10-python.tar.gz"]


def test_real_cifar10(shared_data, tmp_path):
    spec = importlib.util.spec_from_file_location("unpack", shared_data / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    unpack.main("cifar10", tmp_path)
    data = cct.data.load("cifar10", tmp_path, download=False)
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert torch.bincount(data.test.labels).tolist() == [1000] * 10
    assert data.train.labels[:4].tolist() == [6, 9, 9, 4] and data.train.images[0, :, 0, 0].tolist() == [59, 62, 63]
