"""Operations that treat each value alone: tables of 256 values for each channel, and blends, with Pillow's arithmetic."""

from __future__ import annotations

import torch

from . import program as p


def apply(images, arg, code, kinds):
    """Each image by the table of its operation; arg (B, 7), code (B,)."""
    return look_up(images, tables(images, code.view(-1, 1, 1), arg[:, 0].view(-1, 1, 1), kinds))


def look_up(images, table):
    """out[b, c, y, x] = table[b, c, images[b, c, y, x]]."""
    return table.gather(2, images.flatten(2).long()).view_as(images)


def tables(images, code, arg, kinds):
    """uint8 (B, C, 256): the table of each sample's operation, those that change nothing included.

    code, arg: (B, 1, 1), the operation and its argument; kinds: the operations to look for.
    """
    B, C, H, W = images.shape
    value = torch.arange(256, device=images.device).view(1, 1, -1)
    made = {
        p.INVERT: lambda: 255 - value,
        p.POSTERIZE: lambda: value & (256 - torch.ones_like(code).bitwise_left_shift(8 - arg.long().clamp(0, 8))),
        p.SOLARIZE: lambda: torch.where(value < arg, value, 255 - value),
        p.SOLARIZE_ADD: lambda: torch.where(value < 128, (value + arg.long()).clamp(0, 255), value),
        p.BRIGHTNESS: lambda: blend(torch.zeros_like(value), value, arg),
        p.CONTRAST: lambda: blend(mean_grey(images)[:, None, None], value, arg),
        p.AUTO_CONTRAST: lambda: auto_contrast(histogram(), value),
        p.EQUALIZE: lambda: equalize(histogram(), H * W),
    }
    counts = []

    def histogram():
        if not counts:
            zero = torch.zeros(B, C, 256, dtype=torch.int64, device=images.device)
            counts.append(zero.scatter_add(2, images.flatten(2).long(), torch.ones_like(zero[:1, :1, :1]).expand(B, C, H * W)))
        return counts[0]

    out = value.expand(B, C, 256).to(torch.uint8)
    for kind, make in made.items():
        if kind in kinds:
            out = torch.where(code == kind, make().to(torch.uint8), out)
    return out


def blend(first, second, factor):
    """Image.blend: first + factor (second - first) in float32, cut to 0..255 and rounded down; factor (B,) or (B, 1, ...)."""
    factor = factor.float().view(-1, *[1] * (first.dim() - 1))
    first = first.int()
    return (first + factor * (second.int() - first)).clamp(0, 255).to(torch.uint8)


def grey(images):
    """(B, 1, H, W): Pillow's conversion to "L", (19595 R + 38470 G + 7471 B + 32768) / 65536; a grey image as it is."""
    if images.shape[1] == 1:
        return images
    r, g, b = images.int().unbind(1)
    return ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16).to(torch.uint8)[:, None]


def mean_grey(images):
    """int64 (B,): the mean of the grey image, rounded."""
    H, W = images.shape[2:]
    return torch.floor(grey(images).sum((1, 2, 3)).double() / (H * W) + 0.5).long()


def auto_contrast(histogram, value):
    """The least value of a channel to 0, the greatest to 255; a channel of one value as it is."""
    low = torch.where(histogram > 0, value, 255).amin(2, keepdim=True)
    high = torch.where(histogram > 0, value, 0).amax(2, keepdim=True)
    spread = (high - low).double()
    scale = torch.full_like(spread, 255.0) / spread  # 255.0 / spread would multiply by the rounded reciprocal
    return torch.where(high > low, (value * scale + -low * scale).clamp(0, 255), value.double())


def equalize(histogram, pixels):
    """ImageOps.equalize: the running count in steps of (pixels - those of the greatest value) // 255; unchanged for step 0."""
    value = torch.arange(256, device=histogram.device).view(1, 1, -1)
    high = torch.where(histogram > 0, value, 0).amax(2, keepdim=True)
    step = (pixels - histogram.gather(2, high)) // 255
    before = step // 2 + histogram.cumsum(2) - histogram
    return torch.where(step > 0, (before // step.clamp(min=1)).clamp(max=255), value)
