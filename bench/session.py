"""One run of benchmarks: what was asked for on the command line, and how a row is built, checked, timed and kept."""

import dataclasses
import time

import pytest
import torch

from . import record, roof
from .peers import SLOW, Missing
from .timing import interleave

PEER_FACTOR = 10  # a peer may be this much less accurate than the rule allows us, and no more


class Session:
    def __init__(self, *, rounds, min_time, threads, peers, folder, timer=interleave, resume=False, minutes=None):
        self.rounds, self.min_time, self.threads, self.folder, self.timer = rounds, min_time, threads, folder, timer
        self.chosen, self.rows, self.minutes, self.start = peers, [], minutes, time.monotonic()
        self.recorded = record.of_this_commit(folder) if resume and folder else []
        torch.set_num_threads(threads)

    def begin(self, key, names):
        """Skips the row when --resume finds it with all these peers, or when --minutes are over."""
        same = {**key, "threads": self.threads}.items()
        wanted = {name for name in names if self.wants(name)}
        if any(same <= row.items() and wanted <= _answered(row) for row in self.recorded):
            pytest.skip("recorded")
        if self.minutes is not None and time.monotonic() - self.start > 60 * self.minutes:
            pytest.skip(f"after {self.minutes:g} minutes; go on with --resume")

    def wants(self, name):
        return name == "ours" or not self.chosen or name in self.chosen

    def row(self, key, builders, check, *, flops, moved, slow=False, timer=None, **more):
        """builders: {peer: function() -> call}; check(peer, call) raises when its result is wrong. Ours must pass.

        slow: also with the peers that compile for minutes. timer: another way to time than this session's.
        """
        calls, missing = {}, {}
        for name, build in builders.items():
            if not self.wants(name):
                missing[name] = record.NOT_ASKED
                continue
            if name in SLOW and not slow and name not in self.chosen:
                missing[name] = f"compiles for minutes: not in this row but with --peers {name}"
                continue
            try:
                call = build()
                check(name, call)
                calls[name] = call
            except Missing as reason:
                missing[name] = str(reason)
            except Exception as error:
                if name == "ours":
                    raise
                missing[name] = "left out: " + (str(error).strip().splitlines() or [repr(error)])[0][:200]
        device = key["device"]
        times = (timer or self.timer)(calls, rounds=self.rounds, min_time=self.min_time, device=device)
        measured = roof.measure(device, getattr(torch, key["dtype"]), moved)
        peers = {name: dataclasses.asdict(t) for name, t in times.items()}
        key = {**key, "threads": self.threads}
        work = {"flops": flops, "bytes": moved}
        self.keep(record.make(key, peers, missing, work=work, roof=dataclasses.asdict(measured), **more))
        torch._dynamo.reset()

    def keep(self, row):
        self.rows.append(row)
        if self.folder is not None:
            record.append(row, self.folder)


def _answered(row):
    """The peers that a row has a time or a reason for."""
    return {*row["peers"], *(name for name, reason in row["missing"].items() if reason != record.NOT_ASKED)}
