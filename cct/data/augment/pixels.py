"""The operations of `program` as plain PyTorch over a whole batch: the specification of the C++ kernel, and the GPU form.

On a GPU every sample goes through every family of operations that a step can hold, and keeps the result of its own: there is
no look at the data from the host, so the work can be captured in a graph. Numbers are those of Pillow, in its order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from . import tones
from .program import AFFINE, BICUBIC, COLOR, FILTER, FLIPS, NEAREST, RESIZE, SHARPNESS, SHIFT, TONES, Program

PRECISION = 22  # bits behind the point of Pillow's resampling weights


def apply(images: torch.Tensor, program: Program, fill: torch.Tensor) -> torch.Tensor:
    """uint8 (B, C, H, W) and the program of its samples -> uint8 (B, C, H, W); fill: uint8 (C,), what AFFINE finds outside."""
    for i, kinds in enumerate(program.kinds):
        codes, arg = program.codes[:, i], program.args[:, i]
        families = (
            ({SHIFT}, lambda x, a, _: flip(shift(x, a), a)),
            ({RESIZE}, lambda x, a, _: flip(resize(x, a), a)),
            ({AFFINE}, lambda x, a, _: affine(x, a, fill)),
            ({COLOR}, lambda x, a, _: tones.blend(tones.grey(x).expand_as(x), x, a[:, 0])),
            ({SHARPNESS}, lambda x, a, _: tones.blend(smooth(x), x, a[:, 0])),
            (kinds & TONES, lambda x, a, code, kinds=kinds: tones.apply(x, a, code, kinds)),
        )
        out = images
        for family, operation in families:
            if family & kinds:
                out = _on(images, arg, codes, (codes >= min(family)) & (codes <= max(family)), operation, out)
        images = out
    return images


def _on(images, arg, codes, chosen, operation, out):
    """`out` with the chosen samples (B,) replaced by operation(images, arg, codes).

    On a CPU for those samples alone; on a GPU for all of them, since to find the chosen ones the host would have to wait.
    """
    if images.device.type != "cpu":
        return torch.where(chosen.view(-1, 1, 1, 1), operation(images, arg, codes), out)
    rows = chosen.nonzero()[:, 0]
    return out.index_copy(0, rows, operation(images[rows], arg[rows], codes[rows])) if len(rows) else out


def take(images, source, inside=None, fill=None):
    """out[b, c, i] = images[b, c] flat at source[b, i] (B, n) where inside[b, i], else fill[c]."""
    B, C = images.shape[:2]
    out = images.flatten(2).gather(2, source[:, None].expand(B, C, -1))
    return out if inside is None else torch.where(inside[:, None], out, fill[None, :, None])


def shift(images, arg):
    """out[y, x] = images[y + dy, x + dx], zero outside."""
    C, H, W = images.shape[1:]
    y, x = _grid(images)
    y, x = y + arg[:, 0].long()[:, None], x + arg[:, 1].long()[:, None]  # (B, H W)
    inside = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    source = y.clamp(0, H - 1) * W + x.clamp(0, W - 1)
    return take(images, source, inside, torch.zeros(C, dtype=torch.uint8, device=images.device)).view_as(images)


def flip(images, arg):
    """Left-right where FLIPS has bit 0, up-down where it has bit 1."""
    H, W = images.shape[2:]
    bits = arg[:, FLIPS].long()[:, None]
    y, x = _grid(images)
    y, x = torch.where(bits & 2 == 2, H - 1 - y, y), torch.where(bits & 1 == 1, W - 1 - x, x)
    return take(images, y * W + x).view_as(images)


def _grid(images):
    """Row and column (1, H W) of each pixel."""
    H, W = images.shape[2:]
    pixel = torch.arange(H * W, device=images.device)[None]
    return pixel // W, pixel % W


def resize(images, arg):
    """Pillow's Image.resize of a box to the size of the image: columns first, each pass in fixed point and rounded to uint8."""
    H, W = images.shape[2:]
    top, left, height, width = (arg[:, i].long() for i in range(4))
    cubic = arg[:, FILTER] == BICUBIC
    across, down = weights(left, width, W, cubic), weights(top, height, H, cubic)  # (B, out, in)
    # Whole numbers below 2^53: the float64 products are exact in any order.
    rows = _round(images.double() @ across.transpose(1, 2)[:, None])
    return _round(down[:, None] @ rows).to(torch.uint8)


def _round(total):
    """(total + half a unit) >> PRECISION, in 0..255."""
    return torch.floor((total + 2 ** (PRECISION - 1)) * 2.0**-PRECISION).clamp(0, 255)


def weights(start, length, size: int, cubic):
    """Fixed-point weights of Pillow, whole float64 numbers (B, size, size): pixel i takes [b, i, j] of pixel j."""
    j = torch.arange(size, device=start.device)
    scale = (length.double() / size).view(-1, 1, 1)
    stretch = scale.clamp(min=1.0)
    reach = torch.where(cubic, 2.0, 1.0).view(-1, 1, 1) * stretch
    center = (j[:, None] + 0.5) * scale  # (B, out, 1)
    first = torch.floor(center - reach + 0.5).clamp(min=0)
    last = torch.minimum(torch.floor(center + reach + 0.5), length.view(-1, 1, 1).double())
    place = (j - start.view(-1, 1, 1)).double()  # (B, 1, in), counted from the start of the box
    distance = ((place - center + 0.5) * (1.0 / stretch)).abs()
    near = ((-0.5 + 2.0) * distance - (-0.5 + 3.0)) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    keys = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weight = torch.where(cubic.view(-1, 1, 1), keys, (1 - distance).clamp(min=0))
    weight = torch.where((place >= first) & (place < last), weight, 0.0)
    weight = weight / weight.sum(2, keepdim=True) * 2.0**PRECISION
    return torch.where(weight < 0, torch.ceil(weight - 0.5), torch.floor(weight + 0.5))


def affine(images, arg, fill):
    """Pillow's Image.transform(AFFINE): the filter's neighbours around each source place, clamped at the border."""
    B, C, H, W = images.shape
    y, x = _grid(images)
    a, b, c, d, e, f = (arg[:, i : i + 1] for i in range(6))
    u, v = a * (x + 0.5) + b * (y + 0.5) + c, d * (x + 0.5) + e * (y + 0.5) + f  # (B, H W)
    inside = (u >= 0) & (u < W) & (v >= 0) & (v < H)
    left, above = torch.floor(u - 0.5), torch.floor(v - 0.5)
    du, dv = (u - 0.5 - left)[:, None], (v - 0.5 - above)[:, None]
    offset = torch.arange(-1, 3, device=images.device)[:, None]
    columns = (left.long()[:, None] + offset).clamp(0, W - 1)  # (B, 4, H W)
    rows = (above.long()[:, None] + offset).clamp(0, H - 1)
    source = rows[:, :, None] * W + columns[:, None]  # (B, 4, 4, H W)
    near = take(images, source.flatten(1)).view(B, C, 4, 4, H * W).double()
    linear = near[:, :, 1:3, 1] + (near[:, :, 1:3, 2] - near[:, :, 1:3, 1]) * du[:, None]
    linear = linear[:, :, 0] + (linear[:, :, 1] - linear[:, :, 0]) * dv
    cubic = _cubic(*_cubic(*near.unbind(3), du[:, None]).unbind(2), dv).clamp(0, 255)
    out = torch.where((arg[:, FILTER] == BICUBIC).view(-1, 1, 1), cubic, linear).to(torch.uint8)
    out = torch.where(inside[:, None], out, fill[None, :, None])
    return torch.where((arg[:, FILTER] == NEAREST).view(-1, 1, 1), _nearest(images, arg, fill), out).view_as(images)


def _cubic(v1, v2, v3, v4, d):
    """The interpolating cubic through v2 (d = 0) and v3 (d = 1) that Pillow's transforms use (a = -1)."""
    return v2 + d * ((-v1 + v3) + d * ((2 * (v1 - v2) + v3 - v4) + d * (-v1 + v2 - v3 + v4)))


def _nearest(images, arg, fill):
    """The pixel of each source place, found in 16.16 fixed point."""
    H, W = images.shape[2:]
    y, x = _grid(images)
    a, b, c, d, e, f = (arg[:, i : i + 1] for i in range(6))
    places = (a, b, c + a * 0.5 + b * 0.5, d, e, f + d * 0.5 + e * 0.5)
    a, b, c, d, e, f = (torch.floor(v * 65536 + 0.5).clamp(-(2.0**40), 2.0**40).long() for v in places)
    u, v = (a * x + b * y + c) >> 16, (d * x + e * y + f) >> 16
    inside = (u >= 0) & (u < W) & (v >= 0) & (v < H)
    return take(images, v.clamp(0, H - 1) * W + u.clamp(0, W - 1), inside, fill)


def smooth(images):
    """Pillow's SMOOTH: (sum of the 3 x 3 neighbours + 4 times the middle) / 13, rounded; the border as it is."""
    if min(images.shape[2:]) < 3:
        return images
    x = images.int()
    rows = x[:, :, :-2] + x[:, :, 1:-1] + x[:, :, 2:]
    total = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * x[:, :, 1:-1, 1:-1]
    inner = torch.div(2 * total + 13, 26, rounding_mode="floor").to(torch.uint8)
    border = F.pad(torch.ones_like(inner[:1, :1], dtype=torch.bool), (1, 1, 1, 1))
    return torch.where(border, F.pad(inner, (1, 1, 1, 1)), images)
