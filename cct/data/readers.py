"""`load`: the readers by name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

from . import cifar, digits, folder, mnist
from .dataset import DataError, DataSet
from .draws import stratified
from .files import roots

FILE_READERS = {"mnist": mnist, "fashion_mnist": mnist, "cifar10": cifar, "cifar100": cifar}
NAMES = ("digits", *FILE_READERS, "folder")


def load(name: str, data_dir=None, *, img_size=None, val_split: float | None = None, download: bool = True) -> DataSet:
    """Read a data set into memory, checked.

    name: one of `NAMES`. data_dir: the folder of its files; else, or where it lacks them, $CCT_DATA and ~/.cache/cct/data are
    searched, and what is missing is downloaded if `download`. `folder` reads the images of data_dir itself.
    img_size: int or (H, W) of the images; None for the size usual for the set.
    val_split: this part of every training class is held out as `val`, always the same images.
    Raises DataError that names the file or argument and the fix.
    """
    size = _size(img_size)
    if name == "digits":
        data = digits.load(size or digits.DEFAULT_SIZE)
    elif name == "folder":
        if not data_dir:
            raise DataError("folder: data_dir is missing; give the folder of images, laid out DIR/train/CLASS/*.png")
        data = folder.load(Path(data_dir).expanduser(), size)
    elif name in FILE_READERS:
        data = FILE_READERS[name].load(name, roots(data_dir), size, download)
    else:
        near = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"data set {name!r} is unknown; {hint}known are {', '.join(NAMES)}")
    return data if val_split is None else _hold_out(data, val_split)


def _size(img_size):
    if img_size is None:
        return None
    size = (img_size, img_size) if isinstance(img_size, int) else img_size
    if isinstance(img_size, bool) or not isinstance(size, (tuple, list)) or len(size) != 2:
        raise DataError(f"img_size is {img_size!r}; expected an int or a pair (H, W)")
    if not all(isinstance(s, int) and 1 <= s <= 4096 for s in size):
        raise DataError(f"img_size is {img_size!r}; expected numbers of pixels from 1 to 4096")
    return tuple(size)


def _hold_out(data: DataSet, fraction) -> DataSet:
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction < 1:
        raise DataError(f"val_split is {fraction!r}; expected a number between 0 and 1, the part of train to hold out")
    if data.val is not None:
        raise DataError(f"{data.source}: val_split is {fraction}, but there is a val split already; leave val_split out")
    kept, held = stratified(data.train.labels, fraction)
    split = f"{data.split}; {len(held)} of train held out for validation"
    return replace(data, train=data.train.subset(kept), val=data.train.subset(held), split=split)
