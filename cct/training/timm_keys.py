"""Keys of timm's train.py, and so of the official YAML files, that are not fields of Config: other names, other defaults."""

from .values import ConfigError

# No result depends on them here. Key -> why.
NO_EFFECT = {
    "workers": "the data lie in memory, or are decoded on all cores",
    "pin_mem": "batches are made on the device",
    "no_prefetcher": "there are no loader processes",
    "use_multi_epochs_loader": "there are no loader processes",
    "worker_seeding": "every draw is a function of seed, epoch and image",
    "log_interval": "progress is shown all the time",
    "recovery_interval": "see save_seconds",
    "checkpoint_hist": "the best and the last weights are kept",
    "save_images": "see `cct data show`",
    "validation_batch_size": "evaluation takes twice the images of a training step, at most 256",
    "validation_batch_size_multiplier": "evaluation takes twice the images of a training step, at most 256",
    "eval_metric": "the best epoch is the one of the best top-1",
    "experiment": "see output",
    "log_wandb": "logs are CSV and JSON files",
    "apex_amp": "see amp",
    "native_amp": "see amp",
    "channels_last": "the kernels choose their layouts",
    "torchscript": "see fused",
    "fuser": "see fused",
    "no_ddp_bb": "the models have no batch norm",
    "sync_bn": "the models have no batch norm",
    "dist_bn": "the models have no batch norm",
    "split_bn": "the models have no batch norm",
    "bn_tf": "the models have no batch norm",
    "bn_momentum": "the models have no batch norm",
    "bn_eps": "the models have no batch norm",
    "drop_connect": "it only ever was another name of drop_path",
    "model_ema_force_cpu": "the average lies beside the weights",
    "local_rank": "torchrun says it",
    "dataset_download": "missing files are always downloaded",
    "class_map": "folders name the classes",
    "lr_noise_pct": "there is no such noise",
    "lr_noise_std": "there is no such noise",
    "patience_epochs": "there is no plateau schedule",
    "bce_target_thresh": "the loss is the cross-entropy",
}

# What they do in timm is not here, so only the value at which they do nothing is accepted. Key -> such values.
_OFF = (None, 0, 0.0, False, "", "0", "0.0", "false", "none")
ONLY = {
    "train_split": ("train", "training", ""),
    "no_aug": _OFF,
    "epoch_repeats": _OFF,
    "start_epoch": _OFF,
    "aug_repeats": _OFF,
    "aug_splits": _OFF,
    "jsd_loss": _OFF,
    "jsd": _OFF,
    "bce_loss": _OFF,
    "resplit": _OFF,
    "gp": _OFF,
    "drop_block": _OFF,
    "initial_checkpoint": _OFF,
    "resume": _OFF,
    "no_resume_opt": _OFF,
    "lr_noise": _OFF,
    "lr_cycle_mul": (None, 1, 1.0),
    "lr_cycle_limit": (None, 1),
    "lr_cycle_decay": (None, 0.1, 0.5, 1, 1.0),
    "lr_k_decay": (None, 1, 1.0),
}
_INSTEAD = {
    "initial_checkpoint": "pretrained: FILE",
    "resume": "cct train --resume RUN",
    "no_aug": "crop_padding: 0, flip: false and an empty scale",
}

# What that script does where its own file (known by the key `dataset`) is silent, and our defaults differ. Learning rate,
# optimizer and length are ours then: the script's are for training on ImageNet.
SCRIPT_DEFAULTS = {
    "sched": "step", "drop_last": True, "crop_padding": 0, "scale": (0.08, 1.0), "hflip": 0.5, "model_ema_decay": 0.9998,
}  # fmt: skip
DATA_NAMES = {"": "folder", "image_folder": "folder", "fashionmnist": "fashion_mnist", "oxford_iiit_pet": "pets"}

NAMES = (*NO_EFFECT, *ONLY, "dataset", "input_size")
FLAGS = tuple(name for name in NAMES if name != "resume")  # --resume is ours
# Flags without a value.
SWITCHES = frozenset(
    [
        "pin_mem",
        "no_prefetcher",
        "use_multi_epochs_loader",
        "save_images",
        "log_wandb",
        "apex_amp",
        "native_amp",
        "channels_last",
        "torchscript",
        "no_ddp_bb",
        "sync_bn",
        "split_bn",
        "bn_tf",
        "model_ema_force_cpu",
        "dataset_download",
        "no_aug",
        "jsd_loss",
        "bce_loss",
        "resplit",
        "no_resume_opt",
    ]
)


def translate(values):
    """(values with timm's names turned into ours, {key without effect: why}).

    Raises ConfigError for a key at a value that would do something in timm and cannot be done here.
    """
    values, ignored = dict(values), {}
    for name in [*values]:
        if name in NO_EFFECT:
            ignored[name] = NO_EFFECT[name]
            del values[name]
        elif name in ONLY:
            got = values.pop(name)
            if not any(_is(got, one) for one in ONLY[name]):
                expected = "nothing or 0" if ONLY[name] is _OFF else " or ".join(_texts(ONLY[name]))
                instead = f"; use {_INSTEAD[name]}" if name in _INSTEAD else ""
                raise ConfigError(f"{name}: got {got!r}, expected {expected}: this program cannot do it{instead}")
    if "dataset" in values:
        if "data" in values:
            raise ConfigError("dataset: is timm's name of data; give one of them")
        values["data"] = _data_name(values.pop("dataset"), values)
        left = ("scale",) if values.get("crop_padding") else ()  # one of two ways to crop
        values = {**{name: value for name, value in SCRIPT_DEFAULTS.items() if name not in left}, **values}
    if values.get("input_size") is not None:
        values["img_size"] = _side(values["input_size"], values)
    values.pop("input_size", None)
    return values, ignored


def _texts(values):
    return dict.fromkeys(f"{one:g}" if isinstance(one, float) else str(one) for one in values if one not in (None, ""))


def _is(got, value):
    """Whether `got`, of a YAML file or the text of a flag, is this value of timm."""
    if isinstance(got, str) and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(got) == value
        except ValueError:
            return False
    return got is value or (got == value and type(got) is not bool)


def _data_name(text, values):
    name = str(text or "").lower().removeprefix("torch/").replace("-", "_")
    if name == "flowers102" and values.get("val_split") == "valid":  # the official files mean folders of the re-split
        return "flowers102_resplit"
    return DATA_NAMES.get(name, name)


def _side(size, values):
    if values.get("img_size") is not None or not isinstance(size, list) or len(size) != 3 or size[1] != size[2]:
        raise ConfigError(f"input_size: got {size!r}, expected 3 numbers, channels and twice the side, without img_size")
    return size[2]
