"""Mixup and CutMix as timm does them on uint8 batches, and what follows: normalisation and erasing.

Partner of the sample at place i is the one at place B - 1 - i.
  mixup   x = round(lam x_i + (1 - lam) x_j), lam ~ Beta(alpha, alpha)        (H. Zhang et al., 2018)
  cutmix  a box of x_j in x_i; lam is then 1 - area of the box / area of the image   (S. Yun et al., 2019)
  target  lam smooth(y_i) + (1 - lam) smooth(y_j), smooth(y) = 1 - s + s / K on the class and s / K elsewhere
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from .. import draws

MODES = ("batch", "pair", "elem")  # one draw for the batch, for a pair of partners, for each sample
FILLS = ("pixel", "rand", "const")  # normal noise in each value, one normal colour in a box, zeros (the mean colour)


class Mix(NamedTuple):
    """lam: float64 (B,), the share of the sample itself; box: int64 (B, 4) = top, bottom, left, right, empty for mixup.

    For several batches at once both have a dimension in front.
    """

    lam: torch.Tensor
    box: torch.Tensor

    def of(self, i: int) -> Mix:
        """That of one batch."""
        return Mix(self.lam[i], self.box[i])

    def at(self, places: torch.Tensor) -> Mix:
        """That of some of the samples of one batch, int64 (n,)."""
        return Mix(self.lam[places], self.box[places])


def draw(seed, epoch, batches: torch.Tensor, count: int, size, augment) -> Mix:
    """How batches of `count` samples are mixed; batches: their numbers in the epoch, int64 (k,) on the device.

    `augment` has the fields of `Augment`.
    """
    place = torch.arange(count if augment.mixup_mode != "batch" else 1, device=batches.device)
    if augment.mixup_mode == "pair":
        place = torch.minimum(place, count - 1 - place)
    word = draws.words_of(seed, epoch, draws.MIX, (batches[:, None] << 32 | place).flatten(), 2)
    applied, cut = draws.chance(word[:, 0], augment.mixup_prob), draws.chance(word[:, 1], augment.cut_probability)
    mixup, cutmix = (draws.beta(word[:, 2], word[:, 3], alpha or 1.0) for alpha in (augment.mixup, augment.cutmix_alpha))
    lam = torch.where(applied, torch.where(cut, cutmix, mixup), 1.0)
    if augment.cutmix_minmax is None:
        box = cut_box(lam, word[:, 4], word[:, 5], size)
    else:
        box = minmax_box(word[:, 4:8], size, augment.cutmix_minmax)
    box = torch.where((applied & cut)[:, None], box, 0)
    area = (box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2])
    lam = torch.where(applied & cut, 1 - area.double() / (size[0] * size[1]), lam)
    k = len(batches)
    return Mix(lam.view(k, -1).expand(k, count), box.view(k, -1, 4).expand(k, count, 4))


def unmixed(batches: int, count: int, device) -> Mix:
    """Each of `count` samples of some batches as it is; its target is soft all the same."""
    lam = torch.ones(batches, count, dtype=torch.float64, device=device)
    return Mix(lam, torch.zeros(batches, count, 4, dtype=torch.int64, device=device))


def cut_box(lam, row, column, size):
    """(n, 4) top, bottom, left, right: floor(side sqrt(1 - lam)) about a uniform centre from two words, cut to the image."""
    ratio, sides = torch.sqrt(1 - lam), []
    for word, side in ((row, size[0]), (column, size[1])):
        half, center = torch.floor(side * ratio).long() // 2, draws.below(word, side)
        sides += [(center - half).clamp(0, side), (center + half).clamp(0, side)]
    return torch.stack(sides, 1)


def minmax_box(words, size, minmax):
    """(n, 4): sides uniform between two fractions of the image, at a uniform place that fits."""
    sides = []
    for i, side in enumerate(size):
        low, high = (int(side * share) for share in minmax)
        length = low + draws.below(words[:, i], max(high - low, 1))
        start = draws.below(words[:, 2 + i], (side - length).clamp(min=1))
        sides += [start, start + length]
    return torch.stack(sides, 1)


def targets(labels, mix: Mix, num_classes: int, smoothing: float) -> torch.Tensor:
    """float32 (B, num_classes) for int64 labels (B,)."""
    off = smoothing / num_classes
    own = torch.full((len(labels), num_classes), off, device=labels.device)
    own.scatter_(1, labels[:, None], 1.0 - smoothing + off)
    lam = mix.lam[:, None]
    return own * lam.float() + own.flip(0) * (1 - lam).float()


def mixed(images, mix: Mix):
    """uint8 (B, C, H, W) -> uint8 (B, C, H, W)."""
    H, W = images.shape[2:]
    partner = images.flip(0)
    top, bottom, left, right = (side.view(-1, 1, 1, 1) for side in mix.box.unbind(1))
    y, x = torch.arange(H, device=images.device)[:, None], torch.arange(W, device=images.device)
    inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
    lam = mix.lam.view(-1, 1, 1, 1)
    both = (images.float() * lam.float() + partner.float() * (1 - lam).float()).round().to(torch.uint8)
    return torch.where(bottom > top, torch.where(inside, partner, images), both)


def erased(values, boxes, mode: str):
    """float32 (B, C, H, W), normalised, with the boxes (B, R, 5) of `crops.erasing` filled."""
    B, C, H, W = values.shape
    y, x = torch.arange(H, device=values.device)[:, None], torch.arange(W, device=values.device)
    for top, left, height, width, key in (box.view(B, 5, 1, 1, 1).unbind(1) for box in boxes.unbind(1)):
        inside = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
        values = torch.where(inside, fill(key, (C, H, W), mode), values)
    return values


def fill(key, shape, mode: str):
    """What stands in a box: (B, C, H, W) standard normal noise, (B, C, 1, 1) a normal colour, or 0."""
    if mode == "const":
        return torch.zeros((), device=key.device)
    C, H, W = shape
    count = C * H * W if mode == "pixel" else C
    # Four values from each 64-bit number of SplitMix64 (G. Steele et al., 2014) with the sample's key as its state.
    state = key.view(-1, 1) + torch.arange(1, -(-count // 4) + 1, device=key.device) * GAMMA
    for shift, factor in ((30, MIX_A), (27, MIX_B), (31, 1)):
        state = (state ^ (state >> shift & (1 << 64 - shift) - 1)) * factor
    quarter = torch.arange(0, 64, 16, device=key.device)
    index = (state[:, :, None] >> quarter & 0xFFFF).flatten(1)[:, :count]
    return normals(key.device)[index].view(-1, *(shape if mode == "pixel" else (C, 1, 1)))


# The constants of SplitMix64 as signed numbers
GAMMA, MIX_A, MIX_B = (v - (1 << 64) for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@functools.cache
def normals(device) -> torch.Tensor:
    """float32 (65536,): the middles of as many equally likely parts of the standard normal distribution, up to 4.27.

    A table, so that every device gives the same bits.
    """
    half = torch.special.ndtri((torch.arange(32768, dtype=torch.float64) + 0.5) / 65536).float()
    return torch.cat((half, -half.flip(0))).to(device)
