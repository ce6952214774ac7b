"""SVHN, house numbers in street views (Y. Netzer et al., 2011): 73257 + 26032 colour images of 32 x 32, without the extra part.

The files say 10 for the digit 0. `mean` and `std` are those of the training images.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import torch

from .dataset import DataError, DataSet, Split
from .files import expect_checksum, obtain
from .images import fit_all
from .matlab import read_mat
from .pictures import Reading
from .published import SVHN

with contextlib.suppress(ImportError):  # only files need it
    import numpy as np

SIZE = (32, 32)


def find(roots, file: str) -> Path | None:
    """The first of ROOT/svhn/FILE and ROOT/FILE that is there."""
    return next((p for root in roots for folder in ("svhn", "") if (p := root / folder / file).is_file()), None)


def present(name: str, root: Path) -> Path | None:
    """The first of the two files in a folder, if there is any."""
    return next((path for remote in SVHN.remotes if (path := find([root], remote.file))), None)


def load(name: str, roots, reading: Reading, download: bool = True) -> DataSet:
    """Read the two files, each against its checksum, shape and label range."""
    size, splits, source = reading.img_size or SIZE, [], None
    for remote, count in zip(SVHN.remotes, SVHN.counts, strict=True):
        path = find(roots, remote.file) or obtain(remote, roots[0] / "svhn", SVHN.title, roots, download)
        images, labels = _parse(path, remote, count)
        splits.append(Split(fit_all(images, size, interpolation=reading.interpolation), labels))
        source = source or path.parent
    return DataSet(
        name=name,
        classes=[str(digit) for digit in range(10)],
        mean=SVHN.mean,
        std=SVHN.std,
        train=splits[0],
        test=splits[1],
        img_size=size,
        channels=3,
        interpolation=reading.interpolation,
        source=str(source),
        split=f"published split without extra: {len(splits[0])} train, {len(splits[1])} test",
        flip=False,
    )


def _parse(path, remote, count):
    """X uint8 (32, 32, 3, n) and y (n, 1) from 1 to 10 -> images (n, 3, 32, 32), labels (n,) from 0 to 9."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    expect_checksum(data, remote.sha256 or None, path)
    pixels, labels = read_mat(data, path, "X", "y")
    if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, count):
        raise DataError(f"{path}: X is {pixels.dtype} {pixels.shape}; expected uint8 (32, 32, 3, {count}); replace it")
    if labels.shape != (count, 1):
        raise DataError(f"{path}: y has the shape {labels.shape}; expected ({count}, 1); replace it")
    labels = labels[:, 0].astype(np.int64)
    if count and not 1 <= labels.min() <= labels.max() <= 10:
        bad = labels.min() if labels.min() < 1 else labels.max()
        raise DataError(f"{path}: holds the label {bad}; expected 1 to 10; replace it")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(3, 2, 0, 1))), torch.from_numpy(labels % 10)
