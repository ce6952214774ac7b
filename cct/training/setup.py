"""From a configuration to the things of a run: device, threads, data, model, augmentation."""

import dataclasses
from pathlib import Path

import torch

import cct.data
from cct.data import Augment, DataSet
from cct.models import create_model
from cct.models.complexity import count_macs, count_parameters

from .config import Config, ConfigError
from .schedules import warmup_epochs


@dataclasses.dataclass
class Setup:
    """What `prepare` makes; `config` has every choice that was left open filled in, so that it gives the same run again."""

    config: Config
    device: torch.device
    data: DataSet
    model: torch.nn.Module
    augment: Augment


def prepare(config, *, pretrained=True):
    """Set threads and seed, read the data, make the model on its device. pretrained=False: the weights come from elsewhere.

    Raises ConfigError or DataError.
    """
    if config.model.startswith("text_"):
        raise ConfigError(f"model: {config.model} reads text; expected an image model, see `cct info`")
    device = choose_device(config.device)
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    data = cct.data.load(config.data, config.data_dir, img_size=config.img_size, val_split=config.val_split)
    config = dataclasses.replace(
        config,
        data_dir=None if config.data_dir is None else str(Path(config.data_dir).expanduser().absolute()),
        device=str(device),
        threads=torch.get_num_threads(),
        warmup_epochs=warmup_epochs(config),
        crop_padding=data.augment.crop_padding if config.crop_padding is None else config.crop_padding,
        flip=data.augment.flip if config.flip is None else config.flip,
    )
    torch.manual_seed(config.seed)
    model = make_model(
        config.model, pretrained=config.pretrained if pretrained else False, num_classes=data.num_classes,
        img_size=data.img_size, in_chans=data.channels, fused=config.fused, **config.model_kwargs,
    )  # fmt: skip
    return Setup(config, device, data, model.to(device), Augment(crop_padding=config.crop_padding, flip=config.flip))


def choose_device(name):
    """'auto', 'cpu', 'cuda' or 'cuda:N' as a torch.device that is there; ConfigError when it is not."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device: got {name!r}, expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device: {name} is not here ({torch.cuda.device_count()} CUDA devices found); use --device cpu")
    return device


def make_model(name, **kwargs):
    """`create_model`, its complaints about the arguments as ConfigError."""
    try:
        return create_model(name, **kwargs)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def describe(setup, folder, steps, epochs):
    """The lines that stand at the start of a run."""
    config, data, model = setup.config, setup.data, setup.model
    height, width = data.img_size
    held_out = f"{len(data.val):,} validation and " if data.val is not None else ""
    decay = f"weight decay {config.weight_decay:g}" + (" on everything" if config.decay_all else "")
    return [
        f"data     {data.name}, {data.source}: {len(data.train):,} training, {held_out}{len(data.test):,} test images, "
        f"{data.num_classes} classes, {height}x{width}, {'grey' if data.channels == 1 else 'RGB'}",
        f"split    {data.split}",
        f"model    {config.model}: {count_parameters(model).total:,} parameters, "
        f"{count_macs(model).full / 1e9:.4g} G multiply-adds an image",
        f"train    {_count(epochs, 'epoch')} of {_count(steps, 'step')}, {_count(epochs * steps, 'step')} in all, "
        f"effective batch {config.batch_size}, learning rate {config.lr:g} ({config.sched}, "
        f"{_count(config.warmup_epochs, 'epoch')} of warm-up), {config.opt}, {decay}, "
        f"seed {config.seed}",
        f"machine  {device_name(setup.device)}, {'bfloat16 autocast' if config.amp == 'bf16' else 'float32'}",
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
