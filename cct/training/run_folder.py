"""The folder of a run: its name, its files, and the state that an interrupted run goes on from."""

import contextlib
import dataclasses
import datetime
import fcntl
import itertools
import os
import socket
from io import BytesIO
from pathlib import Path

import torch

from cct.disk import is_full
from cct.memory import who_is_full
from cct.models.checkpoints import write_atomically

from .config import Config, ConfigError

STATE, PREVIOUS, DAMAGED = "resume.pt", "resume.previous.pt", "resume.damaged.pt"
LOCK, CONFIG = "run.lock", "config.yaml"
TEMPORARY = ".*.tmp"  # files of a save that was killed
FORMAT = 2  # of the resume state


class RunError(RuntimeError):
    """A run that cannot go on or save; the message says what is kept and what to do."""


def create(config):
    """A run folder for this resolved configuration: its `output`, or the first free runs/DATA-MODEL-DATE-N.

    Raises ConfigError when `output` holds a run or other files: nothing is ever overwritten without --resume. What the same
    run left that ended before its first save does not count.
    """
    if (output := config.output) is not None:
        folder = Path(output)
        if folder.is_dir() and any(folder.iterdir()) and not (is_untrained(folder) and _begins(folder, config)):
            hint = f"continue it with --resume {output}, or choose" if has_state(folder) else "choose"
            raise ConfigError(f"--output {output}: the folder is not empty; {hint} another --output")
        return _make(folder)
    stem = f"{config.data}-{config.model}-{datetime.date.today():%Y-%m-%d}"
    for n in itertools.count(1):
        with contextlib.suppress(FileExistsError):  # its number is taken, perhaps just now
            return _make(Path("runs") / f"{stem}-{n}", exist_ok=False)


def is_untrained(folder):
    """Whether the folder holds nothing but what a run leaves that ends before its first save."""
    return all(path.name in (CONFIG, LOCK) or path.match(TEMPORARY) for path in Path(folder).iterdir())


def _begins(folder, config):
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / CONFIG).read_text(encoding="utf-8") == _text(config)
    return not (folder / CONFIG).exists()


def _text(config):
    return dataclasses.replace(config, output=None).to_yaml()


def _make(folder, exist_ok=True):
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and not exist_ok:
            raise
        raise ConfigError(f"--output {folder}: cannot make this folder ({error.strerror}); choose another --output") from None
    return folder


@contextlib.contextmanager
def locked(folder):
    """Keep every other process out of the run in `folder`; ConfigError when one is in it.

    The lock is the kernel's, on run.lock, which names process and machine: it ends with its process, however that ends.
    """
    path = Path(folder) / LOCK
    with saving(folder):
        file = _lock(path)
    with file:
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # the folder is gone or cannot be written: the run says so itself
                path.unlink()


def _lock(path):
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 (the lock lasts as long as it is open)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "another process"
            file.close()
            raise ConfigError(f"{path.parent}: {owner} is training in this folder; wait for its end, or stop it") from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its owner took the file away between our opening and our locking it
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}")
    file.flush()
    return file


def write_config(folder, config):
    """config.yaml: the resolved configuration, which `cct train -c` runs again in another folder."""
    with saving(folder):
        write_atomically(folder / CONFIG, lambda temporary: temporary.write_text(_text(config), encoding="utf-8"))


@contextlib.contextmanager
def saving(folder, what=None):
    """What goes wrong while saving (a full disk, a lost folder), or while doing `what`, becomes a RunError of one line."""
    try:
        yield
    except OSError as error:
        problem = "the disk is full" if is_full(error) else error.strerror or str(error)
        then = "start it again"
        with contextlib.suppress(OSError):  # it may not be read
            if has_state(folder):
                then = f"go on with: cct train --resume {folder} (the last save is whole)"
        raise RunError(f"cannot {what or f'save to {folder}'}: {problem}. Mend that, then {then}") from error


def has_state(folder):
    """Whether the folder holds a state to resume from."""
    return any((Path(folder) / name).is_file() for name in (STATE, PREVIOUS))


def save_state(folder, state):
    """Write the resume state; the one before it stays as resume.previous.pt, and one of the two is whole at any moment.

    A resume.pt that is there must be whole: see `set_aside`.
    """
    buffer = BytesIO()  # torch.save to a file hides the reason of a failure
    torch.save({"format": FORMAT, **state}, buffer)
    path = Path(folder) / STATE

    def write(temporary):
        temporary.write_bytes(buffer.getbuffer())
        if path.exists():
            _keep(path, path.with_name(PREVIOUS))

    write_atomically(path, write)


def _keep(path, previous):
    previous.unlink(missing_ok=True)
    try:
        os.link(path, previous)
    except OSError:  # a file system without hard links
        os.replace(path, previous)


def expect_run(folder):
    """Raise ConfigError when this is not the folder of a run."""
    if not Path(folder).is_dir():
        raise ConfigError(f"--resume {folder}: no such folder")
    if not has_state(folder):
        raise ConfigError(f"--resume {folder}: no {STATE} in it, so this is not the folder of a run")


def load_state(folder):
    """The newest whole resume state of the folder: (state, note), note says that the previous one was taken, or is None.

    Raises ConfigError when there is none.
    """
    folder, problems = Path(folder), []
    for path in (folder / STATE, folder / PREVIOUS):
        if not path.is_file():
            continue
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a damaged pickle makes of itself
            if who_is_full(error):
                raise
            reason = getattr(error, "strerror", None) or "not a whole file that torch.save wrote"
            problems.append(f"{path} is damaged ({reason})")
            continue
        if not isinstance(state, dict):
            problems.append(f"{path} is damaged (holds a {type(state).__name__})")
            continue
        if state.get("format") != FORMAT:
            raise ConfigError(f"{path}: has format {state.get('format')}; this version of cct-kernels reads {FORMAT}")
        return state, "; ".join([*problems, f"going on from {path}"]) if problems else None
    problems.append(f"start again, from the weights if they are whole: --pretrained {folder / 'last.safetensors'}")
    raise ConfigError("; ".join(problems))


def set_aside(folder):
    """Call a damaged resume.pt resume.damaged.pt: the next save would put it in the place of the previous one, a whole one."""
    with saving(folder):
        os.replace(Path(folder) / STATE, Path(folder) / DAMAGED)


def clear_temporaries(folder):
    """Away with what a killed save left; the folder must be `locked`."""
    for rest in Path(folder).glob(TEMPORARY):
        rest.unlink(missing_ok=True)


def restored_config(state, overrides):
    """The Config that a resume state was written under, with a few fields told anew."""
    return Config(**{**state["config"], **overrides})
