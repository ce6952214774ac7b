"""Every op on small tensors, forward and backward, on each of its CUDA backends: what bench/gpu.sh gives to compute-sanitizer.

    compute-sanitizer --tool memcheck python -m bench.gpu_small [--device cpu] [--seconds 60]

Nothing is compared here; the caching allocator should be off (PYTORCH_NO_CUDA_MEMORY_CACHING=1), so that each tensor ends
where its allocation ends.
"""

import argparse
import time

import torch

import cct_kernels
from cct_kernels import dispatch
from cct_kernels.testing import CASES, make_inputs, run

from . import gpu_encoder

LARGEST = 40_000  # elements of x


def calls(device):
    """(name, function) of each small case, backend and dtype; odd sizes first."""
    small = [case for case in CASES if torch.Size(case.shapes["x"]).numel() <= LARGEST]
    for case in sorted(small, key=lambda case: not any(s % 16 for s in case.shapes["x"])):
        for backend in dispatch.TABLE.get((case.op, device), ()):
            for dtype in (torch.bfloat16, torch.float32):
                if backend == "reference" or dispatch.why_not(case.op, backend, device, dtype):
                    continue
                yield f"{case} {backend} {str(dtype)[6:]}", lambda c=case, b=backend, d=dtype: _run(c, b, d, device)

    if ("encoder", device) in dispatch.TABLE and not dispatch.why_not("encoder", "triton", device, torch.bfloat16):
        for rates in ({"drop_path": True}, {"attn_dropout": 0.1, "dropout": 0.1}):
            # Many rows, or the encoder runs op by op; no size a power of two.
            tensors, op = gpu_encoder.call((33, 40, 50, 2, 2), 264, device, backend="triton", **rates)
            yield f"encoder {' '.join(rates)}", lambda t=tensors, f=op: run(f, t, {}, torch.ones_like(t["x"]))


def _run(case, backend, dtype, device):
    tensors = make_inputs(case, dtype, device)

    def op(**arguments):
        return getattr(cct_kernels, case.op)(**arguments, backend=backend)

    out = op(**tensors, **case.options)
    run(op, tensors, case.options, torch.ones_like(out))


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_small", description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--seconds", type=float, default=60.0, help="start no further case after this time (60)")
    args = parser.parse_args()
    began, done, every = time.monotonic(), 0, list(calls(args.device))
    for name, call in every:
        if time.monotonic() - began > args.seconds:
            break
        call()
        done += 1
        print(name, flush=True)
    if args.device == "cuda":
        torch.cuda.synchronize()
    print(f"{done} of {len(every)} cases")


if __name__ == "__main__":
    main()
