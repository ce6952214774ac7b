"""What augmentation makes of a data set, as one PNG: some images in several epochs, and batches that were mixed."""

from __future__ import annotations

import textwrap

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from cct.data import Augment, DataSet
from cct.data.batches import affine
from cct.models.checkpoints import write_atomically

from .curves import INK

SAMPLES, EPOCHS, BATCHES = 6, 8, 4
GAP, LABEL, HEAD = 0.06, 1.35, 0.42  # in sides of an image: between images, for names on the left, for headings


def draw_sheet(data: DataSet, augment: Augment, path, *, seed: int = 42, title: str = ""):
    """Draw SAMPLES training images as they are and as they come in EPOCHS epochs; with mixing, BATCHES batches of EPOCHS + 1.

    The first image of each class is taken, as far as there is room. Values are those that training sees, cut to what can be
    shown, so noise of random erasing looks flatter than it is.
    """
    index = choose(data.train.labels, SAMPLES)
    rows = [(_name(data, label), "") for label in data.train.labels[index].tolist()]
    originals = next(iter(data.train.fetch([index])[1]))
    columns = [originals, *(augmented(data, augment, index, seed, epoch) for epoch in range(EPOCHS))]
    pictures = torch.stack([_shown(images) for images in columns], 1)  # (SAMPLES, EPOCHS + 1, H, W, C)
    sheet = _Sheet(data.img_size, len(rows), augment.mixes and BATCHES, title)
    sheet.head(["original", *(f"epoch {epoch + 1}" for epoch in range(EPOCHS))])
    for label, images in zip(rows, pictures, strict=True):
        sheet.row(label, images)
    if augment.mixes:
        sheet.gap(f"mixed batches of the first epoch, and the weights of their targets (label smoothing {augment.smoothing:g})")
        for batch in mixed_batches(data, augment, seed):
            sheet.row(*batch)
    write_atomically(path, lambda temporary: sheet.figure.savefig(temporary, format="png"))


def choose(labels: torch.Tensor, count: int) -> torch.Tensor:
    """Places of `count` samples: the first of each class, class by class, then the second of each, and so on."""
    seen, order = {}, []
    for i, label in enumerate(labels.tolist()):
        seen[label] = seen.get(label, -1) + 1
        order.append((seen[label], label, i))
    return torch.tensor([i for _, _, i in sorted(order)[:count]])


def augmented(data, augment, index, seed, epoch, mix=None):
    """The images of `index` as training sees them in an epoch, with pixels 0..255 where nothing was erased."""
    rest, read = data.train.fetch([index], augment, seed, epoch)
    images, size = next(iter(read)), data.img_size
    drawn = rest.draw(seed, epoch, index, size)
    scale, shift = affine(data.channels, data.mean, data.std)
    values = rest.finish(rest.pixels(images, drawn.program, rest.fill(data.mean)), mix, drawn.boxes, scale, shift)
    return (values - shift) / scale


def mixed_batches(data, augment, seed):
    """((what was done, share), images, captions) of BATCHES batches: both kinds of mixing as far as the first 50 hold them."""
    shown = EPOCHS + 1
    index = choose(data.train.labels, 2 * shown)  # the partners of those shown are the others
    mixes = augment.draw_mix(seed, 0, torch.arange(50), len(index), data.img_size)
    cut = mixes.box[:, 0, 1] > mixes.box[:, 0, 0]
    order = [i for kinds in zip(_where(cut), _where(~cut), strict=False) for i in kinds] or list(range(50))
    for i in sorted(order[:BATCHES]):
        mix = mixes.of(i)
        labels = data.train.labels[index]
        targets = augment.targets(labels, mix, data.num_classes)
        kind = "CutMix" if cut[i] else "mixup" if mix.lam[0] < 1 else "not mixed"
        pairs = torch.stack((labels, labels.flip(0)), 1).tolist()
        captions = [_weights(data, target, pair) for target, pair in zip(targets.tolist(), pairs, strict=True)][:shown]
        share = f"λ = {mix.lam[0]:.2f}" if augment.mixup_mode == "batch" else f"each {augment.mixup_mode}"
        yield (kind, f"batch {i + 1}, {share}"), _shown(augmented(data, augment, index, seed, 0, mix)[:shown]), captions


def _where(flags):
    return flags.nonzero().flatten().tolist()


def _weights(data, target, pair):
    """The classes of a pair and their weights, the larger first."""
    classes = sorted(set(pair), key=lambda label: -target[label])
    return "\n".join(f"{target[label]:.2f} {_name(data, label, 11)}" for label in classes)


def _name(data, label, width=16):
    return textwrap.shorten(str(data.classes[label]).replace("_", " "), width, placeholder="…")


def _shown(images):
    """(n, C, H, W) with values around 0..255 -> uint8 (n, H, W, 3)."""
    images = images.float().round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)
    return images[..., :3] if images.shape[3] >= 3 else images[..., :1].expand(-1, -1, -1, 3)


class _Sheet:
    """Rows of images under one another; one unit of the axes is the width of an image."""

    def __init__(self, size, rows, mixed, title):
        self.aspect = size[0] / size[1]
        width = LABEL + (EPOCHS + 1) * (1 + GAP)
        height = HEAD + rows * (self.aspect + GAP) + bool(mixed) * HEAD * 1.5 + mixed * (self.aspect + GAP + HEAD)
        inches = 11 / width
        self.figure = Figure(figsize=(11, (height + 0.9 * HEAD) * inches), dpi=150, facecolor="white")
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes([0.01, 0, 0.98, height / (height + 0.9 * HEAD)])
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.figure.suptitle(title, x=0.012, y=0.992, ha="left", va="top", fontsize=12, fontweight="bold", color=INK)
        self.top = 0.0

    def text(self, x, y, text, **kwargs):
        self.axes.text(x, y, text, color=INK, **{"fontsize": 8, "va": "center", **kwargs})

    def head(self, names):
        for i, name in enumerate(names):
            self.text(LABEL + i * (1 + GAP) + 0.5, HEAD / 2, name, ha="center", fontsize=9)
        self.top = HEAD

    def gap(self, title):
        self.text(0, self.top + HEAD * 0.9, title, fontsize=10, fontweight="bold")
        self.top += HEAD * 1.5

    def row(self, label, images, captions=()):
        """label: two lines, the first larger; captions: below each image."""
        middle = self.top + self.aspect / 2
        self.text(0, middle - (0.1 if label[1] else 0), label[0], fontsize=10)
        self.text(0, middle + 0.15, label[1])
        for i, image in enumerate(images):
            x = LABEL + i * (1 + GAP)
            self.axes.imshow(
                image.numpy(), extent=(x, x + 1, self.top + self.aspect, self.top), aspect="auto", interpolation="nearest"
            )
            if captions:
                self.text(x + 0.5, self.top + self.aspect + 0.03, captions[i], ha="center", va="top", fontsize=7)
        self.axes.set(xlim=(0, LABEL + (EPOCHS + 1) * (1 + GAP)))
        self.top += self.aspect + GAP + (HEAD if captions else 0)
