"""What a training run is told: one dataclass, filled from data-set defaults, a YAML file and flags, in that order."""

import dataclasses
import difflib
import math
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from .defaults import DATA_SETS, DEFAULTS

OPTIMIZERS = ("adamw", "sgd")
CLIPS = ("norm", "value", "agc")
SCHEDULES = ("cosine", "cosine_per_step", "cosine_v1", "step", "one_cycle", "constant")


class ConfigError(ValueError):
    """A configuration value, key or file that cannot be used; the message names it and what is expected."""


def checks(help, *, choices=None, low=None, above=None, below=None, metavar=None):
    """What a field of Config may hold. low: the least value; above, below: open bounds; help and metavar are for `--help`."""
    return {"help": help, "choices": choices, "low": low, "above": above, "below": below, "metavar": metavar}


def option(default, help, **limits):
    """A field of Config."""
    return field(default=default, metadata=checks(help, **limits))


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; names are those of timm and of the official YAML files."""

    data: str = option("digits", "data set", choices=DATA_SETS)
    data_dir: str | None = option(None, "folder with the data files", metavar="DIR")
    model: str = option("cct_2_3x2", "model name, see `cct info`")
    model_kwargs: dict = field(default_factory=dict, metadata=checks("further arguments of the model, as key=value"))
    pretrained: bool | str = option(False, "start from a checkpoint FILE, or the released weights", metavar="FILE")
    img_size: int | None = option(None, "side of the square input in pixels; usual for the data set if not given", low=1)
    val_split: float | None = option(None, "hold this fraction of the training images out and report on it", above=0, below=1)

    epochs: int = option(30, "epochs, without the cool-down", low=1)
    batch_size: int = option(128, "images in one optimizer step, all processes together", low=1)
    accumulate_steps: int = option(1, "pieces that each process takes its part of a batch in: less memory, same step", low=1)
    opt: str = option("adamw", "optimizer", choices=OPTIMIZERS)
    lr: float = option(5e-4, "peak learning rate", above=0)
    momentum: float = option(0.9, "momentum of SGD", low=0, below=1)
    weight_decay: float = option(0.05, "decoupled (AdamW) or plain (SGD) weight decay", low=0)
    decay_all: bool = option(False, "weight decay on biases, norms and other one-dimensional parameters too")
    smoothing: float = option(0.1, "label smoothing", low=0, below=1)
    clip_grad: float | None = option(None, "clip the gradient to this, see --clip-mode", above=0)
    clip_mode: str = option("norm", "L2 norm of all; each value; agc: norm of a row over that of its weights", choices=CLIPS)

    sched: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    min_lr: float = option(0.0, "least learning rate of the cosine", low=0)
    warmup_lr: float = option(1e-6, "learning rate that the warm-up starts from", low=0)
    warmup_epochs: int | None = option(None, "epochs of warm-up; a tenth of --epochs, at most 10, if not given", low=0)
    cooldown_epochs: int = option(0, "further epochs at --min-lr after the cosine", low=0)
    decay_epochs: int = option(30, "epochs between two steps of --sched step", low=1)
    decay_rate: float = option(0.1, "factor of one step of --sched step", above=0)

    crop_padding: int | None = option(None, "random crop after this much zero padding; usual for the data if not given", low=0)
    flip: bool | None = option(None, "random horizontal flip; usual for the data set if not given")

    model_ema: bool = option(False, "keep an exponential moving average of the weights and report it too")
    model_ema_decay: float = option(0.999, "decay of the moving average, per step", low=0, below=1)
    model_ema_warmup: bool = option(False, "let that decay grow, (1 + step) / (10 + step) at most: for short runs")
    eval_every: int = option(1, "evaluate after every so many epochs, and after the last", low=1)
    tta: str = option("none", "at evaluation, mean over the image and its mirror image", choices=("none", "flip"))
    target_top1: float | None = option(None, "end as soon as the held-out top-1 reaches this, percent", above=0)
    amp: str = option("off", "mixed precision", choices=("off", "bf16"))
    fused: bool | str = option(True, "fused kernels where they run; --no-fused: none; strict: or fail", metavar="strict")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = option(None, "CPU threads", low=1)
    seed: int = option(42, "seed of weights, order, augmentation and dropout", low=0)

    output: str | None = option(None, "run folder; runs/DATA-MODEL-DATE-N if not given", metavar="RUN")
    save_seconds: float = option(60.0, "seconds between two saves inside an epoch", low=0)

    def __post_init__(self):
        for name in KINDS:
            object.__setattr__(self, name, coerce(name, getattr(self, name)))
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs: got {self.warmup_epochs}, expected at most epochs ({self.epochs}); "
                "lower --warmup-epochs or raise --epochs"
            )

    def to_yaml(self):
        """The resolved configuration as YAML text; `resolve({}, file=...)` reads it back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)


KINDS = typing.get_type_hints(Config)
FIELDS = {f.name: f for f in dataclasses.fields(Config)}
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


def nearest(name, names):
    """'; did you mean X?' for the closest of `names`, or '' when none is close."""
    close = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def coerce(name, value):
    """`value` as the type of field `name` of Config, checked; from YAML, a flag's text or Python.

    '55e-5' is a number although YAML 1.1 calls it text; `amp: true` means bf16, as in the official files.
    Raises ConfigError naming the key, what was got and what is expected.
    """
    kind, limits = KINDS[name], FIELDS[name].metadata
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if value is None and type(None) in kinds:
        return None
    if name == "amp":
        value = {True: "bf16", False: "off"}.get(value, value) if isinstance(value, bool) else value
    for one in kinds:
        converted = _convert(one, value)
        if converted is not None:
            break
    else:
        words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "key=value pairs"}
        expected = " or ".join(words[k] for k in kinds if k in words)
        raise ConfigError(f"{name}: got {value!r}, expected {expected}")
    _check(name, converted, limits)
    return converted


def _convert(kind, value):
    """value as `kind`, or None when it is no such thing."""
    if kind is bool:
        return value if isinstance(value, bool) else _WORDS.get(value.lower()) if isinstance(value, str) else None
    if kind in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            return None
        try:
            number = float(value)
        except ValueError:
            return None
        if kind is float or not math.isfinite(number):
            return number if kind is float and math.isfinite(number) else None
        return int(value) if isinstance(value, int) else int(number) if number == int(number) else None
    return value if isinstance(value, kind) else None


def _check(name, value, limits):
    choices, low, above, below = (limits[key] for key in ("choices", "low", "above", "below"))
    if choices and value not in choices:
        raise ConfigError(f"{name}: got {value!r}, expected one of {', '.join(choices)}{nearest(value, choices)}")
    if low is not None and value < low:
        raise ConfigError(f"{name}: got {value}, expected at least {low}")
    if above is not None and value <= above:
        raise ConfigError(f"{name}: got {value}, expected more than {above}")
    if below is not None and value >= below:
        raise ConfigError(f"{name}: got {value}, expected less than {below}")
    if name == "fused" and isinstance(value, str) and value != "strict":
        raise ConfigError(f"fused: got {value!r}, expected true, false or 'strict'")


def read_yaml(path):
    """The keys of a YAML file as a dict, each checked to be a field of Config and converted to its type."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where}: not YAML: {getattr(error, 'problem', error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected `key: value` lines, got {type(values).__name__}")
    try:
        return {name: coerce(_known(name), value) for name, value in values.items()}
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _known(name):
    if name not in FIELDS:
        raise ConfigError(f"unknown key {name!r}{nearest(name, FIELDS) or '; the keys are ' + ', '.join(FIELDS)}")
    return name


def resolve(flags, file=None):
    """The Config of a run: defaults of the data set, under the YAML `file`, under `flags` (a dict of given ones)."""
    values = read_yaml(file) if file else {}
    values.update({_known(name): value for name, value in flags.items()})
    data = coerce("data", values.get("data", FIELDS["data"].default))
    return Config(**{**DEFAULTS[data], **values})
