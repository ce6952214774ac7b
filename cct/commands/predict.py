"""`cct predict`."""

import json

from .parser import add_command

EPILOG = """
examples:
  cct predict runs/digits-cct_2_3x2-2026-01-31-1 seven.png
  cct predict best.safetensors photos/*.jpg --top 3
  cct predict best.safetensors cat.png --json
  cct predict official.pth cat.png --model cct_7_3x1_32

The image is resized and normalised as the checkpoint says that its training images were; for an official one, as those of the
weights that were released under the name of the model.
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "predict", run, "print the most probable classes of images", EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .safetensors or .pth file, or a run folder (its best weights)")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="how many classes to print (5)")
    parser.add_argument("--model", metavar="NAME", help="model name, for files that do not say it: official ones")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args):
    """Print a table or JSON."""
    import torch

    from cct.data.images import load_image
    from cct_kernels import constant_weights

    from .checkpoint import open_classifier

    model, config, device, names = open_classifier(args)
    results = []
    with torch.inference_mode(), constant_weights():
        for path in args.images:
            image = load_image(path, config["preprocessing"]).to(device)
            top = model(image[None]).softmax(1)[0].topk(min(args.top, model.num_classes))
            pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
            results.append({"image": str(path), "top": [{"class": names[i], "probability": p} for i, p in pairs]})
    print(json.dumps(results, indent=2)) if args.json else _table(results)


def _table(results):
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("image", overflow="fold")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for result in results:
        for place, entry in enumerate(result["top"]):
            style = "bold" if place == 0 else None
            table.add_row("" if place else result["image"], entry["class"], f"{100 * entry['probability']:.2f} %", style=style)
        table.add_section()
    Console(highlight=False).print(table)
