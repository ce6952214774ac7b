"""Interleaved timing: in each round every candidate runs once, so that a disturbance of the machine meets all of them."""

import statistics
import time
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Times:
    """Seconds per call: median, 20th and 80th percentile over `rounds` samples."""

    median: float
    p20: float
    p80: float
    rounds: int


def interleave(calls, *, rounds, min_time, device="cpu"):
    """{name: function without arguments} -> {name: Times}. Each sample repeats its call for at least `min_time` seconds."""
    loops = {name: _loops(call, min_time, device) for name, call in calls.items()}
    samples = {name: [] for name in calls}
    names = list(calls)
    for r in range(rounds):
        for name in names[r % len(names) :] + names[: r % len(names)]:  # nobody always comes after the same neighbour
            samples[name].append(_sample(calls[name], loops[name], device))
    return {name: summary(values) for name, values in samples.items()}


def after_rest(calls, *, rounds, min_time, device="cpu", rest=0.2):
    """As `interleave`, but each sample is one call after `rest` seconds without any: threads sleep, caches are cold."""
    del min_time  # of a sample that repeats its call
    samples = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(rest)
            samples[name].append(_sample(call, 1, device))
    return {name: summary(values) for name, values in samples.items()}


def summary(samples):
    if len(samples) == 1:
        return Times(*samples * 3, 1)
    low, *_, high = statistics.quantiles(samples, n=5, method="inclusive")
    return Times(statistics.median(samples), low, high, len(samples))


def _loops(call, min_time, device):
    """Warms up, then finds how often to repeat a call."""
    call()
    loops = 1
    while (elapsed := _sample(call, loops, device) * loops) < min_time:
        loops = max(loops + 1, min(10 * loops, int(1.2 * min_time / max(elapsed / loops, 1e-9))))
    return loops


def _sample(call, loops, device):
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(loops):
        call()
    _synchronize(device)
    return (time.perf_counter() - start) / loops


def _synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()
