"""From a configuration to the things of a run: device, threads, data, model, augmentation, objective."""

import dataclasses
import os
from pathlib import Path

import torch

import cct.data
from cct.data import Augment, DataSet
from cct.data.streamed import StreamedSplit
from cct.models import create_model
from cct.models.complexity import count_macs, count_parameters
from cct.models.pretrained import resolve as resolve_weights
from cct.models.registry import find

from . import sizes
from .config import Config, ConfigError
from .defaults import OF_FILES
from .distributed import Workers
from .objective import Classification
from .schedules import warmup_epochs


@dataclasses.dataclass
class Setup:
    """What `prepare` makes; `config` has every choice that was left open filled in, so that it gives the same run again."""

    config: Config
    device: torch.device
    data: DataSet
    model: torch.nn.Module
    augment: Augment
    objective: Classification


def prepare(config, workers=None, *, pretrained=True):
    """Set threads and seed, read the data, make the model on its device. pretrained=False: the weights come from elsewhere.

    workers: the `Workers` that share the run. A foreign model takes the place of the one of `make_model`: it maps images to
    logits and has `get_classifier`, `fused_report` (text) and `config`, a dict that goes into the checkpoints. Another
    objective takes the place of Classification.
    Raises ConfigError or DataError.
    """
    workers = workers or Workers()
    check(config)
    if config.batch_size < workers.count * config.accumulate_steps:
        raise ConfigError(
            f"batch_size: {config.batch_size} images cannot be cut into {workers.count} x {config.accumulate_steps} pieces "
            "(processes x accumulate_steps); raise --batch-size, which counts all processes together"
        )
    device = choose_device(config.device, workers)
    if device.index is not None:
        torch.cuda.set_device(device)  # kernels are launched on the current one
    if config.threads is not None or workers.count > 1:  # torchrun gives one thread, however many cores there are
        torch.set_num_threads(config.threads or max(1, os.cpu_count() // workers.local_count))
    with workers.first_here_first():
        data = cct.data.load(config.data, config.data_dir, **config.data_arguments())
        weights = resolve_weights(config.pretrained, config.model) if pretrained and config.pretrained else False
    if config.num_classes not in (None, data.num_classes):
        raise ConfigError(f"num_classes: got {config.num_classes}; {data.source} has {data.num_classes}; leave the key out")
    if config.drop_last and len(data.train) < config.batch_size:
        raise ConfigError(
            f"drop_last: no batch of {config.batch_size} images is left of {len(data.train)}; lower --batch-size, or say "
            "--no-drop-last"
        )
    config = dataclasses.replace(
        config,
        data_dir=None if config.data_dir is None else str(Path(config.data_dir).expanduser().absolute()),
        device=str(device) if workers.count == 1 else device.type,
        threads=torch.get_num_threads(),
        warmup_epochs=warmup_epochs(config),
        num_classes=data.num_classes,
        img_size=data.img_size[0] if data.img_size[0] == data.img_size[1] else config.img_size,
        mean=data.mean,
        std=data.std,
        stream=isinstance(data.train, StreamedSplit) if config.data in OF_FILES else config.stream,
        **resolved_crop_and_flip(config, data.augment),
    )
    torch.manual_seed(config.seed)
    model = make_model(
        config.model, pretrained=weights, num_classes=data.num_classes, img_size=data.img_size, in_chans=data.channels,
        fused=config.fused, **config.model_arguments(),
    )  # fmt: skip
    _accept_sizes(model, config)
    return Setup(config, device, data, model.to(device), make_augment(config), Classification(config.smoothing))


def choose_device(name, workers=None):
    """'auto', 'cpu', 'cuda' or 'cuda:N' as a torch.device that is there; ConfigError when it is not.

    Of several workers on a machine each takes the GPU of its own number.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is not None and device.type == "cuda" and workers is not None and workers.count > 1:
        device = torch.device("cuda", workers.local_rank)
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {device} is not here ({torch.cuda.device_count()} CUDA devices found); use --device cpu")
    return device


def make_model(name, **kwargs):
    """`create_model`, its complaints about the arguments as ConfigError."""
    try:
        return create_model(name, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def check(config):
    """Raise ConfigError for what is seen to be wrong before any data are downloaded: model and augmentation."""
    if config.model.startswith("text_"):
        raise ConfigError(f"model: {config.model} reads text; expected an image model, see `cct info`")
    try:
        find(config.model)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    make_augment(dataclasses.replace(config, crop_padding=config.crop_padding or 0, flip=bool(config.flip)))


def _accept_sizes(model, config):
    """Let the model take the smaller images of `progressive`."""
    for _, side in sizes.parse(config.progressive):
        if config.img_size is None or side > config.img_size:
            expected = "square images" if config.img_size is None else f"at most img_size, {config.img_size}"
            raise ConfigError(f"progressive: got side {side}, expected {expected}; the model is evaluated at img_size")
        try:
            model.accept_size(side)
        except ValueError as error:
            raise ConfigError(f"progressive: side {side}: {error}") from error


def resolved_crop_and_flip(config, usual):
    """What stands for crop_padding and flip where they are not given: those of the data, or what scale and hflip say."""
    padding = 0 if config.scale is not None else usual.crop_padding
    flip = usual.flip or config.hflip is not None
    return {
        "crop_padding": padding if config.crop_padding is None else config.crop_padding,
        "flip": flip if config.flip is None else config.flip,
    }


def make_augment(config):
    """The `Augment` of a configuration whose crop_padding and flip are resolved."""
    try:
        return Augment(**config.augmentation())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def describe(setup, folder, steps, epochs, workers):
    """The lines that stand at the start of a run."""
    config, data, model = setup.config, setup.data, setup.model
    height, width = data.img_size
    held_out = f"{len(data.val):,} validation and " if data.val is not None else ""
    pieces, processes = "", ""
    if workers.count * config.accumulate_steps > 1:
        pieces = f" ({workers.count} x {config.accumulate_steps} pieces)"
    if workers.count > 1:
        processes = f"{workers.count} processes, {workers.local_count} of them here, each on "
    decay = f"weight decay {config.weight_decay:g}" + (" on everything" if config.decay_all else "")
    smaller = [f"sizes    {config.progressive} (from epoch, the first is 0), else {height}"] if config.progressive else []
    return [
        f"data     {data.name}, {data.source}: {len(data.train):,} training, {held_out}{len(data.test):,} test images, "
        f"{data.num_classes} classes, {height}x{width}, {'grey' if data.channels == 1 else 'RGB'}",
        f"split    {data.split}",
        f"model    {config.model}: {count_parameters(model).total:,} parameters, "
        f"{count_macs(model).full / 1e9:.4g} G multiply-adds an image",
        f"train    {_count(epochs, 'epoch')} of {_count(steps, 'step')}, {_count(epochs * steps, 'step')} in all, "
        f"effective batch {config.batch_size}{pieces}, learning rate {config.lr:g} ({config.sched}, "
        f"{_count(config.warmup_epochs, 'epoch')} of warm-up), {config.opt}, {decay}, "
        f"seed {config.seed}",
        *smaller,
        f"machine  {processes}{device_name(setup.device)}, {'bfloat16 autocast' if config.amp == 'bf16' else 'float32'}",
        f"kernels  {kernels(model)}",
        f"run      {folder}",
    ]


def device_name(device):
    """'cpu, 2 threads' or the name of the GPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {_count(torch.get_num_threads(), 'thread')}"


def kernels(model):
    """`model.fused_report()` in one line: each op and what runs it."""
    return ", ".join(" ".join(line.split()[:2]) for line in model.fused_report().splitlines()[1:])


def _count(n, word):
    return f"{n:,} {word}{'s' if n != 1 else ''}"
