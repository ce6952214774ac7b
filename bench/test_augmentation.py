"""Augmentation by the paper's recipe, as `cct train` makes it: what a training step pays before the model."""

import pytest
import torch

from cct import recipes
from cct.data import batches
from cct.data.augment import carry_out
from cct.data.dataset import Split
from cct.training.config import resolve
from cct.training.setup import make_augment

from .test_ops import DEVICES

IMAGES, BATCH = 1024, 128
RECIPE = "cct_2_3x2-cifar10"


def in_pytorch(call):
    """The same draws, carried out by PyTorch."""

    def run():
        with pytest.MonkeyPatch.context() as patch:
            for name in ("compiled", "on_triton"):
                patch.setattr(carry_out, name, lambda images: False)
            return call()

    return run


@pytest.mark.parametrize("device", DEVICES)
def test_augmentation(bench, device):
    """All batches of 1024 images, from uint8 pixels to normalised and mixed images with their targets."""
    key = {"kind": "augmentation", "what": RECIPE, "device": device, "dtype": "float32", "batch": IMAGES}
    bench.begin(key, ("ours", "pytorch"))
    pixels = torch.randint(256, (IMAGES, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    split = Split(pixels, torch.arange(IMAGES) % 10).to(device)
    augment = make_augment(resolve({"crop_padding": 0, "flip": True}, recipes.path(RECIPE)))
    options = {"batch_size": BATCH, "mean": (0.5,) * 3, "std": (0.25,) * 3, "device": device, "num_classes": 10}

    def epoch():
        for batch in batches.epoch(split, seed=0, epoch=0, augment=augment, **options):
            last = batch
        return last

    calls = {"ours": epoch, "pytorch": in_pytorch(epoch)}
    expected = calls["pytorch"]()

    def check(name, call):
        assert all(torch.equal(a, b) for a, b in zip(call(), expected, strict=True)), "not the same bits"

    moved = pixels.nbytes * (1 + 4)  # uint8 in, float32 out
    bench.row(key, {n: lambda call=call: call for n, call in calls.items()}, check, flops=0, moved=moved)
