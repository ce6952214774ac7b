"""Image files as splits of a data set: read into memory at once, or decoded while training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from .dataset import DataError, Split
from .streamed import Frame, Picture, StreamedSplit, cores, numbers, processes_here

# Where a container finds the limit of its memory: control groups, version 2 and 1.
CONTAINER_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
SHOWN = 20  # files that cannot be read, in one message


@dataclass(frozen=True)
class Reading:
    """How image files are to be read. img_size: (H, W) or None for the usual one; interpolation, crop_pct: see `images.fit`.

    stream: decode while training; None: when the pixels need more than half of the machine's memory.
    """

    img_size: tuple[int, int] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    stream: bool | None = None

    def frame(self, usual_size, channels: int) -> Frame:
        return Frame(self.img_size or usual_size, channels, self.interpolation, self.crop_pct)


def splits(root, pictures: dict[str, list[Picture]], frame: Frame, stream: bool | None) -> dict:
    """A `Split` or `StreamedSplit` for each list of pictures. Raises DataError naming every picture that cannot be read."""
    count = sum(len(some) for some in pictures.values())
    needed, total = count * frame.channels * frame.size[0] * frame.size[1], _memory()
    if stream is None:
        stream = needed > total / 2
    if stream:
        return {name: StreamedSplit(some, frame) for name, some in pictures.items()}
    if needed > total:
        raise DataError(
            f"{root}: {count} images of {frame.size[0]} x {frame.size[1]} need {needed / 2**30:.1f} GiB, this machine has "
            f"{total / 2**30:.1f}; choose a smaller img_size, or stream"
        )
    read = {name: _read(some, frame, 1.0 if name == "train" else frame.crop_pct) for name, some in pictures.items()}
    paths = [picture.where for some in pictures.values() for picture in some]
    expect_readable(root, paths, [error for _, _, errors in read.values() for error in errors])
    parts = {name: Split(images, labels) for name, (images, labels, _) in read.items()}
    if "train" in parts and frame.crop_pct != 1.0:
        parts["train"] = WholeSplit(parts["train"].images, parts["train"].labels, pictures["train"], frame)
    return parts


@dataclass
class WholeSplit(Split):
    """A `Split` of whole pictures which knows them, as evaluation keeps only `frame.crop_pct` of them."""

    pictures: list[Picture]
    frame: Frame

    def subset(self, index) -> WholeSplit:
        part = super().subset(index)
        return WholeSplit(part.images, part.labels, [self.pictures[i] for i in numbers(index, len(self))], self.frame)

    def at_evaluation(self) -> Split:
        """Reads the pictures anew."""
        images, labels, errors = _read(self.pictures, self.frame, self.frame.crop_pct)
        expect_readable("held-out images", [picture.where for picture in self.pictures], errors)
        return Split(images, labels)


def _read(pictures, frame, crop_pct) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Images, labels, and for each picture why it cannot be read, or ''."""
    images = torch.empty(len(pictures), frame.channels, *frame.size, dtype=torch.uint8)
    target = images.numpy()

    def read(item):
        number, picture = item
        try:
            target[number] = frame.read(picture, crop_pct)
        except DataError as error:
            return str(error.__cause__ or error)
        return ""

    errors = parallel(read, enumerate(pictures))
    return images, torch.tensor([picture.label for picture in pictures], dtype=torch.int64), errors


def parallel(function: Callable, items: Iterable) -> list:
    """In order, on all cores: Pillow decodes and resizes without holding the interpreter lock."""
    with ThreadPoolExecutor(cores()) as pool:
        return list(pool.map(function, items))


def expect_readable(root, paths, errors):
    """Raise DataError for the files whose error is not ''."""
    bad = [(path, error) for path, error in zip(paths, errors, strict=True) if error]
    if bad:
        shown = "".join(f"\n  {path}: {error}" for path, error in bad[:SHOWN])
        more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(f"{root}: {len(bad)} of {len(paths)} images cannot be read; replace or remove them:{shown}{more}")


def _memory():
    """Bytes of memory that each process which torchrun started here may have; no limit where it cannot be known."""
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")] if hasattr(os, "sysconf") else []
    for path in CONTAINER_LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
            limits.append(int(Path(path).read_text()))
    return min(limits) // processes_here() if limits else float("inf")
