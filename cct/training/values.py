"""Values of configuration keys: from YAML, a flag's text or Python to the type of the field, checked."""

import difflib
import math
import types
import typing
from pathlib import Path

import yaml


class ConfigError(ValueError):
    """A configuration value, key or file that cannot be used; the message names it and what is expected."""


_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KIND_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "key=value pairs"}


# What other programs call our keys, where no spelling is close.
ELSEWHERE = {
    "learning_rate": "lr", "optimizer": "opt", "wd": "weight_decay", "scheduler": "sched", "bs": "batch_size",
    "label_smoothing": "smoothing", "num_epochs": "epochs", "image_size": "img_size", "arch": "model", "dropout": "drop",
}  # fmt: skip


def nearest(name, names):
    """'; did you mean X?' for the closest of `names`, or '' when none is close."""
    names, known = list(names), ELSEWHERE.get(str(name).lower().lstrip("-").replace("-", "_"), "")
    close = [ours for ours in (known, "--" + known.replace("_", "-")) if ours in names]
    close = close or difflib.get_close_matches(str(name), names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def convert(name, value, kind, limits):
    """`value` as `kind`: int, float, bool, str, dict, tuple[float, ...], or a union of them; the first that fits counts.

    '55e-5' is a number although YAML 1.1 calls it text. A tuple comes from a list or from text such as '0.8 1.0'. An empty
    text is None where None is allowed, as in the official files. limits: see `limit`.
    Raises ConfigError naming the key, what was got and what is expected.
    """
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if type(None) in kinds and (value is None or value == ""):
        return None
    for one in kinds:
        converted = _as_tuple(value) if typing.get_origin(one) is tuple else _as_one(one, value)
        if converted is not None:
            _check(name, converted, limits)
            return converted
    names = [_KIND_NAMES[k] for k in kinds if k in _KIND_NAMES]
    names += ["numbers such as 0.5 1.0" for k in kinds if typing.get_origin(k) is tuple]
    raise ConfigError(f"{name}: got {value!r}, expected {' or '.join(names)}")


def read_mapping(path):
    """The mapping in a YAML file as it stands, {} when the file is empty. Raises ConfigError naming the file and line."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except ValueError as error:  # a date that does not exist, such as 2026-13-45
        raise ConfigError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    return values or {}


def limit(*, choices=None, low=None, high=None, above=None, below=None, length=None):
    """What a value may be: choices; low, high: closed bounds; above, below: open ones; length: of a tuple, whose every value
    keeps the bounds. Text is held to `choices` alone."""
    return {"choices": choices, "low": low, "high": high, "above": above, "below": below, "length": length}


def _as_tuple(value):
    if isinstance(value, str):
        value = value.replace(",", " ").split()
    if not isinstance(value, list | tuple):
        return None
    numbers = tuple(_as_one(float, one) for one in value)
    return None if None in numbers or not numbers else numbers


def _as_one(kind, value):
    """value as `kind`, or None when it is no such thing."""
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS.get(value.lower()) if isinstance(value, str) else None
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        try:
            number = float(value)
        except (ValueError, OverflowError):  # a whole number of more than 308 digits
            return None
        if kind is float or not math.isfinite(number):
            return number if kind is float and math.isfinite(number) else None
        return int(value) if isinstance(value, int) else int(number) if number == int(number) else None
    return value if isinstance(value, kind) else None


def _check(name, value, limits):
    choices, length = limits["choices"], limits["length"]
    if choices and value not in choices:
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(choices)}{nearest(value, choices)}")
    if length is not None and isinstance(value, tuple) and len(value) != length:
        raise ConfigError(f"{name}: got {len(value)} numbers, expected {length}")
    if isinstance(value, str | dict):
        return
    for one in value if isinstance(value, tuple) else (value,):
        for key, words, fits in _BOUNDS:
            if limits[key] is not None and not fits(one, limits[key]):
                raise ConfigError(f"{name}: got {one}, expected {words} {limits[key]}")


_BOUNDS = (
    ("low", "at least", lambda value, bound: value >= bound),
    ("high", "at most", lambda value, bound: value <= bound),
    ("above", "more than", lambda value, bound: value > bound),
    ("below", "less than", lambda value, bound: value < bound),
)
