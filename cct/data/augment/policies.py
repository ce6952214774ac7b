"""Which operations an image gets: RandAugment as timm defines it, the AutoAugment policy for CIFAR-10, colour jitter.

`rand-m9-mstd0.5-inc1` is RandAugment (E. Cubuk et al., 2019) in the words of timm:
  m  magnitude, 0 to 10 (10)                 mstd  standard deviation of the magnitude (0); above 100: uniform in [0, m]
  n  operations on an image (2)              mmax  largest magnitude (10)
  p  probability of each (0.5)               inc   1: the operations that grow with the magnitude; 0: timm's older ones
  w  0: timm's weights of the operations, drawn without replacement; without it all are equally likely, with replacement
`autoaugment` is the policy found on CIFAR-10 (E. Cubuk et al., "AutoAugment", 2018, table 7) with the magnitudes of the
official script; it draws no magnitudes.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import torch

from .. import draws
from . import program as p
from .crops import filters
from .program import constant, step

# name -> (operation, weight w0 of timm), in timm's order
OPERATIONS = {
    "AutoContrast": (p.AUTO_CONTRAST, 0.025),
    "Equalize": (p.EQUALIZE, 0.005),
    "Invert": (p.INVERT, 0.0),
    "Rotate": (p.AFFINE, 0.3),
    "Posterize": (p.POSTERIZE, 0.0),
    "Solarize": (p.SOLARIZE, 0.005),
    "SolarizeAdd": (p.SOLARIZE_ADD, 0.005),
    "Color": (p.COLOR, 0.025),
    "Contrast": (p.CONTRAST, 0.005),
    "Brightness": (p.BRIGHTNESS, 0.005),
    "Sharpness": (p.SHARPNESS, 0.025),
    "ShearX": (p.AFFINE, 0.2),
    "ShearY": (p.AFFINE, 0.2),
    "TranslateX": (p.AFFINE, 0.1),
    "TranslateY": (p.AFFINE, 0.1),
}
NAMES = tuple(OPERATIONS)
GREY = 128  # fill of AutoAugment

# 25 pairs of (operation, probability, argument); a negative sign is drawn for the operations in SIGNED.
SIGNED = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Color", "Contrast", "Brightness", "Sharpness")
_SHEAR, _TRANSLATE, _ROTATE, _ENHANCE = (lambda m, top=top: m * top / 9 for top in (0.3, 150 / 331, 30, 0.9))
_ARGUMENT = {
    "ShearX": _SHEAR, "ShearY": _SHEAR, "TranslateX": _TRANSLATE, "TranslateY": _TRANSLATE, "Rotate": _ROTATE,
    "Color": _ENHANCE, "Contrast": _ENHANCE, "Brightness": _ENHANCE, "Sharpness": _ENHANCE,
    "Posterize": lambda m: (8, 8, 7, 7, 6, 6, 5, 5, 4, 4)[m], "Solarize": lambda m: 256 - m * 256 / 9,
}  # fmt: skip
CIFAR10 = """
Invert .1 7 Contrast .2 6; Rotate .7 2 TranslateX .3 9; Sharpness .8 1 Sharpness .9 3; ShearY .5 8 TranslateY .7 9;
AutoContrast .5 8 Equalize .9 2; ShearY .2 7 Posterize .3 7; Color .4 3 Brightness .6 7; Sharpness .3 9 Brightness .7 9;
Equalize .6 5 Equalize .5 1; Contrast .6 7 Sharpness .6 5; Color .7 7 TranslateX .5 8; Equalize .3 7 AutoContrast .4 8;
TranslateY .4 3 Sharpness .2 6; Brightness .9 6 Color .2 8; Solarize .5 2 Invert .0 3; Equalize .2 0 AutoContrast .6 0;
Equalize .2 8 Equalize .6 4; Color .9 9 Equalize .6 6; AutoContrast .8 4 Solarize .2 8; Brightness .1 3 Color .7 0;
Solarize .4 5 AutoContrast .9 3; TranslateY .9 9 TranslateY .7 9; AutoContrast .9 2 Solarize .8 3; Equalize .8 8 Invert .1 3;
TranslateY .7 9 AutoContrast .9 1
"""


def parse(text: str):
    """The policy of a configuration's `aa`. Raises ValueError that names what is not understood."""
    if text == "autoaugment":
        return AutoAugment()
    name, *parts = text.split("-")
    if name != "rand":
        raise ValueError(f"Augment: aa is {text!r}; expected autoaugment, or rand with options such as rand-m9-mstd0.5-inc1")
    kinds = {"m": int, "n": int, "mmax": int, "inc": int, "w": int, "mstd": float, "p": float}
    values = {}
    for part in parts:
        found = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        key, number = found.groups() if found else (part, "")
        if key not in kinds or not number or (kinds[key] is int and "." in number):
            raise ValueError(
                f"Augment: aa is {text!r}, where {part!r} is not understood; expected m# n# mstd# mmax# p# w# inc#, "
                "as in rand-m9-mstd0.5-inc1"
            )
        values[key] = kinds[key](number)
    limits = {"n": (1, 16), "p": (0, 1), "w": (0, 0), "inc": (0, 1), "mmax": (1, 100)}
    for key, (low, high) in limits.items():
        if key in values and not low <= values[key] <= high:
            raise ValueError(f"Augment: aa is {text!r}, where {key} is {values[key]}; expected {low} to {high}")
    if "w" in values and values.get("n", 2) > sum(w > 0 for _, w in OPERATIONS.values()):
        raise ValueError(f"Augment: aa is {text!r}; w0 draws without replacement, from 13 operations")
    if values.pop("w", None) is not None:
        values["weighted"] = True
    return RandAugment(**values)


@dataclass(frozen=True)
class RandAugment:
    """n operations drawn for each sample, each carried out with probability p; see the head of this file."""

    m: int = 10
    n: int = 2
    mstd: float = 0.0
    mmax: int = 10
    p: float = 0.5
    inc: int = 0
    weighted: bool = False
    fill = None  # the mean colour of the data set
    kinds = frozenset(code for code, _ in OPERATIONS.values())

    @property
    def steps(self):
        return self.n

    def draw(self, seed, epoch, index, size, interpolation: str):
        """A step (codes, args) for each of the n operations."""
        words = draws.words_of(seed, epoch, draws.POLICY, index, self.n).view(-1, self.n, 4)
        choice = self._choices(words[:, :, 0])
        steps = []
        for i in range(self.n):
            applied, word = words[:, i, 1], words[:, i, 2:]
            if self.mstd > 100:
                magnitude = self.m * draws.unit(word[:, 0])
            else:
                magnitude = self.m + self.mstd * draws.normal(word[:, 0], word[:, 1])
            # The lowest bits of a word are independent of the highest, which made the choice.
            sign, bit = 1 - 2 * (words[:, i, 0] & 1), words[:, i, 0] >> 1 & 1
            values = self._values(magnitude.clamp(0, self.mmax), sign)
            values = values.gather(1, choice[:, i : i + 1])[:, 0]
            drawn = operation(choice[:, i], values, filters(bit, interpolation), size)
            steps.append(kept(drawn, draws.chance(applied, self.p)))
        return steps

    def _choices(self, words):
        """int64 (n samples, n operations): which of OPERATIONS."""
        if not self.weighted:
            return draws.below(words, len(NAMES))
        weights = constant(tuple(w for _, w in OPERATIONS.values()), torch.float64, words.device)
        weights, chosen = weights.expand(len(words), -1), []
        for i in range(self.n):
            total = weights.cumsum(1)
            chosen.append((draws.unit(words[:, i : i + 1]) * total[:, -1:] >= total).sum(1).clamp(max=len(NAMES) - 1))
            weights = weights.scatter(1, chosen[-1][:, None], 0.0)
        return torch.stack(chosen, 1)

    def _values(self, level, sign):
        """The argument of each of OPERATIONS at these magnitudes, float64 (n samples, 15); sign is 1 or -1."""
        level = level / 10
        enhance = (1 + sign * 0.9 * level).clamp(min=0.1) if self.inc else 1.8 * level + 0.1
        bits, threshold = torch.floor(4 * level), torch.floor(256 * level).clamp(max=256)
        zero = torch.zeros_like(level)
        values = {
            "Rotate": sign * 30 * level,
            "Posterize": (4 - bits if self.inc else bits).clamp(0, 8),
            "Solarize": 256 - threshold if self.inc else threshold,
            "SolarizeAdd": torch.floor(110 * level).clamp(max=128),
            **dict.fromkeys(("Color", "Contrast", "Brightness", "Sharpness"), enhance),
            **dict.fromkeys(("ShearX", "ShearY"), sign * 0.3 * level),
            **dict.fromkeys(("TranslateX", "TranslateY"), sign * 0.45 * level),
        }
        return torch.stack([values.get(name, zero) for name in NAMES], 1)


@dataclass(frozen=True)
class AutoAugment:
    """One of 25 pairs of operations for each sample, each operation with its own probability."""

    fill = GREY
    steps = 2
    kinds = frozenset(
        {
            p.AUTO_CONTRAST,
            p.EQUALIZE,
            p.INVERT,
            p.POSTERIZE,
            p.SOLARIZE,
            p.BRIGHTNESS,
            p.CONTRAST,
            p.COLOR,
            p.SHARPNESS,
            p.AFFINE,
        }
    )

    def draw(self, seed, epoch, index, size, interpolation: str):
        """The two steps (codes, args). Shears are bicubic, the rest nearest, whatever the interpolation."""
        word = draws.words_of(seed, epoch, draws.POLICY, index)
        pair, steps = draws.below(word[:, 0], len(PAIRS)), []
        for i in range(2):
            table = constant(tuple(p[i] for p in PAIRS), torch.float64, index.device)[pair]
            choice, value, signed, filter = table[:, 0].long(), table[:, 2], table[:, 3] > 0, table[:, 4]
            negative = signed & (word[:, 3] >> i & 1 == 1)
            value = torch.where(negative, -value, value)
            drawn = operation(choice, torch.where(table[:, 5] > 0, 1 + value, value), filter, size)
            steps.append(kept(drawn, word[:, 1 + i].double() < table[:, 1] * 2**32))
        return steps


def _pairs():
    """(number of the operation, probability, argument, signed, filter, whether 1 is added) of each step of each pair."""
    for pair in CIFAR10.split(";"):
        words = pair.split()
        steps = []
        for name, probability, magnitude in (words[:3], words[3:]):
            argument = _ARGUMENT.get(name, lambda m: 0)(int(magnitude))
            filter = 2 if name.startswith("Shear") else p.NEAREST
            enhanced = name in ("Color", "Contrast", "Brightness", "Sharpness")
            steps.append((NAMES.index(name), float(probability), argument, name in SIGNED, filter, enhanced))
        yield tuple(steps)


PAIRS = tuple(_pairs())
JITTER = frozenset({p.BRIGHTNESS, p.CONTRAST, p.COLOR})


def jitter(seed, epoch, index, amount: float):
    """Brightness, contrast and colour in random order, each by a factor uniform in [max(0, 1 - amount), 1 + amount]."""
    word = draws.words_of(seed, epoch, draws.JITTER, index)
    orders = tuple(itertools.permutations((p.BRIGHTNESS, p.CONTRAST, p.COLOR)))
    order = constant(orders, torch.int64, index.device)[draws.below(word[:, 0], len(orders))]
    low, high = max(0.0, 1 - amount), 1 + amount
    return [step(order[:, i], {0: low + (high - low) * draws.unit(word[:, 1 + i])}, index) for i in range(3)]


def operation(choice, value, filter, size):
    """The step (codes, args) for the numbers of OPERATIONS (n,), their arguments (n,) and filters."""
    H, W = size
    codes = constant(tuple(code for code, _ in OPERATIONS.values()), torch.int64, choice.device)[choice]
    _, args = step(p.IDENTITY, {0: value}, choice)
    angle = torch.where(choice == NAMES.index("Rotate"), value, 0.0) * (math.pi / 180)
    cos, sin = torch.cos(angle), -torch.sin(angle)  # as Pillow turns: against the clock, about the middle
    matrix = torch.zeros(len(choice), p.WIDTH, dtype=torch.float64, device=choice.device)
    matrix[:, 0], matrix[:, 1], matrix[:, 3], matrix[:, 4] = cos, sin, -sin, cos
    matrix[:, 2] = cos * (-W / 2) + sin * (-H / 2) + W / 2
    matrix[:, 5] = -sin * (-W / 2) + cos * (-H / 2) + H / 2
    for name, column, factor in (("ShearX", 1, 1), ("ShearY", 3, 1), ("TranslateX", 2, W), ("TranslateY", 5, H)):
        matrix[:, column] = torch.where(choice == NAMES.index(name), value * factor, matrix[:, column])
    matrix[:, p.FILTER] = filter
    return codes, torch.where((codes == p.AFFINE)[:, None], matrix, args)


def kept(drawn, condition):
    """The step where the condition (n,) holds, nothing elsewhere."""
    codes, args = drawn
    return torch.where(condition, codes, p.IDENTITY), args
