"""Released weights: which file belongs to which name, and where it lies: a path, the cache folder, or the official site."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from .arguments import nearest
from .checkpoints import load_checkpoint, write_atomically
from .fitting import CheckpointError

URL = "https://shi-labs.com/projects/cct/checkpoints/pretrained/"

# Input of the official evaluation: data set -> mean, std of the pixels in 0..1, share of the image that is kept.
PIXELS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 1.0),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761), 1.0),
    "flowers102": ((0.4353, 0.3773, 0.2872), (0.2966, 0.2455, 0.2698), 1.0),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 0.9),
}


@dataclass(frozen=True)
class Released:
    """A file of released weights. sha256: hex digest, where it is published; otherwise that of the first download counts."""

    file: str
    data: str
    sha256: str | None = None

    @property
    def preprocessing(self):
        mean, std, crop = PIXELS[self.data]
        return {"mean": mean, "std": std, "crop_pct": crop, "interpolation": "bicubic", "file": self.file}


RELEASED = {
    "cct_7_3x1_32": Released("cct_7_3x1_32_cifar10_300epochs.pth", "cifar10"),
    "cct_7_3x1_32_sine": Released("cct_7_3x1_32_sine_cifar10_5000epochs.pth", "cifar10"),
    "cct_7_3x1_32_c100": Released("cct_7_3x1_32_cifar100_300epochs.pth", "cifar100"),
    "cct_7_3x1_32_sine_c100": Released("cct_7_3x1_32_sine_cifar100_5000epochs.pth", "cifar100"),
    "cct_7_7x2_224_sine": Released("cct_7_7x2_224_flowers102.pth", "flowers102"),
    "cct_14_7x2_224": Released("cct_14_7x2_224_imagenet.pth", "imagenet"),
    "cct_14_7x2_384": Released("cct_14_7x2_384_imagenet.pth", "imagenet"),
    "cct_14_7x2_384_fl": Released("cct_14_7x2_384_flowers102.pth", "flowers102"),
}
# Published beside these, for the two sine models above.
OTHER_FILES = (
    Released("cct_7_3x1_32_sine_cifar10_1500epochs.pth", "cifar10"),
    Released("cct_7_3x1_32_sine_cifar100_1500epochs.pth", "cifar100"),
)


def resolve(pretrained, name, progress=True):
    """`pretrained=` of `create_model` -> a path: a local file, or a released one, downloaded if it is not in the cache."""
    by_file = {r.file: r for r in (*RELEASED.values(), *OTHER_FILES)}
    if pretrained is True:
        released = RELEASED.get(name)
        if released is None:
            raise CheckpointError(
                f"{name}: no weights were released under this name; pretrained= takes a path, or one of {', '.join(RELEASED)}"
            )
        return fetch(released, progress)
    if not isinstance(pretrained, (str, os.PathLike)):
        raise ValueError(f"pretrained is {pretrained!r}; expected True, False, a path, or a name with released weights")
    text = os.fspath(pretrained)
    released = RELEASED.get(text) or by_file.get(text) or by_file.get(f"{text}.pth")
    if released and not os.path.exists(text):
        return fetch(released, progress)
    if not os.path.exists(text):
        raise CheckpointError(
            f"{text}: does not exist, and no released weights have this name{nearest(text, [*RELEASED, *by_file])}; give the "
            f"path of a .safetensors, .pth or .pth.zip file, or one of {', '.join(RELEASED)}"
        )
    return text


def cache_folder():
    """The folder of CCT_CACHE, by default ~/.cache/cct."""
    return Path(os.environ.get("CCT_CACHE") or Path.home() / ".cache" / "cct")


def fetch(released, progress=True):
    """The released file in the cache, downloaded first if need be; its sha256 must be the published or the recorded one."""
    path = cache_folder() / released.file
    record = path.with_name(f"{path.name}.sha256")
    if not path.is_file():
        _download(released, path, progress)
        record.unlink(missing_ok=True)
    digest = _sha256(path)
    recorded = record.read_text().split() if record.is_file() else []
    expected = released.sha256 or (recorded[0] if recorded else None)
    if expected is None:
        line = f"{digest}  {path.name}\n"  # the form that `sha256sum --check` reads
        try:
            write_atomically(record, lambda temporary: temporary.write_text(line))
        except OSError as error:
            raise CheckpointError(f"{record}: cannot be written ({error.strerror}); make room, or set CCT_CACHE") from error
    elif digest != expected:
        raise CheckpointError(
            f"{path}: sha256 is {digest}; expected {expected}. Delete it and {record.name} to download it again"
        )
    return path


def _download(released, path, progress):
    """To a temporary file first: what stops half-way, or is no checkpoint, never gets the name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            temporary = Path(folder) / path.name
            torch.hub.download_url_to_file(URL + released.file, str(temporary), progress=progress)
            load_checkpoint(temporary)
            os.replace(temporary, path)
    except (OSError, CheckpointError) as error:
        raise CheckpointError(
            f"{released.file}: cannot be downloaded from {URL} ({error}); get the file elsewhere and put it at {path}, or pass "
            f"pretrained=PATH"
        ) from error


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
