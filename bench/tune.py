"""Tries other configurations of the Triton kernels on the GPU of this machine, and prints the tables anew.

    python -m bench.tune [--tables attention linear ...] [--seconds 480]

A table is a dictionary of a module of cct_kernels/triton whose keys are architectures; its leaves are tuples of block sizes,
warps and stages. For each leaf that some shape of the models uses, one number at a time is halved, doubled, or moved by one
where it is small, for as long as that makes the op faster and leaves its results the same. Nothing is written: paste what is
printed.
"""

import argparse
import datetime
import importlib
import pkgutil
import pprint
import time
from dataclasses import dataclass, field
from unittest import mock

import torch

from cct_kernels import testing

from . import gpu_timing
from .tune_jobs import Job, jobs

GAIN = 0.98  # a candidate must take less than this share of the time of the best so far
ROUNDS = 15


@dataclass
class Leaf:
    """A configuration: where it stands, and the calls that read it, of which the first times it."""

    table: str
    path: tuple
    parent: dict
    jobs: list[Job] = field(default_factory=list)

    @property
    def value(self):
        return self.parent[self.path[-1]]

    @value.setter
    def value(self, value):
        self.parent[self.path[-1]] = value

    def __str__(self):
        return f"{self.table}[{']['.join(map(repr, self.path))}]"


def tables(arch):
    """{"module.NAME": the part of the table for `arch`}, of all Triton modules."""
    from cct_kernels import triton
    from cct_kernels.triton import launch

    found = {}
    for info in pkgutil.iter_modules(triton.__path__):
        module = importlib.import_module(f"cct_kernels.triton.{info.name}")
        for name, value in vars(module).items():
            if isinstance(value, dict) and set(value) == set(launch.ARCHITECTURES) and isinstance(value[arch], dict):
                found[f"{info.name}.{name}"] = value[arch]
    return found


def leaves(table, name, path=()):
    """The leaves of a table; one that stands in two places, as a shared dictionary does, counts once."""
    found = {}
    for key, value in table.items():
        inner = leaves(value, name, (*path, key)) if isinstance(value, dict) else [Leaf(name, (*path, key), table)]
        found |= {(id(leaf.parent), leaf.path[-1]): leaf for leaf in inner}
    return list(found.values())


def assign(found, candidates, arch):
    """Give each leaf the jobs that read it; nothing is compiled or run."""
    from triton.runtime.jit import JITFunction

    values = [leaf.value for leaf in found]
    read = set()
    for i, leaf in enumerate(found):
        leaf.value = _noticing(leaf.value, lambda i=i: read.add(i))
    try:
        with mock.patch.object(JITFunction, "run", lambda *args, **options: None):
            for job in candidates:
                read.clear()
                job.dry(arch)
                for i in read:
                    found[i].jobs.append(job)
    finally:
        for leaf, value in zip(found, values, strict=True):
            leaf.value = value


def unread(candidates, arch):
    """The leaves of all tables for `arch`, by name, that none of the jobs reads."""
    found = [leaf for name, table in tables(arch).items() for leaf in leaves(table, name)]
    assign(found, candidates, arch)
    return [str(leaf) for leaf in found if not leaf.jobs]


def _noticing(value, notice):
    """The same tuple, which calls `notice` whenever it is read."""

    class Noticing(type(value)):
        def __iter__(self):
            notice()
            return super().__iter__()

        def __getattribute__(self, name):
            notice()
            return super().__getattribute__(name)

    return tuple.__new__(Noticing, value)


def neighbours(value):
    """Configurations that differ from `value` in one number. Those that make no sense fail to compile and are passed over."""
    make = getattr(value, "_make", tuple)
    for i, number in enumerate(value):
        near = {2 * number, number // 2} | ({number - 1, number + 1} if number <= 4 else set())
        for other in sorted(near - {0, number}):
            yield make((*value[:i], other, *value[i + 1 :]))


def search(start, seconds, deadline=float("inf"), clock=time.monotonic):
    """(best, its seconds, those of start), downhill from `start`; seconds([configuration, ...]) -> times, inf for a failure."""
    best, tried, times = start, {start}, None
    while clock() < deadline:
        candidates = [c for c in neighbours(best) if c not in tried]
        tried.update(candidates)
        moved = False
        for candidate in candidates:
            if clock() >= deadline:
                break
            current, other = seconds([best, candidate])
            times = times or (current, current)
            times = (times[0], current)
            if other < GAIN * current:
                best, times, moved = candidate, (times[0], other), True
        if not moved:
            break
    before, after = times or (float("nan"),) * 2
    return best, after, before


class Call:
    """Forward and backward of a job, and what they give with the configuration of now."""

    def __init__(self, job):
        self.dtype = job.dtype
        self.tensors, self.op = job.make()
        self.dout = torch.randn_like(self.op(**self.tensors))
        self.results = self()

    def __call__(self):
        return testing.run(self.op, self.tensors, {}, self.dout)

    def same(self, found):
        scale = {name: value.float().abs().max().item() for name, value in self.results.items()}
        tolerance = 16 * torch.finfo(self.dtype).eps
        return all(
            torch.allclose(found[n].float(), value.float(), rtol=tolerance, atol=tolerance * scale[n], equal_nan=True)
            for n, value in self.results.items()
        )


class Timer:
    """Times configurations of a leaf by the first of its jobs on the GPU, and refuses those that fail or give other results:
    there, and in the first job with dropout, whose masks take whole groups of 64 columns."""

    def __init__(self, leaf):
        self.leaf = leaf
        with_dropout = [job for job in leaf.jobs[1:] if job.dropout and not leaf.jobs[0].dropout]
        self.calls = [Call(job) for job in (leaf.jobs[0], *with_dropout[:1])]

    def __call__(self, configurations):
        calls, times, original = {}, [float("inf")] * len(configurations), self.leaf.value
        first = self.calls[0]
        try:
            for i, configuration in enumerate(configurations):
                self.leaf.value = configuration
                if self._right():
                    calls[i] = lambda c=configuration: (setattr(self.leaf, "value", c), first())
            found = gpu_timing.cold(calls, rounds=ROUNDS, min_time=0.0, device=first.dout.device.type) if calls else {}
        finally:
            self.leaf.value = original
        for i, result in found.items():
            times[i] = result.median
        return times

    def _right(self):
        try:
            found = [call() for call in self.calls]
            if self.calls[0].dout.is_cuda:
                torch.cuda.synchronize()
        except Exception as error:  # too much shared memory, no such layout, ...: not a configuration for this GPU
            print(f"    {self.leaf.value}: {type(error).__name__}", flush=True)
            return False
        return all(call.same(results) for call, results in zip(self.calls, found, strict=True))


def text(name, arch, table, note):
    """A table as a Python literal, with where and when it was found."""
    literal = pprint.pformat(table, width=120, sort_dicts=False)
    return f"# {note}\n# {name}[{arch!r}]:\n{literal}\n"


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.tune", description=__doc__.splitlines()[0])
    parser.add_argument("--tables", nargs="*", help="only these: attention, linear.CONFIGS, ...")
    parser.add_argument("--seconds", type=float, default=480.0, help="start nothing new after this time (480)")
    parser.add_argument("--batch", type=int, default=256, help="images in a batch (256)")
    args = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU (torch.cuda.is_available() is False): configurations can only be timed on one")
    from cct_kernels.triton import launch

    deadline, device = time.monotonic() + args.seconds, torch.device("cuda", torch.cuda.current_device())
    arch = launch.architecture(device)
    chosen = {n: t for n, t in tables(arch).items() if not args.tables or {n, n.split(".")[0]} & set(args.tables)}
    if not chosen:
        parser.error(f"no such table; there are {', '.join(tables(arch))}")
    found = [leaf for name, table in chosen.items() for leaf in leaves(table, name)]
    assign(found, jobs(args.batch), arch)
    for leaf in found:
        if not leaf.jobs:
            print(f"{leaf}: no shape of the models reads it")
            continue
        if time.monotonic() > deadline:
            print(f"{leaf}: no time left")
            continue
        before = leaf.value
        leaf.value, after_s, before_s = search(before, Timer(leaf), deadline)
        print(
            f"{leaf} by {leaf.jobs[0].name}: {before} {before_s * 1e6:.1f} us -> {leaf.value} {after_s * 1e6:.1f} us",
            flush=True,
        )
    note = f"tuned on {torch.cuda.get_device_name(device)}, {datetime.date.today()}, batch {args.batch}"
    for name, table in chosen.items():
        print("\n" + text(name, arch, table, note))


if __name__ == "__main__":
    main()
