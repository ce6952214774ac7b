"""`cct eval`."""

import json

from .parser import add_command

EPILOG = """
examples:
  cct eval runs/digits-cct_2_3x2-2026-01-31-1        the best weights of a run, on the data it was trained on
  cct eval best.safetensors --data cifar10 --data-dir ~/data
  cct eval official.pth --model cct_7_3x1_32 --data cifar10
  cct eval best.safetensors --img-size 48            larger images than those of the training
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "eval", run, "print accuracy and loss of a checkpoint on a data set", EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .safetensors or .pth file, or a run folder (its best weights)")
    parser.add_argument("--data", metavar="NAME", help="data set; the one of the training if not given")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the data files")
    parser.add_argument("--split", choices=("test", "val", "train"), default="test", help="which images (test)")
    parser.add_argument("--model", metavar="NAME", help="model name, for files that do not say it")
    parser.add_argument("--img-size", metavar="SIZE", type=int, help="side of the images, where not that of the training")
    parser.add_argument("--batch-size", metavar="N", type=int, default=256, help="images at a time (256)")
    parser.add_argument("--amp", nargs="?", const="bf16", default="off", metavar="off|bf16", help="mixed precision (off)")
    parser.add_argument("--tta", default="none", metavar="none|flip", help="flip: mean over image and mirror image (none)")
    parser.add_argument("--fused", action="store_true", default=True, help="fused kernels where they run (the default)")
    parser.add_argument("--no-fused", dest="fused", action="store_false", help="plain PyTorch")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args):
    """Print the result."""
    import torch

    import cct.data
    from cct.training.config import ConfigError, coerce
    from cct.training.evaluate import evaluate
    from cct.training.metrics import percent
    from cct.training.setup import choose_device

    from .checkpoint import as_released, open_checkpoint, released_data

    amp, tta = coerce("amp", args.amp), coerce("tta", args.tta)
    device = choose_device(args.device)
    if args.threads is not None:
        torch.set_num_threads(coerce("threads", args.threads))
    model, config = open_checkpoint(args.checkpoint, args.model)
    name = args.data or config.get("data", {}).get("name")
    if name is None:
        raise ConfigError(f"{args.checkpoint}: does not say what it was trained on; name the data with --data")
    spec = config.get("preprocessing") or (as_released(model)["preprocessing"] if released_data(model) == name else {})
    data_dir = args.data_dir if args.data_dir or args.data else _data_dir(args.checkpoint)
    how = {key: spec[key] for key in ("interpolation", "crop_pct") if key in spec}
    size = tuple(spec.get("size", model.img_size)) if args.img_size is None else (args.img_size, args.img_size)
    data = cct.data.load(name, data_dir, img_size=size, **how)
    _check(args.checkpoint, model, config, data)
    if args.img_size is not None:
        _resize(model, size)
    split = getattr(data, args.split)
    if split is None:
        raise ConfigError(f"--split {args.split}: {name} has no such split")
    model.fused = args.fused
    result = evaluate(
        model.to(device), split, mean=spec.get("mean", data.mean), std=spec.get("std", data.std),
        batch_size=coerce("batch_size", args.batch_size), device=device, amp=amp, tta=tta,
    )  # fmt: skip
    if args.json:
        print(json.dumps({"checkpoint": args.checkpoint, "data": name, "split": args.split, "tta": tta, **result}))
        return
    top5 = f", top-5 {percent(result['top5'])}" if result["top5"] is not None else ""
    images = f"{result['images']:,} images{', each with its mirror image' if tta == 'flip' else ''}"
    print(f"{name} {args.split} top-1 {percent(result['top1'])}{top5}, loss {result['loss']:.4f} ({images})")


def _resize(model, size):
    """Let the model take other images: a learnable positional embedding is resized, a sine one recomputed."""
    from cct.training.config import ConfigError

    try:
        model.set_input_size(size)
    except ValueError as error:
        raise ConfigError(f"--img-size: {error}") from None


def _data_dir(run):
    """Where the data of the run in this folder lie, or None."""
    from pathlib import Path

    from cct.training.config import read_yaml

    file = Path(run) / "config.yaml"
    return read_yaml(file).get("data_dir") if file.is_file() else None


def _check(path, model, config, data):
    from cct.training.config import ConfigError

    classes = config.get("classes")
    if model.num_classes != data.num_classes or (classes and list(classes) != list(data.classes)):
        ours = ", ".join(map(str, (classes or [])[:4])) or "not named"
        theirs = ", ".join(map(str, data.classes[:4]))
        raise ConfigError(
            f"{path}: knows {model.num_classes} classes ({ours}, ...), but {data.name} has {data.num_classes} ({theirs}, ...); "
            "choose the data it was trained for with --data"
        )
    if model.in_chans != data.channels:
        raise ConfigError(f"{path}: takes images of {model.in_chans} channels, but {data.name} has {data.channels}")
