"""Weights in files: our safetensors + JSON, and the official `.pth` (also zipped), read without running any code."""

import argparse
import io
import json
import os
import re
import zipfile
import zlib
from pathlib import Path

import torch

from .fitting import CheckpointError, load_weights

__all__ = ["CheckpointError", "load_checkpoint", "load_weights", "save_checkpoint", "write_atomically"]

METADATA_KEY = "cct"
# Wrappers other training scripts put around a state dict, the averaged weights first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def write_atomically(path, write):
    """Call write(temporary path), then put that file in the place of `path`: at any moment `path` is whole, old or new.

    The temporary file lies in the same folder; file and folder are flushed to the disk before and after the replacement.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def save_checkpoint(path, state_dict, config):
    """Write `state_dict` as safetensors with `config` inside (metadata key "cct"), and `config` beside it as <stem>.json.

    config: JSON-able, {"model": model.config, "preprocessing": {...}, "classes": [...], "metrics": {...}}; what is in the
    safetensors file counts, the JSON file is for people. Both are written atomically. A full disk leaves the old files whole.
    """
    import safetensors.torch  # here, so that models without files do not need it

    path = Path(path)
    text = json.dumps(config, indent=2, ensure_ascii=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state_dict.items()}
    metadata = {METADATA_KEY: json.dumps(config), "format": "pt"}
    # Not save_file: it makes files that only their owner can read, and hides the errno of a failure.
    content = safetensors.torch.save(tensors, metadata)
    write_atomically(path, lambda p: p.write_bytes(content))
    write_atomically(path.with_suffix(".json"), lambda p: p.write_text(text + "\n", encoding="utf-8"))


def load_checkpoint(path):
    """(state dict on the CPU, config or None) from our safetensors, an official .pth or a .pth.zip; the content decides.

    Raises CheckpointError for a file that is missing, truncated, of another kind, or a pickle with anything but tensors.
    """
    path = Path(path)
    if not path.is_file():
        kind = "is a folder, not a file" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path}: {kind}; give the path of a .safetensors, .pth or .pth.zip file")
    try:
        with open(path, "rb") as file:
            start = file.read(9)
        if not start:
            raise CheckpointError(f"{path}: is empty; copy or download it again")
        if path.suffix == ".safetensors" or start[8:9] == b"{":
            return _load_safetensors(path)
        return _state_dict(path, _load_pickle(path)), None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the file and its permissions"
        ) from error


def _load_safetensors(path):
    import safetensors

    try:
        with safetensors.safe_open(path, framework="pt") as file:
            config = (file.metadata() or {}).get(METADATA_KEY)
            state_dict = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        config = None if config is None else json.loads(config)
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: is truncated or no safetensors file ({error}); copy or download it again") from error
    if config is not None and not (isinstance(config, dict) and isinstance(config.get("model", {}), dict)):
        raise CheckpointError(f"{path}: its metadata {METADATA_KEY!r} is not a configuration; save the weights again")
    return state_dict, config


def _load_pickle(path):
    """The object in a .pth file, or in the one .pth member of a zip archive."""
    # Read at once: what goes wrong after this is the content's fault and not the disk's.
    source = io.BytesIO(path.read_bytes())
    try:
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as archive:
                names = archive.namelist()
                if not any(name.endswith("/data.pkl") for name in names):  # not itself a .pth, which is an archive too
                    source = io.BytesIO(archive.read(_only_checkpoint(path, names)))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise CheckpointError(f"{path}: is a damaged archive ({error}); copy or download it again") from error
    source.seek(0)
    try:
        # Namespace: the plain record of command-line flags in files of the official training script.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can fail in any way; nothing in it has been executed
        if found := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: holds {found[1]} beside tensors, which is not read because it could run code; save the weights "
                f"alone: torch.save(model.state_dict(), path)"
            ) from None
        raise CheckpointError(
            f"{path}: is truncated or no checkpoint ({type(error).__name__}); copy or download it again"
        ) from error


def _only_checkpoint(path, names):
    inside = [name for name in names if name.endswith((".pth", ".pt")) and not name.startswith("__MACOSX/")]
    if len(inside) != 1:
        found = ", ".join((inside or names)[:5]) or "nothing"
        raise CheckpointError(f"{path}: holds {found}; expected an archive with exactly one .pth file")
    return inside[0]


def _state_dict(path, content):
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}; expected a state dict, names to tensors")
    return {str(name).removeprefix("module."): tensor for name, tensor in content.items()}
