"""Where to cut: random resized crops as timm draws them, crops after zero padding, mirror images."""

from __future__ import annotations

import math

import torch

from .. import draws
from .program import BICUBIC, BILINEAR, RESIZE, SHIFT, step

TRIES = 10  # of a box that fits into the image, here and in timm
FILTERS = {"bilinear": BILINEAR, "bicubic": BICUBIC}
INTERPOLATIONS = ("random", *FILTERS)


def flips(left_right: torch.Tensor, up_down: torch.Tensor, hflip: float, vflip: float) -> torch.Tensor:
    """1 for a left-right mirror image, 2 for an upside-down one, 3 for both, from two words a sample."""
    return draws.chance(left_right, hflip).long() + 2 * draws.chance(up_down, vflip).long()


def filters(bit: torch.Tensor, interpolation: str) -> torch.Tensor:
    """The filter of each sample: the one named, or bilinear and bicubic with equal chances by a bit (0 or 1)."""
    return (
        torch.where(bit == 1, BICUBIC, BILINEAR) if interpolation == "random" else torch.full_like(bit, FILTERS[interpolation])
    )


def pad_crop(seed, epoch, index, padding: int, hflip: float, vflip: float):
    """A crop of the image with `padding` zero pixels around it, every place equally likely; then the flips."""
    word = draws.words_of(seed, epoch, draws.CROP_FLIP, index)
    dy, dx = (draws.below(word[:, i], 2 * padding + 1) - padding for i in (0, 1))
    return step(SHIFT, {0: dy, 1: dx, 5: flips(word[:, 2], word[:, 3], hflip, vflip)}, index)


def resized_crop(seed, epoch, index, size, scale, ratio, interpolation: str, hflip: float, vflip: float):
    """A box of an area uniform in `scale` (fractions of the image) and a log-uniform width / height in `ratio`, resized.

    The first of 10 tries that fits into the image, else the largest central box within `ratio`; then the flips.
    """
    return crop_by(crop_words(seed, epoch, index), size, scale, ratio, interpolation, hflip, vflip)


def crop_words(seed, epoch, index) -> torch.Tensor:
    """The random words of the resized crops of some samples, int64 (n, 24)."""
    return draws.words_of(seed, epoch, draws.RESIZED_CROP, index, TRIES // 2 + 1)


def crop_by(word, size, scale, ratio, interpolation: str, hflip: float, vflip: float):
    """`resized_crop` from its words, for images of one size."""
    H, W = size
    area, aspect = word[:, :TRIES], word[:, TRIES : 2 * TRIES]
    height, width = _boxes(area, aspect, H * W, scale, ratio)
    height, width, found = _first(height, width, (height <= H) & (width <= W))
    h, w = _central(H, W, ratio)
    height, width = torch.where(found, height, h), torch.where(found, width, w)
    places = word[:, 2 * TRIES :]
    top, left = draws.below(places[:, 0], H - height + 1), draws.below(places[:, 1], W - width + 1)
    # The last two words serve the flips; their lowest bit is independent of the highest ones.
    turned = flips(places[:, 2], places[:, 3], hflip, vflip)
    top, left = torch.where(found, top, (H - h) // 2), torch.where(found, left, (W - w) // 2)
    columns = {0: top, 1: left, 2: height, 3: width, 5: turned, 6: filters(places[:, 2] & 1, interpolation)}
    return step(RESIZE, columns, word[:, 0])


def _central(H, W, ratio):
    aspect = W / H
    if aspect < ratio[0]:
        return min(H, round(W / ratio[0])), W
    if aspect > ratio[1]:
        return H, min(W, round(H * ratio[1]))
    return H, W


def erasing(seed, epoch, index, size, probability: float, most: int) -> torch.Tensor:
    """Boxes to erase, int64 (n, most, 5): top, left, height, width, key of the noise; height 0: nothing.

    A sample is chosen with `probability` and gets 1 to `most` boxes, each of an area of 2 % to a third of the image, shared
    among them, and a log-uniform height / width in [0.3, 1 / 0.3]; the first of 10 tries that is smaller than the image.
    """
    H, W = size
    first = draws.words_of(seed, epoch, draws.ERASE, index)
    count = torch.where(draws.chance(first[:, 0], probability), 1 + draws.below(first[:, 1], most), 0)
    boxes = []
    for i in range(most):
        word = draws.words_of(seed, epoch, draws.ERASE + 1 + i * (TRIES // 2 + 1), index, TRIES // 2 + 1)
        area, aspect = word[:, :TRIES], word[:, TRIES : 2 * TRIES]
        # Their ratio is height / width, so the two sides change places.
        width, height = _boxes(area, aspect, H * W / count.clamp(min=1)[:, None], (0.02, 1 / 3), (0.3, 1 / 0.3))
        height, width, found = _first(height, width, (height < H) & (width < W))
        places = word[:, 2 * TRIES :]
        top, left = draws.below(places[:, 0], H - height + 1), draws.below(places[:, 1], W - width + 1)
        key = places[:, 2] << 32 | places[:, 3]
        boxes.append(torch.stack((top, left, torch.where(found & (i < count), height, 0), width, key), 1))
    return torch.stack(boxes, 1)


def _boxes(area, aspect, total, scale, ratio):
    """Heights and widths (n, tries) with width / height in `ratio`, rounded to pixels."""
    target = (scale[0] + (scale[1] - scale[0]) * draws.unit(area)) * total
    low, high = (math.log(r) for r in ratio)
    aspect = torch.exp(low + (high - low) * draws.unit(aspect))
    return torch.sqrt(target / aspect).round().long(), torch.sqrt(target * aspect).round().long()


def _first(height, width, fits):
    """Of each row the first box that fits, and whether there is one."""
    first = fits.byte().argmax(1, keepdim=True)
    return height.gather(1, first)[:, 0], width.gather(1, first)[:, 0], fits.any(1)
