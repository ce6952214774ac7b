"""Positional embeddings: the sine table and resizing to another grid."""

import torch
import torch.nn.functional as F

KINDS = ("learnable", "sine", "none")


def sine_table(length, dim):
    """float32 (1, length, dim): angle(p, i) = p / 10000^(2 floor(i/2) / dim); even channels its sine, odd ones its cosine.

    The angle is computed in float64 and rounded to float32 before sin and cos, as in the official code. Row p does not
    depend on `length`: a shorter table is a prefix of a longer one.
    """
    position = torch.arange(length, dtype=torch.float64)[:, None]
    channel = torch.arange(dim)
    angle = (position / 10000 ** ((channel - channel % 2).double() / dim)).float()
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos())[None]


def resize(table, old, new, class_rows=0):
    """(1, class_rows + h w, C) from the grid `old` = (h, w) to the grid `new`: bilinear, half-pixel centres, no antialiasing.

    The first `class_rows` rows belong to the class token and stay as they are.
    """
    head, grid = table[:, :class_rows], table[:, class_rows:]
    grid = grid.transpose(1, 2).reshape(1, -1, *old)
    grid = F.interpolate(grid, size=tuple(new), mode="bilinear", align_corners=False, antialias=False)
    return torch.cat([head, grid.flatten(2).transpose(1, 2)], 1)
