"""Image files that are decoded while the model trains: for folders that do not fit into memory, and for random resized crops,
which are cut from the whole image."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from .augment import Augment, crops
from .augment.program import BILINEAR, FILTER, FLIPS
from .images import as_array, fit, open_image

with contextlib.suppress(ImportError):  # only pictures in files need it
    from PIL import Image

AHEAD = 2  # batches that are decoded in advance


def processes_here() -> int:
    """The processes that torchrun started on this machine, which share its cores and memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cores() -> int:
    """CPU cores for this process: its part of those it may use."""
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, ours // processes_here())


def numbers(index, count: int):
    """The samples of `count` that an index names: a slice, a tensor or a list."""
    if isinstance(index, slice):
        return range(count)[index]
    return index.tolist() if isinstance(index, torch.Tensor) else index


class Picture(NamedTuple):
    """An image file and its class. where: its name in messages; content: its bytes, where they lie in memory (archives)."""

    where: str | Path
    label: int
    content: bytes | None = None


@dataclass(frozen=True)
class Frame:
    """What a picture becomes: uint8 (channels, *size). crop_pct counts at evaluation, see `images.fit`."""

    size: tuple[int, int]
    channels: int
    interpolation: str = "bicubic"
    crop_pct: float = 1.0

    def read(self, picture: Picture, crop_pct: float = 1.0):
        """The whole picture, as `images.fit` puts it into the frame."""
        image = open_image(picture.where, self.channels, picture.content)
        return as_array(fit(image, self.size, self.interpolation, crop_pct))

    def read_crop(self, picture: Picture, augment: Augment, words: torch.Tensor):
        """The random resized crop of `augment`, cut from the picture at its own size, with its mirror images.

        words: (1, 24), of the sample, from `crops.crop_words`.
        """
        image = open_image(picture.where, self.channels, picture.content)
        hflip, vflip = (augment.hflip, augment.vflip) if augment.flip else (0.0, 0.0)
        scale, ratio, interpolation = augment.scale, augment.ratio, augment.train_interpolation
        _, args = crops.crop_by(words, image.size[::-1], scale, ratio, interpolation, hflip, vflip)
        top, left, height, width, *_ = (int(value) for value in args[0])
        filter = Image.Resampling.BILINEAR if args[0, FILTER] == BILINEAR else Image.Resampling.BICUBIC
        image = image.crop((left, top, left + width, top + height)).resize(self.size[::-1], filter)
        for bit, turn in ((1, Image.Transpose.FLIP_LEFT_RIGHT), (2, Image.Transpose.FLIP_TOP_BOTTOM)):
            if int(args[0, FLIPS]) & bit:
                image = image.transpose(turn)
        return as_array(image)


class StreamedSplit:
    """A `Split` whose pixels are read on demand, on all cores, AHEAD batches in advance.

    Memory: AHEAD + 1 batches of uint8 pixels, and one picture at its own size for each core. A random resized crop is cut from
    the picture itself, as timm does; in memory it can only be cut from the resized one. Whatever is read is a function of
    (seed, epoch, index of the sample), as in memory.
    """

    device = torch.device("cpu")

    def __init__(self, pictures, frame: Frame):
        self.pictures, self.frame = list(pictures), frame
        self.labels = torch.tensor([picture.label for picture in self.pictures], dtype=torch.int64)

    def __len__(self):
        return len(self.pictures)

    @property
    def channels(self) -> int:
        return self.frame.channels

    @property
    def img_size(self) -> tuple[int, int]:
        return self.frame.size

    def to(self, device) -> StreamedSplit:
        """Itself: the batches go to the device, not the split."""
        return self

    def resized(self, size) -> StreamedSplit:
        """The split with pictures read at size (H, W)."""
        return StreamedSplit(self.pictures, replace(self.frame, size=tuple(size)))

    def subset(self, index) -> StreamedSplit:
        return StreamedSplit([self.pictures[i] for i in numbers(index, len(self))], self.frame)

    def at_evaluation(self) -> StreamedSplit:
        """Itself: `fetch` is told."""
        return self

    def fetch(self, indices, augment: Augment | None = None, seed: int = 0, epoch: int = 0):
        """As `Split.fetch`; without `augment` as at evaluation, with a random resized crop this is done here.

        Raises DataError, when the batch is taken, for a picture that does not decode.
        """
        indices = list(indices)
        batches = ([self.pictures[i] for i in numbers(index, len(self))] for index in indices)
        if augment is None:
            return None, self._read([partial(self.frame.read, p, self.frame.crop_pct) for p in batch] for batch in batches)
        if augment.scale is None:
            return augment, self._read([partial(self.frame.read, p) for p in batch] for batch in batches)
        rest = replace(augment, scale=None, crop_padding=0, flip=False)
        # The words of a batch at once: one by one they cost as much as everything else that is drawn.
        words = (crops.crop_words(seed, epoch, torch.as_tensor(numbers(index, len(self)))).split(1) for index in indices)
        return rest, self._read(
            [partial(self.frame.read_crop, p, augment, word) for p, word in zip(*of_batch, strict=True)]
            for of_batch in zip(batches, words, strict=True)
        )

    def _read(self, batches):
        """The pixels of each of `batches`, lists of functions that read one picture; AHEAD of them are being read meanwhile."""
        pool = ThreadPoolExecutor(cores())
        running = deque()
        try:
            for batch in itertools.chain(batches, [None] * AHEAD):
                if batch is not None:
                    running.append([pool.submit(read) for read in batch])
                if running and (batch is None or len(running) > AHEAD):
                    yield self._stack(running.popleft())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _stack(self, futures):
        batch = torch.empty(len(futures), self.frame.channels, *self.frame.size, dtype=torch.uint8)
        for target, future in zip(batch.numpy(), futures, strict=True):
            target[:] = future.result()
        return batch
