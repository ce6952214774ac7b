"""A checkpoint from the command line: a .safetensors of ours, an official .pth, or a run folder."""

from pathlib import Path

from cct.models.checkpoints import load_checkpoint
from cct.models.pretrained import RELEASED
from cct.training.config import ConfigError
from cct.training.setup import choose_device, make_model


def open_checkpoint(path, model_name=None, *, preprocessing=False):
    """(model in evaluation mode, the configuration beside its weights or {}) of a file, or of the best weights of a run.

    model_name: for files that do not say which model they hold. preprocessing: whether the file must say how to prepare images.
    Raises ConfigError or CheckpointError naming the file.
    """
    path = Path(path)
    path = path / "best.safetensors" if path.is_dir() else path
    config = load_checkpoint(path)[1] or {}
    if preprocessing and "preprocessing" not in config:
        raise ConfigError(f"{path}: does not say how to prepare images; expected a .safetensors file of `cct train`")
    recorded = config.get("model", {})
    name = model_name or recorded.get("name")
    if name is None:
        raise ConfigError(f"{path}: does not say which model it holds; name it with --model (see `cct info`)")
    model = make_model(name, pretrained=str(path), **({} if model_name else recorded.get("kwargs", {})))
    if not hasattr(model, "img_size"):
        raise ConfigError(f"{path}: holds {name}, a text model; this command takes image models")
    return model.eval(), config


def released_preprocessing(model, data):
    """How the official evaluation prepares the images of this data set for a model with released weights; {} for others."""
    released = RELEASED.get(model.config["name"])
    return model.preprocessing if released is not None and released.data == data else {}


def open_classifier(args):
    """(model on its device, configuration, device, class names) as --top, --device and CKPT of a command on images say."""
    if args.top < 1:
        raise ConfigError(f"--top: got {args.top}, expected at least 1")
    device = choose_device(args.device)
    model, config = open_checkpoint(args.checkpoint, preprocessing=True)
    return model.to(device), config, device, config.get("classes") or [str(i) for i in range(model.num_classes)]
