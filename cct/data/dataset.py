"""What a reader returns: images as one uint8 tensor per split, and what a model must know about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from .augment import Augment

if TYPE_CHECKING:
    from .streamed import StreamedSplit


class DataError(ValueError):
    """A file or argument that cannot be used. The message names it and says what to do."""


@dataclass
class Split:
    """images: uint8 (n, channels, H, W); labels: int64 (n,). Kept whole in memory, on any device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self):
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise DataError(f"Split: images is {got}; expected a uint8 tensor (n, channels, H, W)")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise DataError(f"Split: labels is {got}; expected an int64 tensor ({len(self.images)},)")

    def __len__(self):
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.images.device

    @property
    def channels(self) -> int:
        return self.images.shape[1]

    @property
    def img_size(self) -> tuple[int, int]:
        return tuple(self.images.shape[2:])

    def fetch(self, indices, augment: Augment | None = None, seed: int = 0, epoch: int = 0):
        """(what of `augment` is left to do, iterator of uint8 (B, C, H, W)), a batch for each of `indices`: tensors or slices.

        seed, epoch: what the draws of a split that augments while it reads depend on; this one leaves all of it to do.
        """
        read = (self.images[i] if isinstance(i, slice) else self.images.index_select(0, i) for i in indices)
        return augment, read

    def to(self, device) -> Split:
        """The same split on a device: batches are then drawn, cropped and normalised there."""
        return Split(self.images.to(device), self.labels.to(device))

    def resized(self, size) -> Split:
        """The split with images of size (H, W): bicubic with antialiasing, within 2 of Pillow's and ten times as fast."""
        return Split(F.interpolate(self.images, tuple(size), mode="bicubic", antialias=True), self.labels)

    def subset(self, index) -> Split:
        return Split(self.images[index], self.labels[index])

    def at_evaluation(self) -> Split:
        """The images as evaluation reads them, of a part of `train` that is held out."""
        return self


@dataclass
class DataSet:
    """A data set ready to train on.

    `img_size` is (H, W) and `mean`, `std` are per channel for pixels in [0, 1]. `source` says where the files came from,
    `split` how train and test were made: both belong into every result. `val` is there when `val_split` was asked for, or a
    folder has it. `pad` is the width of the zero border that is part of the H x W frame (MNIST: 28 -> 32 pads by 2).
    `interpolation`, `crop_pct`: how image files become H x W pixels at evaluation, see `images.fit`.
    """

    name: str
    classes: list[str]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split | StreamedSplit
    test: Split | StreamedSplit
    img_size: tuple[int, int]
    channels: int
    source: str
    split: str
    val: Split | StreamedSplit | None = None
    tested_on: str = "test"  # "val" where a folder has only that one beside train
    pad: int = 0
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    flip: bool = True  # whether a mirrored image still shows its class: not so for digits

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def augment(self) -> Augment:
        """Random crops with zero padding 4 at 32 pixels, as in the official CIFAR script, in proportion elsewhere; flips."""
        return Augment(crop_padding=min(self.img_size) // 8, flip=self.flip)

    @property
    def preprocessing(self) -> dict:
        """What `load_image` needs to treat one new image file as the images of this set were; goes into checkpoints."""
        return {
            "mean": list(self.mean),
            "std": list(self.std),
            "size": list(self.img_size),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "channels": self.channels,
            "pad": self.pad,
        }
