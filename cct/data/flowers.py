"""Flowers-102 (M. Nilsback and A. Zisserman, 2008): 8189 images of 102 kinds, in one of two splits.

flowers102: the official one, 1020 to train, 1020 for validation, 6149 to test, from the three published files, the images
unpacked (jpg/) or in their archive.
flowers102_resplit: the one in which the paper's 97.19 % and 99.76 % were measured, DIR/train/1 .. 102 and DIR/valid/1 .. 102
with 6552 and 818 images (its 819 others have no labels); it is tested on valid.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from .dataset import DataError, DataSet
from .files import expect_checksum, obtain, read_tar
from .folder import scan
from .matlab import read_mat
from .pictures import Reading, splits
from .published import FLOWERS
from .streamed import Picture

with contextlib.suppress(ImportError):  # only files need it
    import numpy as np

SIZE = (224, 224)
RESPLIT = "flowers102_resplit"
PARTS = {"train": "trnid", "val": "valid", "test": "tstid"}
LARGEST = 1 << 24  # bytes of one image


def present(name: str, root: Path) -> Path | None:
    """What is there of the split called `name` in a folder: its folder, or the first of its files."""
    if name == RESPLIT:
        return _tree([root], str(FLOWERS.classes))
    return next((p for remote in FLOWERS.remotes if (p := _find([root], remote.file))), None)


def load(name: str, roots, reading: Reading, download: bool = True) -> DataSet:
    """Read the split called `name`; see the top of this file."""
    source, pictures, note = _read_resplit(roots) if name == RESPLIT else _read_official(roots, download)
    frame = reading.frame(SIZE, 3)
    parts = splits(source, pictures, frame, reading.stream)
    tested_on = "test" if "test" in parts else "val"
    if tested_on == "val":
        parts["test"] = parts.pop("val")
    return DataSet(
        name, [str(number + 1) for number in range(FLOWERS.classes)], FLOWERS.mean, FLOWERS.std, img_size=frame.size,
        channels=3, source=str(source), split=note, tested_on=tested_on, interpolation=frame.interpolation,
        crop_pct=frame.crop_pct, **parts,
    )  # fmt: skip


def _places(roots):
    return (root / folder for root in roots for folder in (*FLOWERS.folders, ""))  # others have a jpg/ too


def _find(roots, file):
    return next((place / file for place in _places(roots) if (place / file).is_file()), None)


def _tree(roots, kind=""):
    """The first place with train/ and valid/, of which train/KIND is a folder too."""
    for place in _places(roots):
        if (place / "train" / kind).is_dir() and any((place / part).is_dir() for part in ("valid", "val")):
            return place
    return None


def _read_resplit(roots):
    folder = _tree(roots)
    if folder is None:
        looked = ", ".join(str(root) for root in roots)
        raise DataError(
            f"{FLOWERS.title}, re-split: there are no folders train/ and valid/, each with 1 to {FLOWERS.classes} in it; "
            f"searched: {looked}. Name their folder as data_dir, or take the official split with --data flowers102"
        )
    listing = scan(folder, ("train", "val"))
    expected = {str(number + 1) for number in range(FLOWERS.classes)}
    if wrong := sorted(expected.symmetric_difference(listing.classes)):
        raise DataError(
            f"{folder / 'train'}: has {len(listing.classes)} classes; the folder {wrong[0]!r} is "
            f"{'missing' if wrong[0] in expected else 'too much'}, expected are 1 to {FLOWERS.classes}"
        )
    pictures = {
        part: [Picture(path, int(listing.classes[label]) - 1) for path, label in listing.files[part]]
        for part in ("train", "val")
    }
    train, valid = (len(some) for some in pictures.values())
    return folder, pictures, f"re-split (published: 6552 train, 818 valid): {train} train, {valid} valid; tested on valid"


def _read_official(roots, download):
    paths = [_find(roots, remote.file) for remote in FLOWERS.remotes]
    unpacked = next((place / "jpg" for place in _places(roots) if (place / "jpg").is_dir()), None)
    for number, remote in enumerate(FLOWERS.remotes):
        if paths[number] is None and not (number == 0 and unpacked):
            paths[number] = obtain(remote, roots[0] / FLOWERS.folders[0], FLOWERS.title, roots, download)
    [labels] = read_mat(_content(paths, 1), paths[1], "labels")
    parts = read_mat(_content(paths, 2), paths[2], *PARTS.values())
    labels, parts = labels.ravel().astype(np.int64), [part.ravel().astype(np.int64) for part in parts]
    if len(labels) and not 1 <= labels.min() <= labels.max() <= FLOWERS.classes:
        bad = labels.min() if labels.min() < 1 else labels.max()
        raise DataError(f"{paths[1]}: holds the label {bad}; expected 1 to {FLOWERS.classes}; replace it")
    for part in parts:
        if len(part) and not 1 <= part.min() <= part.max() <= len(labels):
            bad = part.min() if part.min() < 1 else part.max()
            raise DataError(f"{paths[2]}: names the image {bad}; expected 1 to {len(labels)}, as in {paths[1]}; replace it")
    numbers = [int(number) for part in parts for number in part]
    files = {number: f"image_{number:05d}.jpg" for number in numbers}
    if unpacked:
        missing = [file for file in files.values() if not (unpacked / file).is_file()]
        if missing:
            raise DataError(
                f"{unpacked}: {len(missing)} images are missing, {missing[0]} first; unpack {FLOWERS.remotes[0].file} again"
            )
        contents = dict.fromkeys(files.values())
    else:
        contents = read_tar(paths[0], {f"jpg/{file}": file for file in files.values()}, LARGEST)
    source = unpacked or paths[0]
    pictures = {
        name: [
            Picture(source / files[number], int(labels[number - 1]) - 1, contents[files[number]]) for number in part.tolist()
        ]
        for name, part in zip(PARTS, parts, strict=True)
    }
    train, valid, test = (len(some) for some in pictures.values())
    return source.parent, pictures, f"official split: {train} train, {valid} validation, {test} test"


def _content(paths, number):
    try:
        data = paths[number].read_bytes()
    except OSError as error:
        raise DataError(f"{paths[number]}: cannot be read ({error.strerror})") from None
    expect_checksum(data, FLOWERS.remotes[number].sha256 or None, paths[number])
    return data
