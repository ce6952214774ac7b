"""Where the time of our forward pass and training step goes, kernel by kernel: `python -m bench.gpu_profile [--tiny]`.

Prints each kernel's launches and microseconds a step, the longest first, and beside the sum the least time that
`cct.reports.roofline` gives: what falls short, and by how much, is the place to look at with ncu.
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from cct.reports import roofline
from cct_kernels import dispatch

from . import gpu_peers
from .gpu_bench import BF16, Bench
from .test_models import images

STEPS = 3
LINES = 30


def kernels(call, device):
    """[(name, launches, microseconds)] of one call, the longest first; of a CPU the operators instead."""
    activities = [ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device == "cuda")]
    with profile(activities=activities) as profiler:
        for _ in range(STEPS):
            call()
        if device == "cuda":
            torch.cuda.synchronize()
    rows = []
    for event in profiler.key_averages():
        on_gpu = event.device_type == torch.autograd.DeviceType.CUDA
        if on_gpu == (device == "cuda"):
            spent = event.self_device_time_total if on_gpu else event.self_cpu_time_total
            rows.append((event.key, event.count / STEPS, spent / STEPS))
    return sorted(rows, key=lambda row: -row[2])


def show(title, rows, bound):
    """The rows as text, those after the first LINES as one; bound: milliseconds."""
    total = sum(spent for *_, spent in rows)
    launches = sum(count for _, count, _ in rows)
    print(f"{title}: {total / 1e3:.3f} ms in {launches:.0f} launches; the roofline allows {bound:.3f} ms")
    head, tail = rows[:LINES], rows[LINES:]
    if tail:
        head = [*head, (f"{len(tail)} more", sum(count for _, count, _ in tail), sum(spent for *_, spent in tail))]
    for name, count, spent in head:
        print(f"  {spent:10.1f} us {spent / total:6.1%} {count:7.1f} x  {name[:90]}")


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_profile", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    bench = Bench(args.device, args.tiny, None)
    batch, model = bench.sizes["batch"], bench.model()
    x, labels = images(model, batch, args.device)
    way = "encoder" if dispatch.why_not("encoder", "triton", args.device, BF16) is None else "ops"
    found = roofline.report(model, batch=batch)
    step = gpu_peers.Training("ours eager", bench.model().train(), x, labels, BF16)
    forward = gpu_peers.inference("ours eager", bench.model().eval().to(BF16), x.to(BF16))
    for title, call, direction in (("inference", forward, "forward"), ("training", step, "training")):
        for _ in range(3):
            call()
        bound = found[direction][way]["total"].milliseconds
        show(f"{title} {bench.what} batch {batch}", kernels(call, args.device), bound)


if __name__ == "__main__":
    main()
