"""Batches of a split. One that lies in memory needs no workers and no queue: a batch is a few tensor operations.

The batches of an epoch are a function of (seed, epoch): a run resumed at any (epoch, step) sees bitwise the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from . import draws
from .augment import Augment
from .augment.mixing import Mix
from .augment.program import Program
from .dataset import DataError, Split

# Samples whose random choices are made at once, so that many batches share the cost of the small operations: on a CPU as many
# as its caches hold, on a GPU so many that their 1000 launches do not count.
DRAWN_AHEAD = {"cpu": 1 << 12, "cuda": 1 << 16}


def num_batches(n: int, batch_size: int, drop_last: bool = False) -> int:
    return n // batch_size if drop_last else -(-n // batch_size)


def places(n: int, pieces: range, count: int) -> torch.Tensor:
    """Sorted int64 (m,): places of some neighbouring `pieces` of a batch of n that is cut into `count`, as even as can be.

    A piece is a run of the first half of the batch and its mirror image in the second: partners in mixing, i and n - 1 - i,
    stay together, and are partners again in the piece. With fewer images than pieces some hold none.
    """
    half = (n + 1) // 2
    front = torch.arange(pieces.start * half // count, pieces.stop * half // count)
    return torch.cat((front, n - 1 - front)).unique()


def epoch(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: Augment | None,
    mean,
    std,
    device="cpu",
    num_classes: int | None = None,
    drop_last: bool = False,
    start: int = 0,
    pieces: int = 1,
    own: range = range(1),
    carry: Callable | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every sample once, in a random order: (images float32 (B, C, H, W) normalised, targets) on `device`.

    targets: int64 labels (B,), or with mixup or CutMix soft targets float32 (B, num_classes). The order is a function of
    (seed, epoch), what happens to a sample of (seed, epoch, sample index), mixing of (seed, epoch, number of the batch): the
    device changes none of them, the batch size only mixing. `start` leaves out the first batches at no cost. `augment=None`
    only shuffles. Where several processes share a batch, `pieces` says into how many it is cut and `own` which of them are
    made, see `places`: as they are in the whole batch, and in its order. A batch that leaves none gives its outermost pair.
    carry: what takes the place of `carry_out`, such as a form of it that replays CUDA graphs.
    Raises DataError for a batch size, seed, epoch or start out of range, for a mean or std that does not fit, and for mixing
    without num_classes.
    """
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0), ("epoch", epoch, 0), ("start", start, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise DataError(f"epoch: {name} is {value!r}; expected an int of at least {least}")
    if augment is not None and augment.mixes and num_classes is None:
        raise DataError("epoch: num_classes is missing; mixup and cutmix make soft targets, one value for each class")
    scale, shift = _affine(split, mean, std, device)
    fill = augment.fill(mean) if augment is not None else None
    return _epoch(
        split, batch_size, seed, epoch, augment, fill, scale, shift, device, num_classes, drop_last, start, pieces, own,
        carry or carry_out,
    )  # fmt: skip


def _epoch(
    split, batch_size, seed, epoch, augment, fill, scale, shift, device, num_classes, drop_last, start, pieces, own, carry
):
    n, size = len(split), split.img_size
    order = draws.permutation(seed, epoch, n, split.device)
    ahead = max(1, DRAWN_AHEAD[torch.device(device).type] // batch_size)
    steps = range(start, num_batches(n, batch_size, drop_last))
    indices = [order[step * batch_size : (step + 1) * batch_size] for step in steps]
    counts = [len(index) for index in indices]
    if pieces > 1:
        ours = functools.cache(lambda count: _places_or_pair(count, own, pieces).to(split.device))
        indices = [index[ours(len(index))] for index in indices]
    augment, pixels = split.fetch(indices, augment, seed, epoch)
    for step, index, count, images in zip(steps, indices, counts, pixels, strict=True):
        images = images.to(device, non_blocking=True)
        labels = split.labels.index_select(0, index).to(device, non_blocking=True)
        if augment is None:
            yield normalise(images, scale, shift), labels
            continue
        place = (step - start) % ahead
        if place == 0:
            drawn = augment.draw(seed, epoch, torch.cat(indices[step - start :][:ahead]).to(device), size)
        if place == 0 or count < batch_size:
            numbers = torch.arange(step, step + (ahead if place == 0 else 1), device=images.device)
            mixes, first = augment.draw_mix(seed, epoch, numbers, count, size), step
        program, boxes = drawn.of(slice(place * len(indices[0]), place * len(indices[0]) + len(labels)))
        mix = mixes and mixes.of(step - first)
        if mix and pieces > 1:
            mix = mix.at(ours(count).to(device))
        codes, args, kinds = program or (None, None, None)
        lam, box = mix or (None, None)
        yield carry(augment, fill, num_classes, kinds, codes, args, boxes, lam, box, images, labels, scale, shift)


def carry_out(augment, fill, num_classes, kinds, codes, args, boxes, lam, box, images, labels, scale, shift):
    """(images, targets) of a batch whose choices are drawn. The first four arguments are hashable, the others tensors or None:
    there is no look at the data, so a CUDA graph can replay it.
    """
    program = None if codes is None else Program(codes, args, kinds)
    mix = None if lam is None else Mix(lam, box)
    images = augment.pixels(images, program, fill)
    return augment.finish(images, mix, boxes, scale, shift), augment.targets(labels, mix, num_classes)


def _places_or_pair(n, own, pieces):
    found = places(n, own, pieces)
    return found if len(found) else torch.tensor((0, n - 1)).unique()


def evaluation(split: Split, *, batch_size: int, mean, std, device="cpu") -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Every sample once, in the order of the split, without augmentation; images and labels as `epoch` gives them."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise DataError(f"evaluation: batch_size is {batch_size!r}; expected an int of at least 1")
    scale, shift = _affine(split, mean, std, device)
    indices = [slice(i, i + batch_size) for i in range(0, len(split), batch_size)]
    pairs = zip(split.fetch(indices)[1], (split.labels[index] for index in indices), strict=True)
    return ((normalise(x.to(device), scale, shift), y.to(device)) for x, y in pairs)


def affine(channels: int, mean, std, device="cpu") -> tuple[torch.Tensor, torch.Tensor]:
    """(scale, shift), float32 (channels, 1, 1), with pixel * scale + shift = (pixel / 255 - mean) / std."""
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != channels:
            raise DataError(f"{name} has {len(values)} values; expected {channels}, one for each channel of the images")
    if min(std) <= 0:
        raise DataError(f"std is {tuple(std)}; expected positive numbers")
    mean, std = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (mean, std))
    return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def _affine(split, mean, std, device):
    return affine(split.channels, mean, std, device)


def normalise(images: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """uint8 -> float32. Two roundings in two steps: a fused multiply-add here and not there would make bits depend on B."""
    return images.to(torch.float32).mul_(scale).add_(shift)
