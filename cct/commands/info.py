"""`cct info`."""

from .parser import add_command

EPILOG = """
examples:
  cct info                                   the models, and what runs on this machine
  cct info cct_7_3x1                         parameters, multiply-adds, tokens, kernels
  cct info cct_7_7x2_224 --img-size 384 --num-classes 102
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "info", run, "print the models, or the size and the kernels of one", EPILOG)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model name; without it all names and the machine")
    parser.add_argument("--img-size", type=int, metavar="SIZE", help="side of the image")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes")
    parser.add_argument("--in-chans", type=int, metavar="N", help="channels of the image")


def run(args):
    """Print the report."""
    if args.model is None:
        _overview()
        return
    from cct.models.complexity import count_macs, count_parameters
    from cct.training.setup import make_model

    chosen = {name: getattr(args, name) for name in ("img_size", "num_classes", "in_chans")}
    model = make_model(args.model, **{name: value for name, value in chosen.items() if value is not None})
    print(count_parameters(model), count_macs(model))
    print(model.fused_report())


def _overview():
    import platform

    import torch

    import cct_kernels
    from cct.models import list_models

    print("models\n  " + "\n  ".join(list_models()))
    print(platform.python_version(), torch.__version__, cct_kernels)
