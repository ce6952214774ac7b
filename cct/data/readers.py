"""`load`: the readers by name."""

from __future__ import annotations

import difflib
from dataclasses import replace
from pathlib import Path

import torch

from . import cifar, digits, flowers, folder, mnist, pets, svhn
from .dataset import DataError, DataSet
from .draws import SPLIT, stratified, words
from .files import roots
from .pictures import Reading

FILE_READERS = {
    "mnist": mnist,
    "fashion_mnist": mnist,
    "cifar10": cifar,
    "cifar100": cifar,
    "svhn": svhn,
    "flowers102": flowers,
    "flowers102_resplit": flowers,
    "pets": pets,
}
OF_PICTURES = (flowers, pets)  # readers of image files; the others hold arrays
FOLDERS = {"folder": folder.load, "imagenet": folder.load_imagenet}
NAMES = ("digits", *FILE_READERS, *FOLDERS)
VAL_NAMES = ("val", "valid", "validation")


def load(
    name: str, data_dir=None, *, img_size=None, val_split: float | str | None = None, download: bool = True,
    interpolation: str = "bicubic", crop_pct: float = 1.0, mean=None, std=None, samples_per_class: int | None = None,
    stream: bool | None = None,
) -> DataSet:  # fmt: skip
    """Read a data set, checked.

    name: one of `NAMES`. data_dir: the folder of its files; else, or where it lacks them, $CCT_DATA and ~/.cache/cct/data are
    searched, and what is missing is downloaded if `download`. `folder` and `imagenet` read the images of data_dir itself.
    img_size: int or (H, W) of the images; None for the size usual for the set.
    val_split: this part of every training class is held out as `val`, always the same images; or the name of a split that
    must be there: "val" (also "valid", "validation") to report on it, "test" to do so although there is a val.
    interpolation: filter of Pillow that resizes. crop_pct: part of a resized image file that evaluation keeps.
    mean, std: of each channel, instead of those of the set.
    samples_per_class: train on this many images of each class; fewer ones are among the more.
    stream: decode image files while training; None: when they need more than half of the memory.
    Raises DataError that names the file or argument and the fix.
    """
    reading = Reading(_size(img_size), interpolation, crop_pct, stream)
    try:
        data = _read(name, data_dir, reading, download)
    except OSError as error:  # not allowed to look into a folder, or a name that is too long
        raise DataError(f"{error.filename or data_dir}: cannot be read ({error.strerror or error}); see --data-dir") from None
    if isinstance(val_split, str):
        data = _report_on(data, val_split)
    elif val_split is not None:
        data = _hold_out(data, val_split)
    if samples_per_class is not None:
        data = _thin_out(data, samples_per_class)
    channels = {"mean": mean, "std": std}
    for key, values in channels.items():
        if values is not None and len(values) != data.channels:
            raise DataError(f"{key}: got {len(values)} values; the images of {data.name} have {data.channels} channel(s)")
    return replace(data, **{key: tuple(values) for key, values in channels.items() if values is not None})


def _read(name, data_dir, reading, download):
    if name in FOLDERS:
        if not data_dir:
            raise DataError(f"{name}: data_dir is missing; give the folder of images, laid out DIR/train/CLASS/*.png")
        return FOLDERS[name](Path(data_dir).expanduser(), reading)
    reader = FILE_READERS.get(name)
    if reader is None and name != "digits":
        near = difflib.get_close_matches(str(name), NAMES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"data set {name!r} is unknown; {hint}known are {', '.join(NAMES)}")
    if reader not in OF_PICTURES:
        for key, usual in (("crop_pct", 1.0), ("stream", None)):
            if (got := getattr(reading, key)) not in (usual, False):
                raise DataError(f"{key}: got {got}; {name} holds no image files, so expected {usual}")
    return digits.load(reading) if reader is None else reader.load(name, roots(data_dir), reading, download)


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
    if not len(held):
        raise DataError(f"{data.source}: val_split is {fraction}, but no class has two training images to hold one out")
    split = f"{data.split}; {len(held)} of train held out for validation"
    return replace(data, train=data.train.subset(kept), val=data.train.subset(held).at_evaluation(), split=split)


def _report_on(data: DataSet, name: str) -> DataSet:
    if name == "test":
        return replace(data, val=None, split=f"{data.split}; reported on test" if data.val is not None else data.split)
    if name not in VAL_NAMES:
        raise DataError(f"val_split is {name!r}; expected a number between 0 and 1, {', '.join(VAL_NAMES)} or test")
    if data.val is None and data.tested_on != "val":
        raise DataError(f"{data.source}: val_split is {name!r}, but {data.name} has no such split; give a fraction of train")
    return data


def _thin_out(data: DataSet, count) -> DataSet:
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"samples_per_class is {count!r}; expected an int of at least 1")
    labels, key = data.train.labels, words(0, 0, SPLIT, len(data.train))[:, 0]
    chosen = []
    for label, name in enumerate(data.classes):
        members = torch.nonzero(labels == label).flatten()
        if len(members) < count:
            raise DataError(f"samples_per_class is {count}; {data.source} has {len(members)} training images of {name}")
        chosen.append(members[torch.argsort(key[members], stable=True)[:count]])
    index = torch.cat(chosen).sort().values
    return replace(data, train=data.train.subset(index), split=f"{data.split}; {count} training images of each class")
