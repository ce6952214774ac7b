"""The roofs that rows are set beside, measured in the same run: memory copy in GB/s and matrix products in GFLOP/s.

    python -m bench.roof [--device cpu|cuda]

A copy of n bytes counts 2 n bytes moved (n read, n written). A product (M, K) x (K, N) counts 2 M N K operations. The roof of
products is the best over several ways to ask the machine for one, as no single library is best on every CPU; on a CPU our own
micro-kernel on operands that stay in its cache is among them.
"""

import argparse
import functools
import importlib.util
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from cct_kernels import dispatch

from .timing import interleave

SIZES = {"cpu": (1024, 2048), "cuda": (4096, 8192)}  # M = N = K
ROUNDS, MIN_TIME = 5, 0.05  # samples, seconds each
HOT_PRODUCTS = 200  # in a call, a few milliseconds


@dataclass(frozen=True)
class Roof:
    """flops: operations/s and `method` the way that reached it; bytes: bytes/s of a copy of the row's size."""

    flops: float
    method: str
    bytes: float

    def share(self, seconds, flops, moved):
        """The share of the roof that a call reached: the least time that products and traffic allow, over its time."""
        return max(flops / self.flops, moved / self.bytes) / seconds


def measure(device, dtype, moved):
    """The roofs for rows of `dtype` that move about `moved` bytes, at the current number of threads.

    The products are of that type, or of float32 where a CPU is faster at those.
    """
    threads = torch.get_num_threads()
    flops, method = _products(device, dtype, threads)
    if device == "cpu" and dtype == torch.bfloat16:  # it may be multiplied in float32 too, which on some CPUs is faster
        single, way = _products(device, torch.float32, threads)
        flops, method = max((flops, method), (single, f"{way}, float32"))
    size = 1 << max(20, min(30, round(moved / 2).bit_length()))  # bytes copied, from 1 MiB to 1 GiB
    return Roof(flops, method, _copy(device, size, threads))


@functools.cache
def _copy(device, size, threads):
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    times = interleave({"copy": lambda: target.copy_(source)}, rounds=ROUNDS, min_time=MIN_TIME, device=device)
    return 2 * size / times["copy"].median


@functools.cache
def _products(device, dtype, threads):
    best = (0.0, "")
    for n in SIZES[device]:
        ways = dict(_ways(n, device, dtype, threads))
        for name, times in interleave(ways, rounds=ROUNDS, min_time=MIN_TIME, device=device).items():
            best = max(best, (2 * n**3 / times.median, f"{name} {n}"))
    if device == "cpu" and dispatch.machine_why_not("cpu") is None:
        operations = torch.ops.cct_kernels.multiply_hot(HOT_PRODUCTS, dtype == torch.bfloat16)
        call = functools.partial(torch.ops.cct_kernels.multiply_hot, HOT_PRODUCTS, dtype == torch.bfloat16)
        times = interleave({"hot": call}, rounds=ROUNDS, min_time=MIN_TIME, device=device)
        best = max(best, (operations / times["hot"].median, "own micro-kernel, hot"))
    return best


def _ways(n, device, dtype, threads):
    """(name, call) of each way to multiply two (n, n) matrices."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    yield "torch.mm", lambda: torch.mm(a, b, out=out)
    if device != "cpu":
        return
    image, weight = a.t().reshape(1, n, n, 1).contiguous(memory_format=torch.channels_last), b.reshape(n, n, 1, 1)
    yield "1x1 convolution", lambda: F.conv2d(image, weight)  # oneDNN also where mm takes another library
    multiplies = dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else packing raises
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise") and multiplies:
        packed = torch.ops.mkldnn._reorder_linear_weight(b, n)
        yield "packed linear", lambda: torch.ops.mkldnn._linear_pointwise(a, packed, None, "none", [], "")
    if dtype == torch.float32 and importlib.util.find_spec("threadpoolctl"):
        import numpy as np
        from threadpoolctl import threadpool_limits  # comes with scikit-learn

        x, y, z = a.numpy(), b.numpy(), out.numpy()

        def openblas():
            with threadpool_limits(threads, user_api="blas"):
                np.matmul(x, y, out=z)

        yield "numpy.matmul", openblas


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.roof", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    device = parser.parse_args().device
    counts = sorted({1, torch.get_num_threads()}) if device == "cpu" else [torch.get_num_threads()]
    for threads in counts:
        torch.set_num_threads(threads)
        for dtype in (torch.float32, torch.bfloat16):
            roof = measure(device, dtype, 1 << 31)
            name = str(dtype).removeprefix("torch.")
            print(
                f"{device} {threads:>3} threads {name:<9} {roof.flops / 1e9:9.0f} GFLOP/s ({roof.method})"
                f"{roof.bytes / 1e9:9.1f} GB/s copying 1 GiB"
            )


if __name__ == "__main__":
    with torch.inference_mode():
        main()
