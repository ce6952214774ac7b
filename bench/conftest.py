"""`pytest bench/ --benchmark`: without the flag every benchmark is skipped."""

from pathlib import Path

import pytest
import torch

from . import record
from .session import Session


def pytest_addoption(parser):
    group = parser.getgroup("cct benchmarks")
    group.addoption("--benchmark", action="store_true", help="run the benchmarks (else they are skipped)")
    group.addoption("--rounds", type=int, default=15, help="interleaved samples of each peer (15)")
    group.addoption("--min-time", type=float, default=0.1, help="seconds of one sample at least (0.1)")
    group.addoption("--threads", type=int, default=torch.get_num_threads(), help="CPU threads (those of PyTorch)")
    group.addoption(
        "--peers", default="",
        help="only these, with commas, beside ours: eager,compile,openvino,...; unnamed, max-autotune, slow to compile, "
        "is in the rows of CCT-7/3x1 at batch 64 and CCT-2/3x2 training at batch 128 only",
    )  # fmt: skip
    group.addoption("--resume", action="store_true", help="skip the rows recorded here at this commit with all wanted peers")
    group.addoption("--minutes", type=float, help="begin no row after so many minutes; go on with --resume")
    group.addoption("--results", type=Path, default=record.RESULTS, help="folder of the JSON lines (bench/results)")
    group.addoption("--dry-run", action="store_true", help="keep no results")


def pytest_collection_modifyitems(config, items):
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if not config.getoption("--benchmark"):
            item.add_marker(pytest.mark.skip(reason="a benchmark: pass --benchmark"))
        elif _is_emulated(**_params(item)):
            reason = "this CPU multiplies no bfloat16, and PyTorch emulates it at about 1 GFLOP/s: minutes a call"
            item.add_marker(pytest.mark.skip(reason=reason))


def _params(item):
    return item.callspec.params if hasattr(item, "callspec") else {}


def _is_emulated(device="cpu", dtype="", **_):
    return device == "cpu" and str(dtype).endswith("bfloat16") and not torch.ops.mkldnn._is_mkldnn_bf16_supported()


_SESSION = pytest.StashKey()


@pytest.fixture(scope="session")
def bench(pytestconfig):
    option = pytestconfig.getoption
    session = Session(
        rounds=option("--rounds"),
        min_time=option("--min-time"),
        threads=option("--threads"),
        peers=[name for name in option("--peers").split(",") if name],
        folder=None if option("--dry-run") else option("--results"),
        resume=option("--resume"),
        minutes=option("--minutes"),
    )
    pytestconfig.stash[_SESSION] = session
    return session


def pytest_terminal_summary(terminalreporter, config):
    session = config.stash.get(_SESSION, None)
    for row in session.rows if session else ():
        for line in record.lines(row):
            terminalreporter.write_line(line)
