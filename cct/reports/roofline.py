"""How long a model must take on a machine: `traffic.kernels` against bandwidth and rate.

A kernel takes at least bytes / bandwidth and operations / rate, whichever is longer, and at least LAUNCH seconds; times are
sums of these. They are bounds, not predictions: real kernels reach 60 to 90 % of one of them.
"""

from typing import NamedTuple

from .traffic import LAUNCH, WAYS, kernels

BATCH = 1024
WHERE = (
    "`encoder` in 16 bits for models of at most 256 channels on Hopper and Blackwell (H100, H200, B200); elsewhere `ops`, "
    "whose LayerNorm and MLP are one kernel in 16 bits up to 256 channels, in backward up to 128 to 256 by GPU"
)


class Device(NamedTuple):
    """Dense bfloat16 and float32 operations/s (no sparsity), bytes/s, and where that is written."""

    bfloat16: float
    float32: float
    bytes: float
    source: str


DEVICES = {
    "H200": Device(989e12, 67e12, 4.8e12, "NVIDIA H200 data sheet (SXM)"),
    "H100": Device(989e12, 67e12, 3.35e12, "NVIDIA H100 data sheet (SXM)"),
    "A100": Device(312e12, 19.5e12, 2.039e12, "NVIDIA A100 data sheet (SXM, 80 GB)"),
    "L40S": Device(362e12, 91.6e12, 0.864e12, "NVIDIA L40S data sheet"),
    "L4": Device(121e12, 30.3e12, 0.3e12, "NVIDIA L4 data sheet"),
    "RTX 4090": Device(165.2e12, 82.6e12, 1.008e12, "NVIDIA Ada GPU architecture paper (float32 sums)"),
    "RTX 3090": Device(71e12, 35.6e12, 0.936e12, "NVIDIA GA102 architecture paper (float32 sums)"),
}


class Total(NamedTuple):
    """Of one image: megabytes and GFLOP; of one batch: launches, least milliseconds."""

    megabytes: float
    gflop: float
    launches: int
    milliseconds: float


def seconds(kernel, device, rate, batch):
    """The least time of a kernel for a batch, on a device whose products run at `rate` operations/s."""
    moved = kernel.bytes * batch + kernel.weights
    return max(moved / device.bytes, kernel.flops * batch / rate, kernel.launches * LAUNCH)


def total(some, device, rate, batch):
    """The sum over kernels, weights shared out over the batch."""
    return Total(
        sum(k.bytes + k.weights / batch for k in some) / 1e6, sum(k.flops for k in some) / 1e9,
        sum(k.launches for k in some), 1e3 * sum(seconds(k, device, rate, batch) for k in some),
    )  # fmt: skip


def report(model, device=None, dtype="bfloat16", batch=BATCH):
    """{"forward" or "training": {way: {part: Total}}}, with the part "total" last.

    device: a Device or None for the H200. dtype: "bfloat16" or "float32".
    """
    device, itemsize = device or DEVICES["H200"], {"bfloat16": 2, "float32": 4}[dtype]
    rate, result = getattr(device, dtype), {}
    for direction, training in (("forward", False), ("training", True)):
        for way in WAYS:
            parts = {}
            for kernel in (every := kernels(model, way, training, itemsize)):
                parts.setdefault(kernel.part, []).append(kernel)
            totals = {part: total(some, device, rate, batch) for part, some in parts.items()}
            result.setdefault(direction, {})[way] = {**totals, "total": total(every, device, rate, batch)}
    return result


def tables(found, batch):
    """A rich table for each direction of a `report`: parts down, ways across; layers that are alike share a line."""
    from rich.table import Table

    for direction, ways in found.items():
        table = Table(title=f"{direction}, batch {batch}: MB an image / launches / least ms a batch")
        table.add_column("part")
        for way in ways:
            table.add_column(way, justify="right")
        for part, totals in _alike(ways):
            cells = (f"{t.megabytes:.3g} / {t.launches} / {t.milliseconds:.3g}" for t in totals)
            table.add_row(part, *cells, end_section=part == "optimizer" or (direction == "forward" and "head" in part))
        most = (batch / ways[way]["total"].milliseconds * 1e3 for way in ways)
        table.add_row("images/s at most", *(f"{rate:,.0f}" for rate in most))
        yield table


def _alike(ways):
    """(part, its Total for each way) with layers "2" to "6" as one line "each of layers 2-6"."""
    lines = []
    for part in next(iter(ways.values())):
        totals = [parts[part] for parts in ways.values()]
        if lines and part.startswith("layer") and lines[-1][1] == totals:
            lines[-1][0].append(part)
        else:
            lines.append(([part], totals))
    for parts, totals in lines:
        numbers = f"{parts[0].split()[-1]}-{parts[-1].split()[-1]}"
        yield (parts[0] if len(parts) == 1 else f"each of layers {numbers}"), totals


def parse_device(text):
    """A Device by its name, or from TFLOPS:GBS, operations/s in 10^12 and bytes/s in 10^9 as `python -m bench.roof` prints."""
    for name, device in DEVICES.items():
        if name.lower().replace(" ", "") == text.lower().replace(" ", ""):
            return device
    try:
        rate, bandwidth = (float(number) for number in text.split(":"))
    except ValueError:
        rate = bandwidth = 0.0
    if not (0 < rate < 1e6 and 0 < bandwidth < 1e6):
        raise ValueError(f"device: got {text!r}, expected one of {', '.join(DEVICES)}, or TFLOP/s:GB/s as in 1.01:32")
    return Device(rate * 1e12, rate * 1e12, bandwidth * 1e9, "as given")
