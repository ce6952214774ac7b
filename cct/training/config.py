"""What a training run is told: one dataclass, filled from data-set defaults, a YAML file and flags, in that order."""

import dataclasses
import functools
import logging
import typing
from dataclasses import dataclass, field

import yaml

from . import sizes, timm_keys
from .defaults import DATA_SETS, DEFAULTS, OF_FILES
from .values import ConfigError, convert, limit, nearest, read_mapping

__all__ = ["FIELDS", "KINDS", "Config", "ConfigError", "coerce", "nearest", "read_yaml", "resolve"]

OPTIMIZERS = ("adamw", "sgd", "momentum", "muon")
CLIPS = ("norm", "value", "agc")
SCHEDULES = ("cosine", "cosine_per_step", "cosine_v1", "step", "one_cycle", "constant")
FILTERS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming")
VAL_NAMES = ("val", "valid", "validation", "test")
OWN_KEYS = {  # arguments of a model that other keys give
    "name": "use model: NAME",
    "pretrained": "use pretrained: FILE",
    "img_size": "use img_size: SIDE",
    "fused": "use fused: true, false or strict",
    "num_classes": "the data decide",
    "in_chans": "the data decide",
}
DESCRIPTIONS = ("paper", "note")  # of a recipe: the cells of the paper it gives; what was chosen where the sources are silent

_log = logging.getLogger("cct")


def about(help, *, metavar=None, **limits):
    """What is known about a field of Config; help and metavar are for `--help`, limits as in `values.limit`."""
    return {"help": help, "metavar": metavar, **limit(**limits)}


def option(default, help, **known):
    """A field of Config."""
    return field(default=default, metadata=about(help, **known))


maybe = functools.partial(option, None)


@dataclass(frozen=True)
class Config:
    """Everything that decides the result of a run; names are those of timm and of the official YAML files."""

    data: str = option("digits", "data set", choices=DATA_SETS)
    data_dir: str | None = maybe("folder with the data files", metavar="DIR")
    model: str = option("cct_2_3x2", "model name, see `cct info`")
    model_kwargs: dict = field(default_factory=dict, metadata=about("further arguments of the model, as key=value"))
    drop: float | None = maybe("dropout of embedding, projection and MLP; the model's own if not given", low=0, below=1)
    attn_drop: float | None = maybe("dropout of the attention weights; the model's own if not given", low=0, below=1)
    drop_path: float | None = maybe("stochastic depth of the last block; the model's own if not given", low=0, below=1)
    num_classes: int | None = maybe("checked against the data, which decide", low=1)
    pretrained: bool | str = option(False, "start from a checkpoint FILE, or the released weights", metavar="FILE")
    img_size: int | None = maybe("side of the square input in pixels; usual for the data set if not given", low=1)
    progressive: str | None = maybe(
        "smaller training images for a while: EPOCH=SIDE, from that epoch (the first is 0) on, such as 0=24,6=32",
        metavar="EPOCH=SIDE,...",
    )
    interpolation: str = option("bicubic", "filter that resizes image files", choices=FILTERS)
    crop_pct: float = option(1.0, "test images: part of the resized image that the centre crop keeps", above=0, high=1)
    mean: tuple[float, ...] | None = maybe(
        "mean of each channel, pixels in 0..1; usual for the data set if not given", low=0, high=1
    )
    std: tuple[float, ...] | None = maybe("standard deviation of each channel; usual for the data set if not given", above=0)
    val_split: float | str | None = maybe(
        "hold this fraction of the training images out and report on it; or the split to report on: valid or test",
        above=0,
        below=1,
    )
    samples_per_class: int | None = maybe("train on this many images of each class, always the same ones", low=1)
    stream: bool | None = maybe(
        "decode image files while training; if not given: with --scale, which then cuts from the whole image, and when they do "
        "not fit half the memory"
    )

    epochs: int = option(30, "epochs, without the cool-down", low=1)
    batch_size: int = option(128, "images in one optimizer step, all processes together", low=1)
    drop_last: bool = option(False, "leave out the last batch of an epoch where it is a smaller one")
    accumulate_steps: int = option(1, "pieces that each process takes its part of a batch in: less memory, same step", low=1)
    opt: str = option("adamw", "optimizer; sgd has Nesterov momentum, momentum the plain one, muon 0.95", choices=OPTIMIZERS)
    opt_eps: float | None = maybe("epsilon of AdamW; 1e-8 if not given", above=0)
    opt_betas: tuple[float, ...] | None = maybe("betas of AdamW; 0.9 0.999 if not given", low=0, below=1, length=2)
    lr: float = option(5e-4, "peak learning rate", above=0)
    momentum: float = option(0.9, "momentum of SGD", low=0, below=1)
    weight_decay: float = option(0.05, "decoupled (AdamW) or plain (SGD) weight decay", low=0)
    decay_all: bool = option(False, "weight decay on biases, norms and other one-dimensional parameters too")
    smoothing: float = option(0.1, "label smoothing", low=0, below=1)
    clip_grad: float | None = maybe("clip the gradient to this, see --clip-mode", above=0)
    clip_mode: str = option("norm", "L2 norm of all; each value; agc: norm of a row over that of its weights", choices=CLIPS)

    sched: str = option("cosine", "learning-rate schedule", choices=SCHEDULES)
    min_lr: float = option(0.0, "least learning rate of the cosine", low=0)
    warmup_lr: float = option(1e-6, "learning rate that the warm-up starts from", low=0)
    warmup_epochs: int | None = maybe("epochs of warm-up; a tenth of --epochs, at most 10, if not given", low=0)
    cooldown_epochs: int = option(0, "further epochs at --min-lr after the cosine", low=0)
    decay_epochs: int = option(30, "epochs between two steps of --sched step", low=1)
    decay_rate: float = option(0.1, "factor of one step of --sched step", above=0)

    crop_padding: int | None = maybe("random crop after this much zero padding; usual for the data if not given", low=0)
    flip: bool | None = maybe("random horizontal flip; usual for the data set if not given")
    aa: str | None = maybe("policy: rand-m9-mstd0.5-inc1 and the like, or autoaugment (CIFAR-10)", metavar="POLICY")
    color_jitter: float = option(0.0, "most change of brightness, contrast and saturation; not beside a policy", low=0)
    scale: tuple[float, ...] | None = maybe(
        "random resized crop: least and greatest part of the area", above=0, high=1, length=2
    )
    ratio: tuple[float, ...] = option(
        (3 / 4, 4 / 3), "random resized crop: least and greatest width over height", above=0, length=2
    )
    train_interpolation: str = option("random", "filter of that crop", choices=("random", "bilinear", "bicubic"))
    hflip: float | None = maybe("probability of a horizontal flip, instead of --flip", low=0, high=1)
    vflip: float = option(0.0, "probability of a vertical flip", low=0, high=1)
    reprob: float = option(0.0, "random erasing: probability", low=0, high=1)
    remode: str = option("pixel", "random erasing: what fills the box", choices=("const", "rand", "pixel"))
    recount: int = option(1, "random erasing: boxes", low=1)
    mixup: float = option(0.0, "alpha of mixup; 0: none", low=0)
    cutmix: float = option(0.0, "alpha of cutmix; 0: none", low=0)
    cutmix_minmax: tuple[float, ...] | None = maybe(
        "cutmix: least and greatest side of the box, instead of alpha", above=0, high=1, length=2
    )
    mixup_prob: float = option(1.0, "probability that a batch is mixed", low=0, high=1)
    mixup_switch_prob: float = option(0.5, "probability of cutmix where both are on", low=0, high=1)
    mixup_mode: str = option("batch", "one draw for a batch, a pair or an image", choices=("batch", "pair", "elem"))
    mixup_off_epoch: int = option(0, "first epoch without mixing; 0: mix to the end", low=0)

    model_ema: bool = option(False, "keep an exponential moving average of the weights and report it too")
    model_ema_decay: float = option(0.999, "decay of the moving average, per step", low=0, below=1)
    model_ema_warmup: bool = option(False, "let that decay grow, (1 + step) / (10 + step) at most: for short runs")
    eval_every: int = option(1, "evaluate after every so many epochs, and after the last", low=1)
    tta: str = option("none", "at evaluation, mean over the image and its mirror image", choices=("none", "flip"))
    target_top1: float | None = maybe("end as soon as the held-out top-1 reaches this, percent", above=0)
    amp: str = option("off", "mixed precision", choices=("off", "bf16"))
    fused: bool | str = option(True, "fused kernels where they run; --no-fused: none; strict: or fail", metavar="strict")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    threads: int | None = maybe("CPU threads", low=1)
    seed: int = option(42, "seed of weights, order, augmentation and dropout", low=0, high=2**63 - 1)

    output: str | None = maybe("run folder; runs/DATA-MODEL-DATE-N if not given", metavar="RUN")
    save_seconds: float = option(60.0, "seconds between two saves inside an epoch", low=0)

    def __post_init__(self):
        for name in KINDS:
            object.__setattr__(self, name, coerce(name, getattr(self, name)))
        if self.warmup_epochs is not None and self.warmup_epochs > self.epochs:
            raise ConfigError(
                f"warmup_epochs: got {self.warmup_epochs}, expected at most epochs ({self.epochs}); "
                "lower --warmup-epochs or raise --epochs"
            )
        for name in ("scale", "ratio", "cutmix_minmax"):
            if (pair := getattr(self, name)) is not None and pair[0] > pair[1]:
                raise ConfigError(f"{name}: got {pair[0]} {pair[1]}, expected the lesser number first")
        if late := [epoch for epoch, _ in sizes.parse(self.progressive) if epoch >= self.epochs]:
            raise ConfigError(f"progressive: got epoch {late[0]}, expected less than epochs ({self.epochs})")
        self.model_arguments()

    def to_yaml(self):
        """The resolved configuration as YAML text; `resolve({}, file=...)` reads it back."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False, allow_unicode=True)

    def data_arguments(self):
        """Keyword arguments of `cct.data.load`."""
        names = ("img_size", "val_split", "interpolation", "crop_pct", "mean", "std", "samples_per_class")
        stream = True if self.stream is None and self.scale is not None and self.data in OF_FILES else self.stream
        return {**{name: getattr(self, name) for name in names}, "stream": stream}

    def augmentation(self):
        """Keyword arguments of `cct.data.Augment`; crop_padding and flip must have been resolved."""
        names = ("vflip", "scale", "ratio", "train_interpolation", "aa", "color_jitter", "reprob", "remode", "recount", "mixup")
        names += ("cutmix", "cutmix_minmax", "mixup_prob", "mixup_switch_prob", "mixup_mode", "mixup_off_epoch", "smoothing")
        hflip = 0.5 if self.hflip is None else self.hflip
        return {"crop_padding": self.crop_padding, "flip": self.flip, "hflip": hflip, **{n: getattr(self, n) for n in names}}

    def model_arguments(self):
        """`model_kwargs` and the dropout rates that were given, under the names of the models.

        The official script took the rates too, but never handed them to its models.
        """
        if no_names := [key for key in self.model_kwargs if not isinstance(key, str)]:
            raise ConfigError(f"model_kwargs: got the key {no_names[0]!r}, expected names of arguments, such as embedding_dim")
        if own := sorted(set(OWN_KEYS) & self.model_kwargs.keys()):
            raise ConfigError(f"model_kwargs: {own[0]} is not given here; {OWN_KEYS[own[0]]}")
        names = {"drop": "dropout", "attn_drop": "attention_dropout", "drop_path": "stochastic_depth"}
        rates = {names[name]: getattr(self, name) for name in names if getattr(self, name) is not None}
        if twice := sorted(rates.keys() & self.model_kwargs.keys()):
            raise ConfigError(f"model_kwargs: {twice[0]} is given by its own key too; give it once")
        return {**rates, **self.model_kwargs}


KINDS = typing.get_type_hints(Config)
FIELDS = {f.name: f for f in dataclasses.fields(Config)}


def coerce(name, value):
    """`value` as the type of field `name` of Config, checked; from YAML, a flag's text or Python.

    `amp: true` means bf16, `tta: 0` none and model names may have hyphens, as in the official files.
    Raises ConfigError naming the key, what was got and what is expected.
    """
    if name == "amp" and isinstance(value, bool):
        value = "bf16" if value else "off"
    elif name == "model" and isinstance(value, str):
        value = value.replace("-", "_")
    elif name == "tta" and value in (0, "0"):
        value = "none"
    elif name == "progressive" and isinstance(value, dict):
        value = ",".join(f"{epoch}={side}" for epoch, side in value.items())
    elif name == "color_jitter" and value is None:
        value = 0.0
    elif name in ("interpolation", "crop_pct") and value in (None, ""):  # as timm writes down what was left to it
        value = FIELDS[name].default
    if name == "progressive":
        sizes.parse(value)
    value = convert(name, value, KINDS[name], FIELDS[name].metadata)
    if name == "fused" and isinstance(value, str) and value != "strict":
        raise ConfigError(f"fused: got {value!r}, expected true, false or 'strict'")
    if name == "val_split" and isinstance(value, str) and value not in VAL_NAMES:
        raise ConfigError(f"val_split: got {value!r}, expected a fraction or one of {', '.join(VAL_NAMES)}")
    return value


def read_yaml(path):
    """The keys of a YAML file as a dict, each checked to be a field of Config and converted to its type.

    Left out: keys of timm's script that change nothing here, after a line of warning that names them, and `paper` and `note`,
    which describe a recipe.
    """
    values = read_mapping(path)
    try:
        return _fields({name: value for name, value in values.items() if name not in DESCRIPTIONS}, f"{path}: ")
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _fields(values, where=""):
    """Given keys as fields of Config, timm's names translated."""
    values, ignored = timm_keys.translate(values)
    if ignored:
        _log.warning("%sno effect here: %s", where, ", ".join(f"{name} ({why})" for name, why in ignored.items()))
    return {name: coerce(_known(name), value) for name, value in values.items()}


def _known(name):
    if name not in FIELDS:
        near = nearest(name, [*FIELDS, *timm_keys.NAMES])
        raise ConfigError(f"unknown key {name!r}{near or '; the keys are ' + ', '.join(FIELDS)}")
    return name


def resolve(flags, file=None):
    """The Config of a run: defaults of the data set, under the YAML `file`, under `flags` (a dict of given ones).

    Where a file names its data by timm's key `dataset`, or without a file a flag does, what is left out is as in timm's script:
    SCRIPT_DEFAULTS.
    """
    given = _fields(flags)
    if file:  # it decides what the flags leave out
        given = {name: value for name, value in given.items() if name in flags or name not in timm_keys.SCRIPT_DEFAULTS}
    values = (read_yaml(file) if file else {}) | given
    return Config(**{**DEFAULTS[values.get("data", FIELDS["data"].default)], **values})
