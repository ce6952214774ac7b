"""Folders of images, one folder a class:

    DIR/train/CLASS/*  and  DIR/test/CLASS/*  or  DIR/val/CLASS/*  (or both)
    DIR/CLASS/*        a fixed fifth of every class is held out for testing

Class names sort the labels. An image is turned as its EXIF data says, resized with Pillow's bicubic filter until it just
covers the frame, and cut from the centre, exactly as `images.load_image` does for a new one. A set of grey images has one
channel, any other three.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low

import torch
from PIL import Image

from .dataset import DataError, DataSet, Split
from .draws import stratified
from .images import read_pixels

SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"))
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
TEST_FRACTION = 0.2
# The usual ImageNet statistics; for grey images the mean over the channels.
IMAGENET = {3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), 1: ((0.449,), (0.226,))}
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


def scan(root: Path) -> Listing:
    """List the images of a folder without opening them. Raises DataError when it has not one of the two layouts."""
    if not root.is_dir():
        raise DataError(f"{root}: there is no such folder; give a folder of images as data_dir, laid out DIR/train/CLASS/*.png")
    folders = {split: name for split, names in SPLITS.items() for name in reversed(names) if (root / name).is_dir()}
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
    for entry in sorted(folder.iterdir()):
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


def parallel(function: Callable, items: Iterable) -> list:
    """In order, on all cores: Pillow decodes and resizes without holding the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(function, items))


def usual_size(sizes) -> tuple[int, int]:
    """The median short side, rounded to a multiple of 32 between 32 and 224, for both sides."""
    side = min(224, max(32, round(median_low(min(size) for size in sizes) / 32) * 32))
    return side, side


def load(root: Path, img_size=None) -> DataSet:
    """Read a folder of images into memory. Every image that cannot be read is named."""
    listing = scan(root)
    paths = [path for files in listing.files.values() for path, _ in files]
    probes = parallel(probe, paths)
    _expect_readable(root, paths, [p.error for p in probes])
    size = img_size or usual_size(p.size for p in probes)
    channels = 1 if all(p.grey for p in probes) else 3
    _expect_memory(root, len(paths) * channels * size[0] * size[1], len(paths), size)
    splits = _read(root, listing, channels, size)
    counts = ", ".join(f"{folder or 'all'}/ {len(splits[split])} images" for split, folder in listing.folders.items())
    if "test" in splits:
        note = counts
    elif "val" in splits:
        splits["test"] = splits.pop("val")
        note = f"{counts}; tested on {listing.folders['val']}/, there is no test/"
    else:
        kept, held = stratified(splits["train"].labels, TEST_FRACTION)
        splits |= {"train": splits["train"].subset(kept), "test": splits["train"].subset(held)}
        note = f"{counts}; fixed stratified split: {len(kept)} train, {len(held)} test"
    mean, std = IMAGENET[channels]
    return DataSet(
        "folder", listing.classes, mean, std, img_size=size, channels=channels, source=str(root), split=note, **splits
    )


def _read(root, listing, channels, size):
    splits = {}
    for split, files in listing.files.items():
        images = torch.empty(len(files), channels, *size, dtype=torch.uint8)

        def read(item, target=images.numpy()):  # noqa: B008 - bound now, to this split
            number, path = item
            try:
                target[number] = read_pixels(path, channels, size)
            except DataError as error:
                return str(error.__cause__ or error)
            return ""

        paths = [path for path, _ in files]
        _expect_readable(root, paths, parallel(read, enumerate(paths)))
        splits[split] = Split(images, torch.tensor([label for _, label in files]))
    return splits


def _expect_readable(root, paths, errors):
    bad = [(path, error) for path, error in zip(paths, errors, strict=True) if error]
    if bad:
        shown = "".join(f"\n  {path}: {error}" for path, error in bad[:20])
        more = f"\n  and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise DataError(f"{root}: {len(bad)} of {len(paths)} images cannot be read; replace or remove them:{shown}{more}")


def _expect_memory(root, needed, count, size):
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else needed
    if needed > total:
        raise DataError(
            f"{root}: {count} images of {size[0]} x {size[1]} need {needed / 2**30:.1f} GiB, this machine has "
            f"{total / 2**30:.1f}; choose a smaller img_size"
        )
