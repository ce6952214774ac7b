"""Every image operation against Pillow on real photographs, in PyTorch and in C++, which give the same bits."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from cct.data.augment import carry_out, pixels
from cct.data.augment import program as p
from cct.data.augment.policies import NAMES, operation

FILL = (125, 123, 114)
RESAMPLE = {p.NEAREST: Image.Resampling.NEAREST, p.BILINEAR: Image.Resampling.BILINEAR, p.BICUBIC: Image.Resampling.BICUBIC}


@pytest.fixture(params=["pytorch", "native"])
def apply(request):
    """A function (images, program, fill) -> images."""
    if request.param == "pytorch":
        return lambda images, program, fill: pixels.apply(images, program, torch.tensor(fill, dtype=torch.uint8))
    if not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    return carry_out.pixels


@pytest.fixture(scope="module")
def photos():
    """uint8 (24, 3, 21, 32): pieces of two photographs, some dark, some pale, one of a single colour."""
    pieces = []
    for photo in load_sample_images().images:
        small = Image.fromarray(photo).resize((128, 63), Image.Resampling.LANCZOS)
        pieces += [np.asarray(small.crop((x, y, x + 32, y + 21))) for y in (0, 21, 42) for x in (0, 32, 64, 96)]
    images = torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).contiguous()
    images[3] = images[3] // 3 + 20
    images[5] = images[5] // 4 + 190
    images[7] = 77
    return images


def to_pillow(image):
    return Image.fromarray(image[0].numpy() if len(image) == 1 else np.ascontiguousarray(image.permute(1, 2, 0).numpy()))


def to_tensor(image):
    array = torch.from_numpy(np.array(image))
    return array[None] if array.dim() == 2 else array.permute(2, 0, 1)


def program_of(codes, args, kinds=None):
    codes = torch.tensor(codes)[:, None]
    kinds = frozenset(codes.flatten().tolist()) if kinds is None else kinds
    rows = [[*row, *[0.0] * (p.WIDTH - len(row))] for row in args]
    return p.Program(codes, torch.tensor(rows, dtype=torch.float64)[:, None], (kinds,))


def added(value):
    return [min(255, i + value) if i < 128 else i for i in range(256)]


TONES = [
    ("auto_contrast", p.AUTO_CONTRAST, (), lambda x: ImageOps.autocontrast(x)),
    ("equalize", p.EQUALIZE, (), lambda x: ImageOps.equalize(x)),
    ("invert", p.INVERT, (), lambda x: ImageOps.invert(x)),
    *((f"posterize_{b}", p.POSTERIZE, (b,), lambda x, b=b: ImageOps.posterize(x, b)) for b in range(1, 9)),
    ("posterize_0", p.POSTERIZE, (0,), lambda x: x.point(lambda _: 0)),  # what Pillow gave before it refused 0 bits
    *((f"solarize_{t}", p.SOLARIZE, (t,), lambda x, t=t: ImageOps.solarize(x, t)) for t in (0, 26, 128, 199.1, 256)),
    *(
        (f"solarize_add_{a}", p.SOLARIZE_ADD, (a,), lambda x, a=a: x.point(added(a) * len(x.getbands())))
        for a in (0, 60, 110)
    ),
    *(
        (f"{kind.__name__.lower()}_{f}", code, (f,), lambda x, f=f, kind=kind: kind(x).enhance(f))
        for kind, code in (
            (ImageEnhance.Brightness, p.BRIGHTNESS), (ImageEnhance.Contrast, p.CONTRAST),
            (ImageEnhance.Color, p.COLOR), (ImageEnhance.Sharpness, p.SHARPNESS),
        )
        for f in (0.0, 0.1, 0.37, 1.0, 1.63, 1.9)
    ),
]  # fmt: skip


@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
@pytest.mark.parametrize(("code", "args", "expected"), [t[1:] for t in TONES], ids=[t[0] for t in TONES])
def test_tones_are_those_of_pillow(apply, photos, code, args, expected, grey):
    images = photos[:, :1] if grey else photos
    out = apply(images, program_of([code] * len(images), [args] * len(images)), FILL[: images.shape[1]])
    for image, got in zip(images, out, strict=True):
        assert torch.equal(got, to_tensor(expected(to_pillow(image))))


GEOMETRY = {
    "Rotate": lambda x, v, f, fill: x.rotate(v, resample=f, fillcolor=fill),
    "ShearX": lambda x, v, f, fill: x.transform(x.size, Image.AFFINE, (1, v, 0, 0, 1, 0), resample=f, fillcolor=fill),
    "ShearY": lambda x, v, f, fill: x.transform(x.size, Image.AFFINE, (1, 0, 0, v, 1, 0), resample=f, fillcolor=fill),
    "TranslateX": lambda x, v, f, fill: x.transform(x.size, Image.AFFINE, (1, 0, v * x.width, 0, 1, 0), f, fillcolor=fill),
    "TranslateY": lambda x, v, f, fill: x.transform(x.size, Image.AFFINE, (1, 0, 0, 0, 1, v * x.height), f, fillcolor=fill),
}
VALUES = {"Rotate": 30.0, "ShearX": 0.3, "ShearY": 0.3, "TranslateX": 0.45, "TranslateY": 0.45}


@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
@pytest.mark.parametrize("filter", list(RESAMPLE), ids=["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("name", list(GEOMETRY))
def test_geometry_is_that_of_pillow(apply, photos, name, filter, grey):
    images = photos[:, :1] if grey else photos
    n = len(images)
    values = torch.linspace(-1, 1, n, dtype=torch.float64) * VALUES[name]
    values[n // 2] = 0.0
    codes, args = operation(torch.full((n,), NAMES.index(name)), values, torch.full((n,), filter), images.shape[2:])
    out = apply(images, p.Program(codes[:, None], args[:, None], (frozenset({p.AFFINE}),)), FILL[: images.shape[1]])
    fill = FILL[0] if grey else FILL
    for image, value, got in zip(images, values.tolist(), out, strict=True):
        assert torch.equal(got, to_tensor(GEOMETRY[name](to_pillow(image), value, RESAMPLE[filter], fill)))


def test_affine_of_far_away_places_is_all_fill(apply, photos):
    rows = [(1, 0, 1e30, 0, 1, 0, f) for f in (0, 1, 2)] + [(1, 0, -1e4, 0, 1, 1e4, f) for f in (0, 1, 2)]
    out = apply(photos[:6], program_of([p.AFFINE] * 6, rows), FILL)
    assert torch.equal(out, torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).expand(6, 3, 21, 32))


BOXES = [
    (0, 0, 21, 32),
    (0, 0, 20, 32),
    (3, 5, 15, 20),
    (7, 0, 14, 31),
    (20, 31, 1, 1),
    (4, 9, 2, 3),
    (0, 1, 21, 31),
    (6, 2, 5, 29),
]


@pytest.mark.parametrize("grey", [False, True], ids=["rgb", "grey"])
@pytest.mark.parametrize("filter", [p.BILINEAR, p.BICUBIC], ids=["bilinear", "bicubic"])
def test_resized_box_is_that_of_pillow(apply, photos, filter, grey):
    images = (photos[:, :1] if grey else photos)[: len(BOXES)]
    flips = [i % 4 for i in range(len(BOXES))]
    rows = [(*box, 0, flip, filter) for box, flip in zip(BOXES, flips, strict=True)]
    out = apply(images, program_of([p.RESIZE] * len(rows), rows), FILL[: images.shape[1]])
    for image, (top, left, h, w), flip, got in zip(images, BOXES, flips, out, strict=True):
        box = to_pillow(image).crop((left, top, left + w, top + h))
        expected = to_tensor(box.resize((32, 21), RESAMPLE[filter]))
        assert torch.equal(got, expected.flip([axis for axis, bit in ((2, 1), (1, 2)) if flip & bit]))


def test_shift_pads_with_zeros_and_flips(apply, photos):
    rows = [(0, 0), (3, -4), (-21, 0), (2, 40), (-1, 1, 0, 0, 0, 3), (0, 5, 0, 0, 0, 2)]
    out = apply(photos[:6], program_of([p.SHIFT] * 6, rows), FILL)
    for image, row, got in zip(photos, rows, out, strict=False):
        dy, dx, flips = int(row[0]), int(row[1]), int([*row, *[0] * 7][p.FLIPS])
        padded = torch.nn.functional.pad(image, (50, 50, 50, 50))
        expected = padded[:, 50 + dy : 71 + dy, 50 + dx : 82 + dx]
        assert torch.equal(got, expected.flip([axis for axis, bit in ((2, 1), (1, 2)) if flips & bit]))


def test_smooth_is_that_of_pillow_down_to_two_pixels(photos):
    for height, width in ((21, 32), (3, 3), (2, 7), (5, 1)):
        images = photos[:, :, :height, :width]
        for image, got in zip(images, pixels.smooth(images), strict=True):
            assert torch.equal(got, to_tensor(to_pillow(image.contiguous()).filter(ImageFilter.SMOOTH)))


def test_each_sample_keeps_its_own_operation(apply, photos):
    codes = [i % (p.SHARPNESS + 1) for i in range(len(photos))]
    args = {p.SHIFT: (1, 2, 0, 0, 0, 1), p.RESIZE: (2, 3, 15, 20, 0, 2, 2), p.AFFINE: (1, 0.2, 0, 0, 1, 0, 2)}
    rows = [args.get(code, (0.6,)) for code in codes]
    together = apply(photos, program_of(codes, rows), FILL)
    for i, (code, row) in enumerate(zip(codes, rows, strict=True)):
        alone = apply(photos[i : i + 1], program_of([code], [row]), FILL)
        assert torch.equal(together[i], alone[0])
        assert code != p.IDENTITY or torch.equal(alone[0], photos[i])


def test_steps_follow_one_another(apply, photos):
    first, second = program_of([p.INVERT] * 24, [()] * 24), program_of([p.SOLARIZE] * 24, [(100,)] * 24)
    both = p.Program(
        torch.cat((first.codes, second.codes), 1), torch.cat((first.args, second.args), 1), first.kinds + second.kinds
    )
    assert torch.equal(apply(photos, both, FILL), apply(apply(photos, first, FILL), second, FILL))


@pytest.mark.parametrize("shape", [(0, 3, 8, 8), (2, 1, 1, 1), (2, 3, 1, 9), (1, 3, 224, 160)])
def test_odd_sizes_agree(shape):
    if not carry_out.compiled(torch.empty(0)):
        pytest.skip("the C++ library is not built")
    B, C, H, W = shape
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codes = torch.arange(1, p.SHARPNESS + 1).repeat(B, 1)
    args = torch.zeros(B, p.SHARPNESS, p.WIDTH, dtype=torch.float64)
    args[:, p.RESIZE - 1] = torch.tensor([0.0, 0.0, max(1, H // 2), max(1, W // 2), 0, 3, 2])
    args[:, p.AFFINE - 1] = torch.tensor([math.cos(0.3), 0.3, 1.0, -0.3, math.cos(0.3), 0.5, 2])
    args[:, p.AFFINE :, 0] = 1.4
    program = p.Program(codes, args, tuple(frozenset({c}) for c in range(1, p.SHARPNESS + 1)))
    expected = pixels.apply(images, program, torch.tensor(FILL[:C], dtype=torch.uint8))
    assert torch.equal(carry_out.pixels(images, program, FILL[:C]), expected)
