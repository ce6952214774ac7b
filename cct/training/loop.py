"""Start a run or go on with one. A run is a function of its configuration: stopped at any step and resumed, it ends in the
same bits.
"""

from pathlib import Path

from . import run_folder
from .config import ConfigError
from .progress import Log
from .run import Run
from .setup import prepare

MACHINE = ("data_dir", "device", "threads", "save_seconds")  # what a resumed run may be told anew


def train(config, *, log=None):
    """Train as `config` says, in a new run folder.

    Raises ConfigError or DataError for what cannot be used, RunError when the run cannot go on; the folder then holds the last
    good state. SIGINT and SIGTERM save and end the run early: see Result.exit_code.
    """
    setup = prepare(config)
    folder = run_folder.create(config.output, config.data, config.model)
    run = Run(setup, folder, log or Log())
    run_folder.write_config(folder, setup.config)
    run.save()
    return run.go()


def resume(folder, overrides=None, *, log=None):
    """Go on with the run in `folder`, to the same bits as without the stop. overrides: new values for fields in MACHINE."""
    overrides = overrides or {}
    if fixed := sorted(set(overrides) - set(MACHINE)):
        raise ConfigError(
            f"--resume goes on with the configuration of the run; {', '.join(fixed)} cannot change. "
            f"For a new run from its weights: --pretrained {Path(folder) / 'last.safetensors'}"
        )
    log = log or Log()
    state, note = run_folder.load_state(folder)
    setup = prepare(run_folder.restored_config(state, overrides), pretrained=False)
    run = Run(setup, Path(folder), log)
    run.load(state)
    run.write_metrics()  # the run may have been killed just before it did
    if note:
        log.line(note)
    return run.go()
