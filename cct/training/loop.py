"""Start a run or go on with one. A run is a function of its configuration: stopped at any step and resumed, it ends in the
same bits.
"""

import contextlib
from pathlib import Path

from . import run_folder
from .config import ConfigError
from .distributed import joined
from .progress import Log
from .run import Run
from .settings import MACHINE
from .setup import prepare


def train(config, *, log=None):
    """Train as `config` says, in a new run folder; under torchrun, with all its processes.

    Raises ConfigError or DataError for what cannot be used, RunError when the run cannot go on; the folder then holds the last
    good state. SIGINT and SIGTERM save and end the run early: see Result.exit_code.
    """
    with joined() as workers, workers.watch("Start again."):
        return _train(workers, config, log)


def _train(workers, config, log):
    with contextlib.ExitStack() as stack:
        folder = None
        with workers.together():
            setup = prepare(config, workers)
            if workers.first:
                folder = run_folder.create(setup.config)
                stack.enter_context(run_folder.locked(folder))
                run_folder.clear_temporaries(folder)
                run_folder.write_config(folder, setup.config)
        run = Run(setup, workers.share(folder), log or _log(workers), workers)
        run.save()
        return run.go()


def resume(folder, overrides=None, *, log=None):
    """Go on with the run in `folder`, to the same bits as without the stop. overrides: new values for fields in MACHINE.

    With another number of processes the batches stay the same. So do the losses, up to rounding, if processes x
    accumulate_steps does, or dropout and stochastic depth are 0: each of so many pieces of a batch draws its own masks.
    """
    overrides = overrides or {}
    if fixed := sorted(set(overrides) - set(MACHINE)):
        raise ConfigError(
            f"--resume goes on with the configuration of the run; {', '.join(fixed)} cannot change. "
            f"For a new run from its weights: --pretrained {Path(folder) / 'last.safetensors'}"
        )
    with joined() as workers, workers.watch("Resume it again."):
        return _resume(workers, folder, overrides, log)


def _resume(workers, folder, overrides, log):
    with contextlib.ExitStack() as stack:
        state = note = None
        with workers.together():
            if workers.first:
                run_folder.expect_run(folder)
                stack.enter_context(run_folder.locked(folder))
                state, note = run_folder.load_state(folder)
                if note:
                    run_folder.set_aside(folder)
                run_folder.clear_temporaries(folder)
        state, note = workers.share((state, note))
        if state["workers"] != workers.count:
            overrides = {"threads": None, **overrides}  # the cores are shared out anew
        with workers.together():
            setup = prepare(run_folder.restored_config(state, overrides), workers, pretrained=False)
        run = Run(setup, Path(folder), log or _log(workers), workers)
        with workers.together():
            run.load(state)
        run.files.metrics(run.rows)  # the run may have been killed just before it did
        if note:
            run.say(note)
        return run.go()


def _log(workers):
    return Log(quiet=not workers.first)
