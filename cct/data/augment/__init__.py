"""Augmentation of whole batches, on the device of the images.

Everything is a function of (seed, epoch, sample index), mixing of (seed, epoch, batch number): a run resumed anywhere sees the
same bits. `draw` makes the random choices of many samples at once; `pixels` and `finish` carry them out on a batch, in C++ on
the CPU where the library is built, else in PyTorch with the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import carry_out, crops, mixing, policies
from .checks import check
from .program import RESIZE, SHIFT, TONES, Program, join

__all__ = ["Augment", "Drawn"]


class Drawn(NamedTuple):
    """The choices for n samples: their program, and the boxes to erase, int64 (n, recount, 5), or None."""

    program: Program | None
    boxes: torch.Tensor | None

    def of(self, rows: slice) -> Drawn:
        """The choices for some of the samples."""
        return Drawn(self.program and self.program.of(rows), None if self.boxes is None else self.boxes[rows])


@dataclass(frozen=True)
class Augment:
    """What happens to a training image. The names are timm's, except the first two.

    crop_padding  random crop after this many zero pixels on each side; not used when `scale` is given
    flip          False: no mirror images at all (digits)
    hflip, vflip  probability of a left-right and of an upside-down mirror image
    scale, ratio  random resized crop: range of the area as a fraction of the image, and of width / height; None: no such crop
    train_interpolation   random (bilinear or bicubic for each image), bilinear or bicubic
    aa            autoaugment, or a RandAugment such as rand-m9-mstd0.5-inc1 (see `policies`); None: neither
    color_jitter  brightness, contrast and saturation change by up to this much; not used together with `aa`, as in timm
    reprob, remode, recount   random erasing: probability; pixel (noise), rand (one colour) or const; most boxes
    mixup, cutmix             alpha of the Beta distribution of each; 0: off
    cutmix_minmax             range of the sides of CutMix boxes as fractions, instead of `cutmix`
    mixup_prob, mixup_switch_prob, mixup_mode   probability of mixing; of CutMix when both are on; batch, pair or elem
    mixup_off_epoch           no mixing from this epoch on, counted from 0; 0: never off
    smoothing                 label smoothing of the soft targets that mixing makes

    Order, with `scale` as in timm: resized crop, flips, `aa` or jitter, mixing, normalisation, erasing. Without it, as in
    the first official script: `aa` or jitter, crop, flips, and so on. Colour (saturation) leaves grey images as they are; all
    else is defined for them. Raises ValueError that names the field.
    """

    crop_padding: int = 4
    flip: bool = True
    hflip: float = 0.5
    vflip: float = 0.0
    scale: tuple[float, float] | None = None
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    train_interpolation: str = "random"
    aa: str | None = None
    color_jitter: float = 0.0
    reprob: float = 0.0
    remode: str = "pixel"
    recount: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    cutmix_minmax: tuple[float, float] | None = None
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    mixup_off_epoch: int = 0
    smoothing: float = 0.1

    def __post_init__(self):
        for name in ("scale", "ratio", "cutmix_minmax"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check(self)

    @property
    def mixes(self) -> bool:
        """Whether targets are soft. They stay so after `mixup_off_epoch`, as in timm."""
        return self.mixup > 0 or self.cutmix_alpha > 0

    @property
    def cutmix_alpha(self) -> float:
        """`cutmix`, or 1 when `cutmix_minmax` takes its place."""
        return 1.0 if self.cutmix_minmax is not None else self.cutmix

    @property
    def cut_probability(self) -> float:
        """Probability that a batch that is mixed gets CutMix."""
        return self.mixup_switch_prob if self.mixup > 0 and self.cutmix_alpha > 0 else float(self.cutmix_alpha > 0)

    @property
    def policy(self):
        """The parsed `aa`, or None."""
        return policies.parse(self.aa) if self.aa else None

    def summary(self) -> str:
        """What is switched on, in a line."""
        mirrors = self.flip and any((self.hflip, self.vflip))
        parts = {
            "crop of {:g} to {:g}".format(*self.scale or (1, 1)): self.scale,
            f"crop after padding {self.crop_padding}": self.crop_padding and self.scale is None,
            "flips": mirrors,
            str(self.aa): self.aa,
            f"jitter {self.color_jitter:g}": self.color_jitter and not self.aa,
            f"mixup {self.mixup:g}": self.mixup,
            f"cutmix {self.cutmix_alpha:g}": self.cutmix_alpha,
            f"erasing {self.reprob:g}": self.reprob,
        }
        return ", ".join(name for name, on in parts.items() if on) or "no augmentation"

    def fill(self, mean) -> tuple[int, ...]:
        """The colour that geometric operations find outside the image: the mean of the data, grey for autoaugment."""
        grey = self.policy and self.policy.fill
        return tuple(min(255, round(255 * m)) if grey is None else grey for m in mean)

    def draw(self, seed, epoch, index: torch.Tensor, size) -> Drawn:
        """The choices for the samples of `index` (n,), images of size (H, W). seed, epoch: ints or int64 tensors ()."""
        hflip, vflip = (self.hflip, self.vflip) if self.flip else (0.0, 0.0)
        steps, kinds = [], []
        if self.scale is not None:
            crop = (self.scale, self.ratio, self.train_interpolation, hflip, vflip)
            steps, kinds = [crops.resized_crop(seed, epoch, index, size, *crop)], [frozenset({RESIZE})]
        if self.policy is not None:
            steps += self.policy.draw(seed, epoch, index, size, self.train_interpolation)
            kinds += [self.policy.kinds] * self.policy.steps
        elif self.color_jitter > 0:
            steps += policies.jitter(seed, epoch, index, self.color_jitter)
            kinds += [policies.JITTER] * 3
        if self.scale is None and (self.crop_padding or hflip or vflip):
            steps.append(crops.pad_crop(seed, epoch, index, self.crop_padding, hflip, vflip))
            kinds.append(frozenset({SHIFT}))
        boxes = crops.erasing(seed, epoch, index, size, self.reprob, self.recount) if self.reprob > 0 else None
        return Drawn(join(steps, kinds) if steps else None, boxes)

    def draw_mix(self, seed, epoch: int, batches: torch.Tensor, count: int, size) -> mixing.Mix | None:
        """How batches of `count` samples are mixed, or None; batches: their numbers in the epoch, int64 (k,)."""
        if not self.mixes:
            return None
        if self.mixup_off_epoch and epoch >= self.mixup_off_epoch:
            return mixing.unmixed(len(batches), count, batches.device)
        return mixing.draw(seed, epoch, batches, count, size, self)

    def pixels(self, images: torch.Tensor, program: Program | None, fill) -> torch.Tensor:
        """uint8 (B, C, H, W) and the program of its samples -> uint8 (B, C, H, W). fill: one value 0..255 a channel."""
        if program is None:
            return images
        colours = any(kinds & (TONES | policies.JITTER) for kinds in program.kinds)
        if colours and images.shape[1] not in (1, 3):
            name = "aa" if self.aa else "color_jitter"
            raise ValueError(f"Augment: {name} is for images with 1 or 3 channels, these have {images.shape[1]}; switch it off")
        return carry_out.pixels(images, program, fill)

    def finish(self, images, mix, boxes, scale, shift) -> torch.Tensor:
        """uint8 (B, C, H, W), its mixing and boxes -> float32, mixed, times `scale` plus `shift` ((C, 1, 1) each), erased."""
        return carry_out.finish(images, mix, boxes, scale, shift, self.remode)

    def targets(self, labels, mix, num_classes: int) -> torch.Tensor:
        """int64 (B,) -> the same without mixing, soft targets float32 (B, num_classes) with it."""
        return labels if mix is None else mixing.targets(labels, mix, num_classes, self.smoothing)
