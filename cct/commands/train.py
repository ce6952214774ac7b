"""`cct train`."""

import argparse

import yaml

from cct import recipes
from cct.training import timm_keys
from cct.training.config import FIELDS, KINDS, ConfigError, resolve
from cct.training.defaults import DEFAULTS
from cct.training.values import read_mapping

from .parser import add_command

EPILOG = """
examples:
  cct train                                          digits: real data inside the package, a minute on two cores
  cct train --data cifar10 --data-dir ~/data --epochs 5
  cct train ~/photos --model cct_4_3x2 --img-size 64 one sub-folder for each class
  cct train -c cct_2_3x2-cifar10 --data-dir ~/data   a recipe of the paper, see `cct recipes`
  cct train -c recipe.yaml --lr 1e-3                 the file gives defaults, flags override; keys are the flags with _ for -
  cct train --resume runs/digits-cct_2_3x2-2026-01-31-1
  cct train -c recipe.yaml --eval-every 5 --target-top1 80      end at 80 % and say after how long
  torchrun --nproc-per-node 4 -m cct train -c recipe.yaml       four processes share every batch, a GPU each if there are GPUs

The run folder holds config.yaml, metrics.csv, metrics.jsonl, curve.png, best.safetensors, last.safetensors (each with a .json
beside it) and resume.pt. A run may be stopped at any moment, with kill -9 too: --resume gives the same weights bit for bit as
a run that was never stopped; with another number of processes the same up to rounding if processes x --accumulate-steps stays
as it was, or dropout and stochastic depth are 0. Exit codes: 0 done, 1 the run cannot go on (loss not finite, disk or memory
full, a process lost), 2 wrong usage or input, 130 SIGINT, 143 SIGTERM (both after saving).

"""

# Help sections: each begins with this field of Config.
SECTIONS = {
    "data": "data and model",
    "epochs": "optimisation",
    "sched": "schedule",
    "crop_padding": "augmentation",
    "model_ema": "how it runs",
    "output": "run folder",
}


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "train", run, "train a model and keep everything in a run folder", EPILOG + _defaults())
    parser.usage = "cct train [DIR] [-c FILE|NAME] [--resume RUN] [flags]"
    parser.add_argument(
        "folder", nargs="?", metavar="DIR", help="image folder to train on (with a file that names its `dataset`: --data-dir)"
    )
    parser.add_argument("-c", "--config", metavar="FILE|NAME", help="YAML file with defaults, or a recipe (`cct recipes`)")
    parser.add_argument("--resume", metavar="RUN", help="go on with the run in this folder")
    for name, field in FIELDS.items():
        if name in SECTIONS:
            section = parser.add_argument_group(SECTIONS[name])
        add_flag(section, name, field)
    for name in timm_keys.FLAGS:
        kind = {"action": "store_true"} if name in timm_keys.SWITCHES else {"nargs": 3 if name == "input_size" else None}
        parser.add_argument("--" + name.replace("_", "-"), default=argparse.SUPPRESS, help=argparse.SUPPRESS, **kind)


def add_flag(section, name, field):
    """Declare the flag of a field of Config."""
    flag, kind, choices = "--" + name.replace("_", "-"), KINDS[name], field.metadata["choices"]
    metavar = "|".join(choices) if choices else field.metadata["metavar"] or name.rpartition("_")[2].upper()
    shown = isinstance(field.default, int | float | str) and not isinstance(field.default, bool)
    help = field.metadata["help"] + (f" ({field.default})" if shown else "")
    options = {"dest": name, "default": argparse.SUPPRESS, "help": help}
    if kind is dict:
        section.add_argument(flag, nargs="+", metavar="KEY=VALUE", **options)
    elif kind in (tuple[float, ...], tuple[float, ...] | None):
        section.add_argument(flag, nargs="+", metavar="X", **options)
    elif kind in (bool, bool | None):
        section.add_argument(flag, action=argparse.BooleanOptionalAction, **options)
    elif kind == bool | str:
        section.add_argument(flag, nargs="?", const=True, metavar=metavar, **options)
        section.add_argument("--no-" + flag[2:], action="store_const", const=False, **{**options, "help": argparse.SUPPRESS})
    else:
        optional = {"nargs": "?", "const": "bf16"} if name == "amp" else {}
        section.add_argument(flag, metavar=metavar, **optional, **options)


def _defaults():
    columns = ("epochs", "batch_size", "lr", "weight_decay", "sched")
    lines = ["defaults of each data set (numbers in brackets above are those of a bare recipe):"]
    lines += [f"  {'data':<15}" + "".join(f"{'--' + c.replace('_', '-'):>18}" for c in columns)]
    lines += [f"  {name:<15}" + "".join(f"{values[c]!s:>18}" for c in columns) for name, values in DEFAULTS.items()]
    return "\n".join(lines)


def given_flags(args, file=None):
    """The fields of Config that the command line names.

    DIR is a folder of images by class; but the folder of the data files where `file`, or a flag, names the data in timm's way.
    """
    flags = {name: getattr(args, name) for name in (*FIELDS, *timm_keys.FLAGS) if hasattr(args, name)}
    if "model_kwargs" in flags:
        flags["model_kwargs"] = dict(_pair(text) for text in flags["model_kwargs"])
    if args.folder is not None and ("dataset" in flags or (file is not None and "dataset" in read_mapping(file))):
        flags["data_dir"] = args.folder
    elif args.folder is not None:
        if flags.get("data", "folder") != "folder" or "data_dir" in flags:
            raise ConfigError(f"DIR {args.folder!r} means --data folder --data-dir DIR; leave out DIR or those flags")
        flags |= {"data": "folder", "data_dir": args.folder}
    return flags


def _pair(text):
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f"--model-kwargs: got {text!r}, expected key=value, such as positional_embedding=sine")
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"--model-kwargs: got {text!r}: {getattr(error, 'problem', error)}") from None


def run(args):
    """Train or resume; returns the exit code."""
    if args.resume is not None:
        if args.config is not None:
            raise ConfigError("--resume goes on with the configuration of the run; leave out -c")
        from cct.training.loop import resume

        return resume(args.resume, given_flags(args)).exit_code
    file = args.config and recipes.find(args.config)
    config = resolve(given_flags(args, file), file)
    from cct.training.loop import train

    return train(config).exit_code
