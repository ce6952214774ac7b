"""MNIST and Fashion-MNIST: idx files (Y. LeCun, "The MNIST database"), gzipped or plain, 60000 + 10000 grey 28 x 28 images.

Images are 32 x 32 by default, as every model here expects: the 28 x 28 pixels in a zero border of 2. The paper does not say
what it did, but 28 is no multiple of its patch sizes 8 and 16. img_size=28 gives the plain pixels; at any
other size the border keeps its share of 1/16. `mean` and `std` are those of the 28 x 28 training images.
"""

from __future__ import annotations

import contextlib
import gzip
import math
import zlib
from pathlib import Path

import torch

from .dataset import DataError, DataSet, Split
from .files import Remote, checksum, expect_checksum, obtain
from .images import fit_all
from .pictures import Reading
from .published import FILES
from .published import MNIST as SETS

with contextlib.suppress(ImportError):  # only files need it
    import numpy as np

DEFAULT_SIZE = (32, 32)
SIDE = 28


class WrongSet(DataError):
    """The files are those of the other set: both use the same file names."""


def find(name: str, roots, file: str) -> Path | None:
    """The first of ROOT/FOLDER/FILE.gz and ROOT/FOLDER/FILE that is there."""
    places = (root / folder / (file + suffix) for root in roots for folder in SETS[name].folders for suffix in (".gz", ""))
    return next((p for p in places if p.is_file()), None)


def present(name: str, root: Path) -> Path | None:
    """The first of the four files in a folder, if there is any."""
    return next((path for file in FILES if (path := find(name, [root], file))), None)


def load(name: str, roots, reading: Reading, download: bool = True) -> DataSet:
    """Read the four files of a set, each against its size, magic number and sha256."""
    spec = SETS[name]
    size = reading.img_size or DEFAULT_SIZE
    pad = 0 if size == (SIDE, SIDE) else min(size) // 16
    splits, source = [], None
    for prefix, count in zip(("train", "t10k"), spec.counts, strict=True):
        images, _ = _read(name, roots, f"{prefix}-images-idx3-ubyte", (count, SIDE, SIDE), download)
        labels, path = _read(name, roots, f"{prefix}-labels-idx1-ubyte", (count,), download)
        if count and labels.max() >= len(spec.classes):
            raise DataError(f"{path}: holds the label {labels.max()}; expected 0 to {len(spec.classes) - 1}; delete it")
        splits.append(Split(fit_all(images[:, None], size, pad, reading.interpolation), labels.to(torch.int64)))
        source = source or path.parent
    return DataSet(
        name=name,
        classes=list(spec.classes),
        mean=(spec.mean,),
        std=(spec.std,),
        train=splits[0],
        test=splits[1],
        img_size=size,
        channels=1,
        interpolation=reading.interpolation,
        source=str(source),
        split=f"published split: {len(splits[0])} train, {len(splits[1])} test",
        pad=pad,
        flip=spec.flip,
    )


def _read(name, roots, file, shape, download):
    spec, number = SETS[name], FILES.index(file)
    path = find(name, roots, file)
    if path is None:
        remote = Remote(f"{spec.url}{file}.gz", spec.gz_sha256[number])
        path = obtain(remote, roots[0] / spec.folders[0], spec.title, roots, download)
    data = _content(path, 4 + 4 * len(shape) + math.prod(shape))
    array = parse(data, path, shape)
    got, published = checksum(data), spec.sha256[number]
    other = next((s.title for s in SETS.values() if s.sha256[number] == got), None)
    if got != published and other:
        raise WrongSet(f"{path}: belongs to {other}, not to {spec.title}; name the folder of {spec.title} as data_dir")
    expect_checksum(data, published, path)
    return array, path


def _content(path: Path, expected: int) -> bytes:
    """At most one byte more than expected: enough to see that a file is too long."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            return file.read(expected + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it and run again to download it") from error


def parse(data: bytes, where, shape) -> torch.Tensor:
    """idx: two zero bytes, 8 for unsigned bytes, the number of dimensions, each as big-endian int32, then the values."""
    header = 4 + 4 * len(shape)
    size = header + math.prod(shape)
    magic = bytes((0, 0, 8, len(shape)))
    if data[:4] != magic:
        raise DataError(
            f"{where}: starts with {data[:4].hex() or 'nothing'}; an idx file starts with {magic.hex()}; replace it"
        )
    got = tuple(int(s) for s in np.frombuffer(data[4:header], ">u4")) if len(data) >= header else None
    if got not in (None, tuple(shape)):
        raise DataError(f"{where}: its header says {got}; expected {tuple(shape)}; replace it by the published file")
    if len(data) != size:
        state = "truncated" if len(data) < size else "too long"
        raise DataError(f"{where}: {state}, expected {size} bytes; delete it and run again to download it")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy())
