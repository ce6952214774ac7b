"""Augmentation of a whole batch at once, as tensor operations on the device of the batch.

An operation takes uint8 images and the random words of their samples, so the result for a sample is a function of
(seed, epoch, sample index). A further operation is one field of `Augment`, one site in `draws`, and one line in
`Augment.__call__`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from . import draws


@dataclass(frozen=True)
class Augment:
    """Random crop after zero padding of `crop_padding` pixels on each side, then a mirror image with probability 1/2."""

    crop_padding: int = 4
    flip: bool = True

    def __post_init__(self):
        if isinstance(self.crop_padding, bool) or not isinstance(self.crop_padding, int) or self.crop_padding < 0:
            raise ValueError(f"Augment: crop_padding is {self.crop_padding!r}; expected an int of at least 0 (pixels)")
        if not isinstance(self.flip, bool):
            raise ValueError(f"Augment: flip is {self.flip!r}; expected True or False")

    def draws(self, seed: int, epoch: int, n: int, device) -> torch.Tensor:
        """All random words of an epoch, int64 (n, 4); row i belongs to sample i."""
        return draws.words(seed, epoch, draws.CROP_FLIP, n, device)

    def __call__(self, images: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
        """uint8 (B, C, H, W) and the rows of `draws` for its samples -> uint8 (B, C, H, W)."""
        if not self.crop_padding and not self.flip:
            return images
        return crop_flip(images, words, self.crop_padding, self.flip)


def crop_flip(images: torch.Tensor, words: torch.Tensor, padding: int, flip: bool) -> torch.Tensor:
    """One gather from the padded batch: out[b, c, y, x] = padded[b, c, y + dy_b, x' + dx_b], x' = x or W - 1 - x."""
    B, C, H, W = images.shape
    padded = F.pad(images, (padding,) * 4)
    rows = draws.below(words[:, 0:1], 2 * padding + 1) + torch.arange(H, device=images.device)  # (B, H)
    x = torch.arange(W, device=images.device)
    if flip:
        x = torch.where(words[:, 2:3] >> 31 == 1, W - 1 - x, x)
    columns = draws.below(words[:, 1:2], 2 * padding + 1) + x  # (B, W)
    source = rows[:, :, None] * (W + 2 * padding) + columns[:, None, :]  # (B, H, W)
    source = source.view(B, 1, H * W).expand(B, C, H * W)
    return padded.flatten(2).gather(2, source).view(B, C, H, W)
