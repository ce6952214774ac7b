"""Image files and image arrays with Pillow: the one place where a picture is resized, so training and prediction agree."""

from __future__ import annotations

import contextlib
import io

import torch

from .batches import affine, normalise
from .dataset import DataError

with contextlib.suppress(ImportError):  # only pictures in files need them
    import numpy as np
    from PIL import Image, ImageOps

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # of PIL.Image.Resampling


def load_image(path, preprocessing: dict) -> torch.Tensor:
    """An image file as a float32 tensor (channels, H, W), treated as the checkpoint's `preprocessing` says.

    keys: size [H, W]; channels 1 or 3; mean and std, one value a channel, for pixels in [0, 1]; interpolation (bicubic);
    crop_pct (1.0): the frame is this part of the resized image; pad (0): zero border of this width inside H x W.
    Steps as `fit`. Raises DataError that names the file when it is missing or no image.
    """
    spec = {"interpolation": "bicubic", "crop_pct": 1.0, "channels": 3, "pad": 0} | preprocessing
    for key in ("size", "mean", "std"):
        if key not in spec:
            raise DataError(f"preprocessing lacks {key!r}; it has {', '.join(preprocessing)}")
    scale, shift = affine(spec["channels"], spec["mean"], spec["std"])
    pixels = read_pixels(path, spec["channels"], tuple(spec["size"]), spec["interpolation"], spec["crop_pct"], spec["pad"])
    return normalise(torch.from_numpy(pixels), scale, shift)


def read_pixels(path, channels, size, interpolation="bicubic", crop_pct=1.0, pad=0) -> np.ndarray:
    """An image file as uint8 (channels, H, W)."""
    return as_array(fit(open_image(path, channels), size, interpolation, crop_pct, pad))


def open_image(path, channels, content: bytes | None = None) -> Image.Image:
    """An image file in mode L or RGB, turned as its EXIF data says. content: the bytes of the file, where they are known."""
    if channels not in (1, 3):
        raise DataError(f"{path}: images can be read with 1 or 3 channels; the model wants {channels}")
    try:
        with Image.open(path if content is None else io.BytesIO(content)) as image:
            return to_mode(ImageOps.exif_transpose(image), "L" if channels == 1 else "RGB")
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    # Pillow's decoders also raise SyntaxError, ValueError and struct.error on damaged files.
    except Exception as error:
        raise DataError(f"{path}: cannot be read as an image ({error}); replace or remove it") from error


def to_mode(image: Image.Image, mode: str) -> Image.Image:
    """To "L" or "RGB"; transparent parts become black, 16-bit greys keep their upper 8 bits."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("32-bit float pixels have no known range; save it with 8 or 16 bits")
    elif image.mode in ("P", "PA", "LA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    return image.convert(mode)


def fit(image: Image.Image, size, interpolation="bicubic", crop_pct=1.0, pad=0) -> Image.Image:
    """Resize so that the image just covers size / crop_pct, cut `size` from its centre, put a zero border of `pad` inside."""
    if interpolation not in FILTERS:
        raise DataError(f"interpolation is {interpolation!r}; expected one of {', '.join(FILTERS)}")
    H, W = (s - 2 * pad for s in size)
    if H < 1 or W < 1:
        raise DataError(f"size is {tuple(size)} with pad {pad}; nothing would be left of the image")
    if not 0 < crop_pct <= 1:
        raise DataError(f"crop_pct is {crop_pct!r}; expected a number in (0, 1]")
    cover_h, cover_w = int(H / crop_pct), int(W / crop_pct)
    w, h = image.size
    # The side that is relatively shorter is met exactly, the other is rounded down (as torchvision does).
    wide = w * cover_h >= h * cover_w
    resized = (w * cover_h // h, cover_h) if wide else (cover_w, h * cover_w // w)
    if resized != image.size:
        image = image.resize(resized, Image.Resampling[interpolation.upper()])
    if resized != (W, H):
        left, top = round((resized[0] - W) / 2), round((resized[1] - H) / 2)
        image = image.crop((left, top, left + W, top + H))
    return ImageOps.expand(image, pad) if pad else image


def as_array(image: Image.Image) -> np.ndarray:
    """A copy as uint8 (channels, H, W)."""
    array = np.asarray(image)
    return np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C")


def fit_all(images: torch.Tensor, size, pad=0, interpolation="bicubic") -> torch.Tensor:
    """uint8 (n, C, h, w) -> uint8 (n, C, H, W), each as `fit`; C is 1 or 3."""
    inner = tuple(s - 2 * pad for s in size)
    if images.shape[2:] != inner:
        out = torch.empty(*images.shape[:2], *size, dtype=torch.uint8)
        for source, target in zip(images.numpy(), out.numpy(), strict=True):
            picture = Image.fromarray(source[0] if len(source) == 1 else np.ascontiguousarray(source.transpose(1, 2, 0)))
            target[:] = as_array(fit(picture, size, interpolation, pad=pad))
        return out
    return torch.nn.functional.pad(images, (pad,) * 4) if pad else images
