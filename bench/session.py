"""One run of benchmarks: what was asked for on the command line, and how a row is built, checked, timed and kept."""

import dataclasses

import torch

from . import record, roof
from .peers import Missing
from .timing import interleave

PEER_FACTOR = 10  # a peer may be this much less accurate than the rule allows us, and no more


class Session:
    def __init__(self, *, rounds, min_time, threads, peers, folder, timer=interleave):
        self.rounds, self.min_time, self.threads, self.folder, self.timer = rounds, min_time, threads, folder, timer
        self.chosen, self.rows = peers, []
        torch.set_num_threads(threads)

    def wants(self, name):
        return name == "ours" or not self.chosen or name in self.chosen

    def row(self, key, builders, check, *, flops, moved, **more):
        """builders: {peer: function() -> call}; check(peer, call) raises when its result is wrong. Ours must pass."""
        calls, missing = {}, {}
        for name, build in builders.items():
            if not self.wants(name):
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
        times = self.timer(calls, rounds=self.rounds, min_time=self.min_time, device=device)
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
