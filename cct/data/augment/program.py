"""What is to be done to each image: a short program of steps, drawn for all samples of a batch at once.

A step holds one operation code and its arguments for each sample, so that a batch of different operations is three tensors,
for the C++ kernel as for the PyTorch form.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

# Operations, and what they read from their seven arguments. Images are uint8; Pillow's results are met.
IDENTITY = 0
SHIFT = 1  # dy, dx, -, -, -, flips: out[y, x] = image[y + dy, x + dx], zero outside; then flips (1 left-right, 2 up-down)
RESIZE = 2  # top, left, height, width, -, flips, filter: the box resized to the size of the image; then flips
AFFINE = 3  # a, b, c, d, e, f, filter: out[y, x] = image at (a x + b y + c, d x + e y + f), pixel centres at + 1/2
AUTO_CONTRAST = 4  # each channel stretched to 0..255
EQUALIZE = 5  # each channel's histogram made even
INVERT = 6
POSTERIZE = 7  # bits: the upper bits that are kept
SOLARIZE = 8  # threshold: pixels from it on are inverted
SOLARIZE_ADD = 9  # add: to pixels below 128
BRIGHTNESS = 10  # factor of a blend with black
CONTRAST = 11  # factor of a blend with the mean grey value
COLOR = 12  # factor of a blend with the grey image
SHARPNESS = 13  # factor of a blend with the smoothed image

NEAREST, BILINEAR, BICUBIC = 0, 1, 2  # filters
FLIPS, FILTER = 5, 6  # columns of the arguments
WIDTH = 7

TONES = frozenset(range(AUTO_CONTRAST, CONTRAST + 1))  # a table of 256 values for each channel


class Program(NamedTuple):
    """codes: int64 (n, steps); args: float64 (n, steps, 7); kinds: for each step the operations that it can hold."""

    codes: torch.Tensor
    args: torch.Tensor
    kinds: tuple[frozenset, ...]

    def of(self, rows: slice) -> Program:
        """The program of some of the samples."""
        return Program(self.codes[rows], self.args[rows], self.kinds)


def step(code, columns: dict, like: torch.Tensor):
    """(codes (n,), args (n, 7)) of one step from a code and the columns that it reads; like: any tensor (n,)."""
    args = torch.zeros(len(like), WIDTH, dtype=torch.float64, device=like.device)
    for column, value in columns.items():
        args[:, column] = value
    codes = code.long() if isinstance(code, torch.Tensor) else torch.full_like(like, code, dtype=torch.int64)
    return codes, args


def join(steps, kinds) -> Program:
    """One program from the (codes, args) of its steps."""
    return Program(torch.stack([c for c, _ in steps], 1), torch.stack([a for _, a in steps], 1), tuple(kinds))


@functools.cache  # for good: a graph goes on reading it where it lay
def constant(values: tuple, dtype, device) -> torch.Tensor:
    """A small table on a device, copied there once: a copy from the host cannot be part of a captured graph."""
    return torch.tensor(values, dtype=dtype, device=device)
