"""`cct info`."""

import sys
import textwrap

from .parser import add_command

EPILOG = """
examples:
  cct info                                   the models, and what runs on this machine
  cct info cct_7_3x1                         parameters, multiply-adds, tokens, kernels
  cct info cct_7_7x2_224 --img-size 384 --num-classes 102
  cct info cct_7_3x1 --roofline              bytes, launches and least time of five ways to run it on an H200
  cct info cct_7_3x1 --roofline --device 1.01:32 --batch-size 64     on a machine of 1.01 TFLOP/s and 32 GB/s
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "info", run, "print the models, or the size and the kernels of one", EPILOG)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="model name; without it all names and the machine")
    parser.add_argument("--img-size", type=int, metavar="SIZE", help="side of the image")
    parser.add_argument("--num-classes", type=int, metavar="N", help="classes")
    parser.add_argument("--in-chans", type=int, metavar="N", help="channels of the image")
    parser.add_argument("--roofline", action="store_true", help="bytes, launches and least time, layer by layer")
    parser.add_argument("--device", default="H200", help="with --roofline: H200, H100, A100, RTX 4090, ... or TFLOP/s:GB/s")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"), help="with --roofline")
    parser.add_argument("--batch-size", type=int, default=1024, metavar="N", help="with --roofline: images in a batch (1024)")
    parser.add_argument("--json", action="store_true", help="with --roofline: print JSON")


def run(args):
    """Print the report."""
    if args.model is None:
        _overview()
    else:
        sizes = {name: getattr(args, name) for name in ("img_size", "num_classes", "in_chans")}
        sizes = {name: value for name, value in sizes.items() if value is not None}
        _roofline(args, sizes) if args.roofline else _describe(args.model, sizes)


def _describe(name, sizes):
    from cct.models.complexity import count_macs, count_parameters
    from cct.training.setup import make_model

    model = make_model(name, **sizes)
    parameters, macs = count_parameters(model), count_macs(model)
    tokens = model.classifier.positional_emb.shape[1] - model.classifier.leading_row
    words = f", {parameters.words:,} of them word vectors" if parameters.words else ""
    words += f", {parameters.without_positional:,} without the positional embedding" if parameters.positional else ""
    print(f"{name}: {type(model).__name__}, {model.num_classes} classes")
    rows = [
        ("parameters", f"{parameters.total:,} ({parameters.total / 1e6:.2f} M), {parameters.trainable:,} trainable{words}"),
        (
            "multiply-adds",
            f"{macs.full / 1e9:.4f} G in full; {macs.layers_only / 1e9:.4f} G in conv and linear layers alone",
        ),
        ("as printed", f"{macs.paper / 1e9:.2f} G in the paper, {macs.first_release / 1e9:.3f} G in its first repository"),
        ("tokens", f"{tokens} of {model.num_features} features"),
    ]
    for title, text in rows:
        print(f"  {title:<14} {text}")
    print(model.fused_report())


def _roofline(args, sizes):
    import json

    from rich.console import Console

    from cct.reports import roofline
    from cct.training.config import ConfigError
    from cct.training.setup import make_model

    try:
        device = roofline.parse_device(args.device)
        if args.batch_size < 1:
            raise ValueError(f"batch_size: got {args.batch_size}, expected at least 1")
        found = roofline.report(make_model(args.model, **sizes), device, args.dtype, args.batch_size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    facts = {"model": args.model, "dtype": args.dtype, "batch": args.batch_size, "device": args.device, "source": device.source}
    if args.json:
        totals = {d: {w: {p: t._asdict() for p, t in parts.items()} for w, parts in ways.items()} for d, ways in found.items()}
        print(json.dumps({**facts, "flops": getattr(device, args.dtype), "bytes": device.bytes, **totals}))
        return
    rate, bandwidth = f"{getattr(device, args.dtype) / 1e12:g} TFLOP/s", f"{device.bytes / 1e9:g} GB/s"
    print(
        f"{args.model} in {args.dtype} on {args.device}: {rate}, {bandwidth} ({device.source}). Bounds, not measurements: "
        "`python -m pydoc cct.reports.traffic` says what is counted."
    )
    console = Console(width=None if sys.stdout.isatty() else 128)
    for table in roofline.tables(found, args.batch_size):
        console.print(table)
    print(textwrap.fill(f"What runs on a GPU: {roofline.WHERE}.", 128))


def _overview():
    import platform

    import torch

    import cct
    from cct.models import list_models
    from cct_kernels import dispatch

    print("models")
    for family in ("cct", "cvt", "vit", "text"):
        print(textwrap.fill(" ".join(list_models(f"{family}_*")), 118, initial_indent="  ", subsequent_indent="  "))
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print("machine")
    print(f"  cct-kernels {cct.__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}")
    print(f"  CPU with {torch.get_num_threads()} threads; GPU: {', '.join(cuda) or 'none'}")
    for device in ("cpu", *(("cuda",) if cuda else ())):
        ops = ", ".join(f"{op} {backend}" for op, backend, _ in dispatch.report(device))
        print(f"  kernels on {device}: {ops}")
    print("`cct info MODEL` describes a model, `python -m cct_kernels` says why a kernel does not run here")
