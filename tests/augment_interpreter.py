"""The Triton kernels of augmentation on CPU tensors, under triton's interpreter: the bits of the PyTorch form.

pytest does not collect this file, see triton_interpreter.py; test_augment_triton.py runs it.
"""

import os

import pytest
import torch

from cct.data import Augment
from cct.data.augment import mixing, pixels
from cct.data.augment import program as p
from cct_kernels.triton import augment

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before pytest starts"
SIZE = (9, 11)
FILL = torch.tensor([10, 128, 255], dtype=torch.uint8)
OPERATIONS = {
    p.SHIFT: [(1, -3, 0, 0, 0, 3), (-9, 20, 0, 0, 0, 2)],
    p.RESIZE: [(1, 2, 7, 8, 0, 1, p.BILINEAR), (8, 3, 1, 5, 0, 2, p.BICUBIC)],
    p.AFFINE: [*((0.95, 0.2, -1, -0.2, 0.95, 0.7, kind) for kind in range(3)), (1, 0, 1e30, 0, 1, 0, p.NEAREST)],
    p.AUTO_CONTRAST: [()], p.EQUALIZE: [()], p.INVERT: [()], p.POSTERIZE: [(3,)], p.SOLARIZE: [(100.3,)],
    p.SOLARIZE_ADD: [(110,)], p.BRIGHTNESS: [(1.9,)], p.CONTRAST: [(0.1,)], p.COLOR: [(1.7,)],
    p.SHARPNESS: [(1.7,)],
}  # fmt: skip


def make_images(n, size=SIZE):
    images = torch.randint(0, 256, (n, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    images[1] = images[1] // 4 + 60
    return images


@pytest.mark.parametrize("code", OPERATIONS)
def test_each_operation(code):
    """A noisy image and a dull one; a grey one; one that is left alone."""
    images = make_images(3)
    codes, kinds = torch.tensor([code, code, p.IDENTITY])[:, None], (frozenset({code}),)
    for row in OPERATIONS[code]:
        args = torch.zeros(3, 1, p.WIDTH, dtype=torch.float64)
        args[:, 0, : len(row)] = torch.tensor(row, dtype=torch.float64)
        for some, channels in ((slice(None), 3), (slice(1, 2), 1)):
            batch, fill = images[some, :channels], FILL[:channels]
            expected = pixels.apply(batch, p.Program(codes[some], args[some], kinds), fill)
            assert torch.equal(augment.pixels(batch, codes[some], args[some], kinds, fill), expected), row


def test_programs_of_images_that_take_several_blocks():
    size = (20, 14)
    assert size[0] * size[1] > augment.BLOCK
    images = make_images(5, size)
    images[2] = 77
    fields = {"scale": (0.4, 1.0), "aa": "rand-m9-mstd0.5-inc1-p0.9", "vflip": 0.3}
    program = Augment(**fields).draw(1, 2, torch.arange(5), size).program
    program.codes[:2, 1], program.codes[2, 2] = torch.tensor([p.EQUALIZE, p.CONTRAST]), p.AUTO_CONTRAST
    out = augment.pixels(images, program.codes, program.args, program.kinds, FILL)
    assert torch.equal(out, pixels.apply(images, program, FILL))


@pytest.mark.parametrize(("mode", "mix"), [(0, "batch"), (1, "elem"), (2, None), (0, None)])
def test_finish(mode, mix):
    images = make_images(4)
    augmentation = Augment(mixup=0.8, cutmix=1.0, mixup_mode=mix or "batch", reprob=0.8, recount=2)
    boxes = augmentation.draw(0, 1, torch.arange(4), SIZE).boxes if mode or mix else None
    scale, shift = torch.tensor([0.5, 2.0, 1.0]).view(3, 1, 1), torch.tensor([1.0, -3.0, 0.0]).view(3, 1, 1)
    mixes = augmentation.draw_mix(0, 0, torch.arange(2), 4, SIZE)
    for i in range(2):
        lam, box = mixes.of(i) if mix else (None, None)
        expected = mixing.mixed(images, mixes.of(i)) if mix else images
        expected = expected.float() * scale + shift
        expected = expected if boxes is None else mixing.erased(expected, boxes, mixing.FILLS[mode])
        out = augment.finish(images, lam, box, boxes, scale, shift, mode, mixing.normals(images.device))
        assert torch.equal(out, expected)


def test_empty_batch():
    images = torch.empty(0, 3, *SIZE, dtype=torch.uint8)
    codes, args = torch.empty(0, 1, dtype=torch.int64), torch.empty(0, 1, p.WIDTH, dtype=torch.float64)
    assert augment.pixels(images, codes, args, (frozenset({p.INVERT}),), FILL).shape == images.shape
    assert augment.finish(images, None, None, None, None, None, 0, None).shape == images.shape
