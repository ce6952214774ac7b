"""A checkpoint from the command line: a .safetensors of ours, an official .pth, or a run folder."""

import sys
from pathlib import Path

from cct.data.published import CIFAR
from cct.models.checkpoints import load_checkpoint
from cct.models.pretrained import OTHER_FILES, RELEASED
from cct.training.config import ConfigError
from cct.training.setup import choose_device, make_model


def open_checkpoint(path, model_name=None, *, preprocessing=False):
    """(model in evaluation mode, the configuration beside its weights or {}) of a file, or of the best weights of a run.

    model_name: for files that do not say which model they hold. preprocessing: whether it must be known how to prepare images.
    Raises ConfigError or CheckpointError naming the file.
    """
    path = Path(path)
    path = path / "best.safetensors" if path.is_dir() else path
    config = load_checkpoint(path)[1] or {}
    recorded = config.get("model", {})
    name = model_name or recorded.get("name")
    if name is None:
        raise ConfigError(f"{path}: does not say which model it holds; name it with --model (see `cct info`)")
    model = make_model(name, pretrained=str(path), **({} if model_name else recorded.get("kwargs", {})))
    if not hasattr(model, "img_size"):
        raise ConfigError(f"{path}: holds {name}, a text model; this command takes image models")
    if preprocessing and "preprocessing" not in config:
        config = {**config, **as_released(model)}
        if "preprocessing" not in config:
            raise ConfigError(
                f"{path}: does not say how to prepare images; expected a .safetensors file of `cct train`, or a model with "
                "released weights"
            )
        if not is_released(path, model):
            print(f"{path}: images are prepared as for the released weights of {name}; it says nothing", file=sys.stderr)
        elif released_data(model) in CIFAR:
            config["classes"] = list(CIFAR[released_data(model)].classes)
    return model.eval(), config


def released_data(model):
    """The data of the released weights of this model; None where none were released."""
    released = RELEASED.get(model.config["name"])
    return None if released is None else released.data


def is_released(path, model):
    """Whether the file has the name of released weights of this data."""
    return path.name in [r.file for r in (*RELEASED.values(), *OTHER_FILES) if r.data == released_data(model)]


def as_released(model):
    """{"preprocessing": how the official evaluation prepares images} for a model with released weights, else {}."""
    if released_data(model) is None:
        return {}
    known = {key: value for key, value in model.preprocessing.items() if key != "file"}
    return {"preprocessing": {**known, "size": list(model.img_size), "channels": model.in_chans}}


def open_classifier(args):
    """(model on its device, configuration, device, class names) as --top, --device and CKPT of a command on images say."""
    if args.top < 1:
        raise ConfigError(f"--top: got {args.top}, expected at least 1")
    device = choose_device(args.device)
    model, config = open_checkpoint(args.checkpoint, args.model, preprocessing=True)
    return model.to(device), config, device, config.get("classes") or [str(i) for i in range(model.num_classes)]
