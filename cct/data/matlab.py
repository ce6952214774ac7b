"""MATLAB 5 files, in which Oxford and Stanford publish labels and images."""

from __future__ import annotations

import io

import numpy as np

from .dataset import DataError


def read_mat(data: bytes, where, *names: str) -> list[np.ndarray]:
    """The variables `names` of the bytes of a .mat file. Raises DataError naming `where`."""
    # Comes with scikit-learn, and takes a while to import.
    from scipy.io import loadmat

    try:
        content = loadmat(io.BytesIO(data), variable_names=names)
    # A damaged file can raise nearly anything.
    except Exception as error:
        raise DataError(
            f"{where}: cannot be read as a MATLAB file ({error}); delete it and run again to download it"
        ) from error
    missing = [name for name in names if not isinstance(content.get(name), np.ndarray)]
    if missing:
        raise DataError(f"{where}: lacks the variable {', '.join(missing)}; replace it by the published file")
    return [content[name] for name in names]
