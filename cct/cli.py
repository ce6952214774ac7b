"""The `cct` command: its sub-commands are the modules of cct.commands, each with `add(subparsers)` and `run(args)`.

Exit codes: 0 done; 1 the run could not go on (loss not finite, disk or memory full); 2 wrong usage or input; 130 and 143
stopped by SIGINT or SIGTERM with everything saved.
"""

import argparse
import contextlib
import logging
import os
import sys

from cct.commands import data, evaluate, explain, export, info, predict, recipes, report, reproduce, train
from cct.commands.parser import Parser
from cct.disk import discard_output, is_full, told
from cct.training.parent import follow_parent

COMMANDS = (train, recipes, reproduce, report, evaluate, predict, explain, export, info, data)

EPILOG = """
examples:
  cct train                                        train on 1,438 real handwritten digits, no download, a minute
  cct train --data cifar10 --data-dir ~/data       train on CIFAR-10
  cct train ~/photos                               train on a folder with one sub-folder for each class
  cct predict runs/.../best.safetensors cat.png    what is on this picture?

`cct COMMAND --help` shows every option, with examples.
"""


def main(argv=None):
    """Run the command; returns the exit code."""
    parser = Parser(
        prog="cct",
        description="Train, evaluate and use Compact Transformers (ViT-Lite, CVT, CCT).",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(subparsers)
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    _share_cores()
    follow_parent()
    if os.environ.get("RANK", "0") != "0":  # of the processes of torchrun one warns for all
        logging.getLogger("cct").setLevel(logging.ERROR)
    try:
        code = args.run(args) or 0
        sys.stdout.flush()  # here, where a full disk can still be told
        return code
    except KeyboardInterrupt:
        _tell("stopped")
        return _leave(130)
    except SystemExit as end:  # another process of torchrun says why
        return _leave(end.code)
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        discard_output()
        return 0
    except Exception as error:
        code = _exit_code(error)
        if code is None:
            raise
        _tell(f"cct {args.command}: {_message(error)}")
        return _leave(code)


def _tell(line):
    """A line on stderr, after what stdout holds back; silently where they lie on the disk that is full."""
    try:
        sys.stdout.flush()
    except OSError:
        discard_output()
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def _leave(code):
    """`code`, the exit code; at once where other processes are connected still: shutting down, one of them may abort us."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _share_cores():
    """Let waiting OpenMP threads sleep after a millisecond, unless the user chose otherwise; before torch is imported.

    They spin ten times as long by default, which on cores that others use too made a training step of cct_2_3x2 (batch 32,
    16x16 pixels) take 225 to 900 ms instead of 40 to 80 (2 shared Zen 5 cores, load 5 to 8). To sleep after 1000 turns costs
    7 % of a step on free cores, these 30000 nothing, also beside four busy processes (Xeon with AMX, November 2026).
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "30000"


def _exit_code(error):
    """The exit code for an error that is the user's to mend, or None for one that is ours."""
    from cct.data import DataError
    from cct.memory import who_is_full
    from cct.models import CheckpointError
    from cct.training.config import ConfigError
    from cct.training.run_folder import RunError
    from cct_kernels import BackendError

    if isinstance(error, RunError) or who_is_full(error) or is_full(error):
        return 1
    return 2 if isinstance(error, ConfigError | DataError | CheckpointError | BackendError) or told(error) else None


def _message(error):
    from cct.memory import who_is_full

    if (full := who_is_full(error)) is None:
        return told(error) or error
    return f"{full} has no memory left. Smaller batches or smaller images need less; so does another --device"
