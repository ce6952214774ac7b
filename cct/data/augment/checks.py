"""What the fields of `Augment` may hold."""

from . import policies
from .crops import INTERPOLATIONS
from .mixing import FILLS, MODES


def check(augment):
    """Raise ValueError that names the first field with a value that cannot be used."""
    for name, least in (("crop_padding", 0), ("recount", 1), ("mixup_off_epoch", 0)):
        value = getattr(augment, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            unit = " (pixels)" if name == "crop_padding" else ""
            refuse(name, value, f"an int of at least {least}{unit}")
    if augment.recount > 16:
        refuse("recount", augment.recount, "at most 16")
    if not isinstance(augment.flip, bool):
        refuse("flip", augment.flip, "True or False")
    for name in ("hflip", "vflip", "reprob", "mixup_prob", "mixup_switch_prob"):
        _number(augment, name, high=1.0)
    for name in ("color_jitter", "mixup", "cutmix"):
        _number(augment, name)
    _number(augment, "smoothing", high=1.0)
    _range(augment, "ratio", high=float("inf"))
    for name in ("scale", "cutmix_minmax"):
        if getattr(augment, name) is not None:
            _range(augment, name, high=1.0)
    for name, choices in (("train_interpolation", INTERPOLATIONS), ("remode", FILLS), ("mixup_mode", MODES)):
        if getattr(augment, name) not in choices:
            refuse(name, getattr(augment, name), f"one of {', '.join(choices)}")
    if augment.aa is not None:
        if not isinstance(augment.aa, str):
            refuse("aa", augment.aa, "text such as rand-m9-mstd0.5-inc1, or None")
        if augment.aa:
            policies.parse(augment.aa)


def _number(augment, name, high=float("inf")):
    value = getattr(augment, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= high:
        refuse(name, value, "a number of at least 0" if high == float("inf") else f"a number from 0 to {high:g}")


def _range(augment, name, high):
    value = getattr(augment, name)
    numbers = isinstance(value, tuple) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    if not numbers or not 0 < value[0] <= value[1] <= high:
        refuse(name, value, f"two numbers, the lesser first, above 0{'' if high == float('inf') else f' and at most {high:g}'}")


def refuse(name, value, expected):
    """Raise the ValueError of a field."""
    raise ValueError(f"Augment: {name} is {value!r}; expected {expected}")
