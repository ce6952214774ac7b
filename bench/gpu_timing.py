"""Times of GPU calls, in interleaved rounds: events with a cold L2 cache, or the wall clock of single calls with a warm one."""

import time

import torch

from . import timing

L2_BYTES = 256 << 20  # written before each sample: more than the L2 cache of any GPU so far
WARM = 3


def cold(calls, *, rounds, min_time, device):
    """{name: call} -> {name: Times}: the GPU's own time between two events around one call, the L2 cache overwritten before.

    The launches of a call run ahead while the cache is overwritten, so a call is charged for them only where it launches more
    than the GPU has to do. min_time: as in `timing.interleave`, which serves CPU calls.
    """
    if device != "cuda":
        return timing.interleave(calls, rounds=rounds, min_time=min_time, device=device)
    cache = torch.empty(L2_BYTES, dtype=torch.uint8, device=device)
    _warm(calls)
    events = {name: [] for name in calls}
    for name in _order(list(calls), rounds):
        pair = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        cache.zero_()
        pair[0].record()
        calls[name]()
        pair[1].record()
        events[name].append(pair)
    torch.cuda.synchronize()
    return {name: timing.summary([a.elapsed_time(b) / 1e3 for a, b in pairs]) for name, pairs in events.items()}


def latency(calls, *, rounds, min_time, device):
    """{name: call} -> {name: Times}: from the call to its result being there, by the wall clock, each call alone."""
    _warm(calls)
    samples = {name: [] for name in calls}
    for name in _order(list(calls), 10 * rounds):
        _synchronize(device)
        start = time.perf_counter()
        calls[name]()
        _synchronize(device)
        samples[name].append(time.perf_counter() - start)
    return {name: timing.summary(values) for name, values in samples.items()}


def _warm(calls):
    for call in calls.values():
        for _ in range(WARM):
            call()


def _order(names, rounds):
    """Each name once a round, and nobody always after the same neighbour."""
    for r in range(rounds):
        first = r % len(names)
        yield from names[first:] + names[:first]


def _synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()
