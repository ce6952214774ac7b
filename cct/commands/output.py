"""Where a command writes: a folder made when needed, and one line for what goes wrong."""

import contextlib
import tempfile
from pathlib import Path

from cct.training.config import ConfigError


@contextlib.contextmanager
def writing_to(folder, flag="--output"):
    """Give `folder` as a Path, made if it is not there.

    Raises ConfigError naming `flag` when it cannot be a folder, RunError when a file in it cannot be written (full disk).
    """
    from cct.training.run_folder import saving

    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: cannot make this folder ({error.strerror}); choose another {flag}") from None
    try:
        tempfile.TemporaryFile(dir=folder).close()  # now, and not after hours of work
    except OSError as error:
        raise ConfigError(f"{flag} {folder}: cannot be written ({error.strerror}); choose another {flag}") from None
    with saving(folder):
        yield folder
