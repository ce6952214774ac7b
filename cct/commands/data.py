"""`cct data check` and `cct data show`."""

import dataclasses

from cct import recipes
from cct.training.config import FIELDS, resolve

from .parser import add_command
from .train import add_flag, given_flags

EPILOG = """
examples:
  cct data check ~/photos                    an image folder: what was found, what is wrong with it
  cct data check cifar10 --data-dir ~/data   the files of a known data set, with their checksums
  cct data show cifar10 --data-dir ~/data -c cct_7_3x1-cifar10 --output sheet.png
                                             training images as this recipe augments and mixes them
  cct data show ~/photos --aa rand-m9-mstd0.5-inc1 --scale 0.5 1 --mixup 0.8
"""

# What `show` takes of the configuration of a run: these, and all fields from the first to the last of AUGMENTATION.
SHOWN = ("data_dir", "img_size", "interpolation", "seed", "smoothing")
AUGMENTATION = ("crop_padding", "mixup_off_epoch")


def add(subparsers):
    """Declare the sub-commands."""
    parser = add_command(subparsers, "data", _help, "look at data sets", EPILOG)
    actions = parser.add_subparsers(metavar="ACTION", parser_class=type(parser))
    check = add_command(actions, "check", run, "print what a data set holds and what is wrong with it", EPILOG)
    check.add_argument("what", metavar="DIR|NAME", help="an image folder, or the name of a data set")
    check.add_argument("--data-dir", metavar="DIR", help="folder with the files of the named data set")
    show = add_command(actions, "show", run_show, "draw what augmentation makes of a data set", EPILOG)
    show.add_argument("what", nargs="?", metavar="DIR|NAME", help="an image folder, or the name of a data set (digits)")
    show.add_argument("-c", "--config", metavar="FILE|NAME", help="YAML file or recipe with the augmentation to show")
    show.add_argument("--output", default="sheet.png", metavar="PNG", help="file to write (sheet.png)")
    names = list(FIELDS)
    first, last = (names.index(name) for name in AUGMENTATION)
    for name in (*SHOWN, *names[first : last + 1]):
        add_flag(show, name, FIELDS[name])


def _help(args):
    args.parser.print_help()


def run(args):
    """Print the report of `cct.data.check`; exit code 2 when something is wrong."""
    from rich.console import Console

    import cct.data

    report = cct.data.check(args.what, args.data_dir)
    Console(highlight=False).print(report, soft_wrap=True)
    return 0 if report.ok else 2


def run_show(args):
    """Draw the contact sheet."""
    from pathlib import Path

    import cct.data
    from cct.reports.sheet import draw_sheet
    from cct.training.setup import make_augment, resolved_crop_and_flip

    from .output import writing_to

    named = args.what is None or args.what in cct.data.NAMES
    args.folder = None if named else args.what
    flags = given_flags(args)
    if named and args.what is not None:
        flags["data"] = args.what
    config = resolve(flags, args.config and recipes.find(args.config))
    data = cct.data.load(config.data, config.data_dir, **config.data_arguments())
    augment = make_augment(dataclasses.replace(config, **resolved_crop_and_flip(config, data.augment)))
    with writing_to(Path(args.output).parent):
        draw_sheet(data, augment, args.output, seed=config.seed, title=f"{data.name}: {augment.summary()}")
    print(f"{args.output}: {data.name}, {augment.summary()}")
