"""Carry out what was drawn: the C++ ops on the CPU, where the library is built; elsewhere PyTorch. Both give the same bits."""

from __future__ import annotations

import torch

from cct_kernels import native

from . import mixing
from . import pixels as pixel
from .program import Program, constant


def pixels(images, program: Program, fill) -> torch.Tensor:
    """The program of each sample: `pixels.apply`."""
    fill = constant(tuple(fill), torch.uint8, images.device)
    if compiled(images):
        return torch.ops.cct_kernels.augment_pixels(images, program.codes, program.args, fill)
    return pixel.apply(images, program, fill)


def finish(images, mix, boxes, scale, shift, mode: str) -> torch.Tensor:
    """Mixing, normalisation in two roundings, erasing: uint8 (B, C, H, W) -> float32."""
    if compiled(images):
        lam, box = (None, None) if mix is None else mix
        table = mixing.normals(images.device)
        return torch.ops.cct_kernels.augment_finish(images, lam, box, boxes, scale, shift, mixing.FILLS.index(mode), table)
    if mix is not None:
        images = mixing.mixed(images, mix)
    values = images.to(torch.float32).mul_(scale).add_(shift)
    return values if boxes is None else mixing.erased(values, boxes, mode)


def compiled(images) -> bool:
    """Whether the C++ ops run for these images."""
    if images.device.type != "cpu" or native.why_not("cpu") is not None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("cct_kernels::augment_pixels", "CPU")
