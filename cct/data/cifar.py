"""CIFAR-10 and CIFAR-100 (A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009): 50000 + 10000
colour images of 32 x 32, from the python or the binary version, unpacked or as the tar.gz, which is read without extracting.

CIFAR-100 has its 100 fine classes.
"""

from __future__ import annotations

import contextlib
import io
import pickle
from pathlib import Path

import torch

from .dataset import DataError, DataSet, Split
from .files import expect_checksum, obtain, read_tar
from .images import fit_all
from .pictures import Reading
from .published import CIFAR as SETS
from .published import Form

with contextlib.suppress(ImportError):  # only files need it
    import numpy as np

SIZE = (32, 32)
PIXELS = 3 * 32 * 32


def find(name: str, roots) -> tuple[Form, Path] | None:
    """The first version that is there: its folder, a folder that holds its files directly, or its archive."""
    for root in roots:
        for place in (root, root / name):
            for form in SETS[name].forms:
                for candidate in (place / form.folder, place):
                    if all((candidate / file).is_file() for file in form.test):
                        return form, candidate
                if (place / form.archive).is_file():
                    return form, place / form.archive
                if (place / form.folder).is_dir():
                    return form, place / form.folder
    return None


def present(name: str, root: Path) -> Path | None:
    """The folder or archive of the set in a folder, if it is there."""
    found = find(name, [root])
    return found and found[1]


def load(name: str, roots, reading: Reading, download: bool = True) -> DataSet:
    """Read one version of a set, each file against its checksum, size and label range."""
    spec = SETS[name]
    found = find(name, roots)
    if found is None:
        found = spec.forms[0], obtain(spec.remote, roots[0], spec.title, roots, download)
    form, source = found
    files = form.train | form.test
    blobs = _read_archive(source, form, spec) if source.is_file() else _read_folder(source, files)
    size = reading.img_size or SIZE
    train, test = (
        _split(spec, form, blobs, part, count, size, reading.interpolation)
        for part, count in zip((form.train, form.test), spec.counts, strict=True)
    )
    return DataSet(
        name=name,
        classes=list(spec.classes),
        mean=spec.mean,
        std=spec.std,
        train=train,
        test=test,
        img_size=size,
        channels=3,
        interpolation=reading.interpolation,
        source=str(source),
        split=f"published split: {len(train)} train, {len(test)} test",
    )


def _split(spec, form, blobs, files, count, size, interpolation):
    images, labels = [], []
    for file, expected in files.items():
        where, data = blobs.pop(file)
        expect_checksum(data, expected, where)
        n = count // len(files)
        x, y = parse_python(data, where, n, spec.label_key) if form.pickled else parse_binary(data, where, n, spec.label_bytes)
        if n and not 0 <= y.min() <= y.max() < len(spec.classes):
            bad = y.min() if y.min() < 0 else y.max()
            raise DataError(f"{where}: holds the label {bad}; expected 0 to {len(spec.classes) - 1}; replace it")
        images.append(x)
        labels.append(y)
    images = torch.from_numpy(np.concatenate(images)).view(-1, 3, 32, 32)
    return Split(fit_all(images, size, interpolation=interpolation), torch.from_numpy(np.concatenate(labels).astype(np.int64)))


def _read_folder(folder, files):
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{folder}: {', '.join(missing)} is missing; delete the folder and unpack or download it again")
    try:
        return {file: (folder / file, (folder / file).read_bytes()) for file in files}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error})") from error


def _read_archive(archive, form, spec):
    wanted = {f"{form.folder}/{file}": file for file in form.train | form.test}
    contents = read_tar(archive, wanted, max(spec.counts) * (PIXELS + 1024))
    return {file: (f"{archive}/{form.folder}/{file}", data) for file, data in contents.items()}


def parse_binary(data: bytes, where, n: int, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """n records of label bytes and 3072 pixels in channel order -> pixels (n, 3072), labels (n,)."""
    record = label_bytes + PIXELS
    if len(data) != n * record:
        raise DataError(f"{where}: has {len(data)} bytes; expected {n} records of {record} = {n * record}; replace it")
    records = np.frombuffer(data, np.uint8).reshape(n, record)
    return records[:, label_bytes:], records[:, label_bytes - 1]


def parse_python(data: bytes, where, n: int, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """A pickled dict with `data` uint8 (n, 3072) and a list of labels -> pixels (n, 3072), labels (n,)."""
    try:
        batch = ArrayUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    # A damaged pickle stream can raise nearly anything.
    except Exception as error:
        raise DataError(f"{where}: cannot be read ({error}); delete it and run again to download it") from error
    if not isinstance(batch, dict):
        raise DataError(f"{where}: holds a {type(batch).__name__}; expected a dict with data and {label_key}; replace it")
    batch = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in batch.items()}
    pixels, labels = batch.get("data"), batch.get(label_key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (n, PIXELS):
        got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{where}: data is {got}; expected uint8 ({n}, {PIXELS}); replace it")
    if not isinstance(labels, list) or len(labels) != n or not all(type(label) is int for label in labels):
        raise DataError(f"{where}: {label_key} is no list of {n} ints; replace it")
    return pixels, np.array(labels, np.int64)


class ArrayUnpickler(pickle.Unpickler):
    """Builds numpy arrays and Python's plain values; refuses to look up anything else, so a pickle cannot run code."""

    def find_class(self, module, name):
        reconstruct = np.empty(0).__reduce__()[0]
        allowed = {
            ("numpy.core.multiarray", "_reconstruct"): reconstruct,
            ("numpy._core.multiarray", "_reconstruct"): reconstruct,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
        }
        if (module, name) not in allowed:
            raise DataError(f"refused: the pickle asks for {module}.{name}, which image data never needs; do not use this file")
        return allowed[module, name]

    def persistent_load(self, pid):
        raise DataError(f"refused: the pickle asks for the outside object {pid!r}; do not use this file")
