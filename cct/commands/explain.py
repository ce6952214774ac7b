"""`cct explain`."""

from .parser import add_command

EPILOG = """
examples:
  cct explain runs/cifar10-cct_2_3x2-2026-01-31-1 cat.png       writes cat-explained.png
  cct explain best.safetensors photos/*.jpg --output maps

SeqPool weights say how much each token counts in the pooled output. Attention roll-out (Abnar and Zuidema, 2020) follows the
attention of all blocks back to the input; both are what the model computed, not a proof of why. A model with a class token
has no SeqPool: the attention of that token in the last block stands in its place.
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "explain", run, "draw what a model looks at in images", EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .safetensors or .pth file, or a run folder (its best weights)")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files")
    parser.add_argument("--output", metavar="DIR", default=".", help="folder for the PNG files (this one)")
    parser.add_argument("--top", metavar="K", type=int, default=5, help="how many classes to show (5)")
    parser.add_argument("--model", metavar="NAME", help="model name, for files that do not say it: official ones")
    parser.add_argument("--device", default="auto", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")


def run(args):
    """Write one PNG for each image. All images are read before the first file is written."""
    import torch

    from cct.data.images import load_image
    from cct.reports.attention import draw_explanation, heat_maps

    from .checkpoint import open_classifier
    from .output import writing_to

    model, config, device, names = open_classifier(args)
    spec = config["preprocessing"]
    loaded = [(path, load_image(path, spec), _pixels(path, spec)) for path in args.images]
    with writing_to(args.output) as folder:
        for name, (path, image, pixels) in zip(_names(args.images), loaded, strict=True):
            with torch.inference_mode():
                batch = image[None].to(device)
                top = model(batch).float().softmax(1)[0].topk(min(args.top, model.num_classes))
                heats = {title: heat[0] for title, heat in heat_maps(model, batch).items()}
            classes = [(names[i], p) for i, p in zip(top.indices.tolist(), top.values.tolist(), strict=True)]
            sizes = ["x".join(map(str, size)) for size in (model.img_size, model.grid_size)]
            note = f"{model.config['name']}, {sizes[0]} pixels, {sizes[1]} tokens"
            draw_explanation(folder / name, pixels, heats, classes, title=path.rpartition("/")[2], note=note)
            print(f"{path}: {classes[0][0]} {100 * classes[0][1]:.2f} %, {folder / name}")


def _names(images):
    """A file name for each image: its stem, with a number where stems are equal."""
    from pathlib import Path

    names = []
    for path in images:
        stem, n = Path(path).stem, 1
        while (name := f"{stem}-explained{'' if n == 1 else f'-{n}'}.png") in names:
            n += 1
        names.append(name)
    return names


def _pixels(path, spec):
    """What the model sees of the image, (H, W) or (H, W, 3) uint8, in as many pixels as the file has, up to about 512."""
    from PIL import Image

    from cct.data.images import read_pixels

    with Image.open(path) as image:
        shorter = min(image.size)
    shown = min(spec["size"]) - 2 * spec.get("pad", 0)
    times = max(1, min(shorter // shown, 512 // shown))
    size = tuple(times * side for side in spec["size"])
    options = (spec.get("interpolation", "bicubic"), spec.get("crop_pct", 1.0), times * spec.get("pad", 0))
    pixels = read_pixels(path, spec.get("channels", 3), size, *options)
    return pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
