"""Carry out what was drawn: in C++ on the CPU, in Triton on a GPU, else in PyTorch. All give the same bits."""

from __future__ import annotations

import torch

from cct_kernels import native
from cct_kernels.dispatch import machine_why_not

from . import mixing
from . import pixels as pixel
from .program import Program, constant


def pixels(images, program: Program, fill) -> torch.Tensor:
    """The program of each sample: `pixels.apply`."""
    fill = constant(tuple(fill), torch.uint8, images.device)
    if compiled(images):
        return torch.ops.cct_kernels.augment_pixels(images, program.codes, program.args, fill)
    if on_triton(images):
        from cct_kernels.triton import augment

        return augment.pixels(images, program.codes, program.args, program.kinds, fill)
    return pixel.apply(images, program, fill)


def finish(images, mix, boxes, scale, shift, mode: str) -> torch.Tensor:
    """Mixing, normalisation in two roundings, erasing: uint8 (B, C, H, W) -> float32."""
    lam, box = (None, None) if mix is None else mix
    rest = lam, box, boxes, scale, shift, mixing.FILLS.index(mode), mixing.normals(images.device)
    if compiled(images):
        return torch.ops.cct_kernels.augment_finish(images, *rest)
    if on_triton(images):
        from cct_kernels.triton import augment

        return augment.finish(images, *rest)
    if mix is not None:
        images = mixing.mixed(images, mix)
    values = images.to(torch.float32).mul_(scale).add_(shift)
    return values if boxes is None else mixing.erased(values, boxes, mode)


def compiled(images) -> bool:
    """Whether the C++ ops run for these images."""
    if images.device.type != "cpu" or native.why_not("cpu") is not None:
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key("cct_kernels::augment_pixels", "CPU")


def on_triton(images) -> bool:
    """Whether the Triton kernels run for these images."""
    return images.is_cuda and machine_why_not("triton") is None
