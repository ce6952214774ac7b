"""Folders of images, one folder a class:

    DIR/train/CLASS/*  and  DIR/test/CLASS/*  or  DIR/val/CLASS/*  (or both)
    DIR/CLASS/*        a fixed fifth of every class is held out for testing

Class names sort the labels. An image is turned as its EXIF data says, resized with Pillow's bicubic filter until it just
covers the frame, and cut from the centre, exactly as `images.load_image` does for a new one. A set of grey images has one
channel, any other three.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

from .dataset import DataError, DataSet
from .draws import stratified
from .pictures import Reading, expect_readable, parallel
from .pictures import splits as read_splits
from .streamed import Picture

with contextlib.suppress(ImportError):  # only pictures in files need it
    from PIL import Image

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
TEST_FRACTION = 0.2
# The usual ImageNet statistics; for grey images the mean over the channels.
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
IMAGENET_CLASSES, IMAGENET_SIZE = 1000, (224, 224)
GREY_MODES = ("1", "L", "LA", "La")


@dataclass
class Listing:
    """What lies in a folder: for each split (train, val, test, or only train) its files and labels, sorted by path."""

    classes: list[str]
    files: dict[str, list[tuple[Path, int]]]
    folders: dict[str, str]  # split -> name of its folder, "" for DIR itself
    ignored: int  # files that are no images by their name


@dataclass
class Probe:
    """Size (w, h) and Pillow mode of an image file, or why it cannot be read."""

    size: tuple[int, int] = (0, 0)
    mode: str = ""
    error: str = ""

    @property
    def grey(self) -> bool:
        return self.mode in GREY_MODES or self.mode.startswith("I")


def scan(root: Path, parts=tuple(SPLITS)) -> Listing:
    """List the images of a folder without opening them. Raises DataError when it has not one of the two layouts.

    parts: the splits looked for; folders of others are left alone.
    """
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give a folder of images as data_dir, laid out DIR/train/CLASS/*.png")
    folders = {split: name for split in parts for name in reversed(SPLITS[split]) if (root / name).is_dir()}
    if "train" not in folders:
        folders = {"train": ""}
    trees = {split: _classes(root / name) for split, name in folders.items()}
    classes = sorted(trees["train"][0])
    if len(classes) < 2:
        got = f"found {len(classes)} folder of a class" + (f" ({classes[0]})" if classes else "")
        raise DataError(
            f"{root / folders['train']}: {got}; expected at least two, as in DIR/train/CLASS/*.png or DIR/CLASS/*.png"
        )
    files = {}
    for split, (tree, _) in trees.items():
        unknown = sorted(set(tree) - set(classes))
        if unknown:
            raise DataError(f"{root / folders[split] / unknown[0]}: this class is not in {folders['train']}/; add or remove it")
        files[split] = [(path, label) for label, name in enumerate(classes) for path in tree.get(name, [])]
        for name in classes:
            if split == "train" and not tree[name]:
                raise DataError(f"{root / folders[split] / name}: holds no image; add some or remove the folder")
        if not files[split]:
            raise DataError(f"{root / folders[split]}: holds no image; add some or remove the folder")
    return Listing(classes, files, folders, sum(ignored for _, ignored in trees.values()))


def _classes(folder: Path) -> tuple[dict[str, list[Path]], int]:
    tree, ignored = {}, 0
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from None
    for entry in entries:
        if not entry.is_dir() or entry.name.startswith("."):
            continue
        found = sorted(Path(base, f) for base, _, names in os.walk(entry) for f in names if not f.startswith("."))
        tree[entry.name] = [path for path in found if path.suffix.lower() in SUFFIXES]
        ignored += len(found) - len(tree[entry.name])
    return tree, ignored


def probe(path: Path, whole: bool = False) -> Probe:
    """Read the header of an image file; with `whole` decode all of it, which finds damage anywhere."""
    try:
        with Image.open(path) as image:
            if whole:
                image.load()
            return Probe(image.size, image.mode)
    # Pillow's decoders also raise SyntaxError, ValueError and struct.error on damaged files.
    except Exception as error:
        return Probe(error=str(error) or type(error).__name__)


def usual_size(sizes) -> tuple[int, int]:
    """The median short side, rounded to a multiple of 32 between 32 and 224, for both sides."""
    side = min(224, max(32, round(median_low(min(size) for size in sizes) / 32) * 32))
    return side, side


def load(root: Path, reading: Reading) -> DataSet:
    """Read a folder of images. Every image that cannot be read is named."""
    listing = scan(root)
    paths = [path for files in listing.files.values() for path, _ in files]
    probes = parallel(probe, paths)
    expect_readable(root, paths, [p.error for p in probes])
    frame = reading.frame(usual_size(p.size for p in probes), 1 if all(p.grey for p in probes) else 3)
    return _data_set("folder", root, listing, frame, reading)


def load_imagenet(root: Path, reading: Reading) -> DataSet:
    """ImageNet-1k (O. Russakovsky et al., 2015) as DIR/train/CLASS and DIR/val/CLASS, 1000 classes; files are opened later."""
    listing = scan(root)
    if len(listing.classes) != IMAGENET_CLASSES:
        raise DataError(
            f"{root / listing.folders['train']}: holds {len(listing.classes)} classes; ImageNet-1k has {IMAGENET_CLASSES}: "
            "complete it, or read it as --data folder"
        )
    if len(listing.folders) < 2:
        raise DataError(f"{root}: there is no val/ beside the images to train on; sort the validation images into val/CLASS/")
    return _data_set("imagenet", root, listing, reading.frame(IMAGENET_SIZE, 3), reading)


def _data_set(name, root, listing, frame, reading):
    # Names as text: a million Path objects would take a gigabyte.
    pictures = {split: [Picture(str(path), label) for path, label in files] for split, files in listing.files.items()}
    splits = read_splits(root, pictures, frame, reading.stream)
    note = ", ".join(f"{folder or 'all'}/ {len(splits[split])} images" for split, folder in listing.folders.items())
    tested_on = "test"
    if "test" not in splits and "val" in splits:
        splits["test"], tested_on = splits.pop("val"), "val"
        note += f"; tested on {listing.folders['val']}/, there is no test/"
    elif "test" not in splits:
        kept, held = stratified(splits["train"].labels, TEST_FRACTION)
        if not len(held):
            raise DataError(f"{root}: no class has two images, so there is none to test on; add images, or a folder test/")
        splits |= {"train": splits["train"].subset(kept), "test": splits["train"].subset(held).at_evaluation()}
        note += f"; fixed stratified split: {len(kept)} train, {len(held)} test"
    mean, std = IMAGENET[frame.channels]
    return DataSet(
        name, listing.classes, mean, std, img_size=frame.size, channels=frame.channels, source=str(root), split=note,
        tested_on=tested_on, interpolation=frame.interpolation, crop_pct=frame.crop_pct, **splits,
    )  # fmt: skip
