"""`python -m cct_kernels`: which backend runs each op here, and why each other one does not."""

import argparse
import platform

import torch

from .dispatch import OPS, TABLE, machine_why_not, why_not


def lines(dtype=torch.float32):
    """The report, line by line."""
    yield f"PyTorch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}"
    if machine_why_not("cpu") is None:
        isa = torch.ops.cct_kernels.cpu_isa()
        yield f"CPU instruction set: {isa} (CCT_CPU_ISA selects another), {torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        yield f"GPU: {torch.cuda.get_device_name()}, compute capability {capability}"
    yield ""
    yield f"{'op':<21}{'device':<8}{'backend':<11}for {str(dtype).removeprefix('torch.')} tensors"
    for op in OPS:
        for device in ("cpu", "cuda"):
            if (op, device) not in TABLE:
                yield f"{op:<21}{device:<8}{'':<11}its ops run in turn"
                continue
            reasons = {backend: why_not(op, backend, device, dtype) for backend in TABLE[op, device]}
            runs = next(backend for backend, reason in reasons.items() if reason is None)
            for backend, reason in reasons.items():
                if device == "cuda" and not torch.cuda.is_available() and backend == "reference":
                    reason = "no CUDA GPU (torch.cuda.is_available() is False)"
                text = reason or ("runs" if backend == runs else "can run, slower")
                if backend == "reference" and text == "runs":
                    text = "runs (plain PyTorch: no kernel for this op and device runs here)"
                yield f"{op:<21}{device:<8}{backend:<11}{text}"


def main():
    parser = argparse.ArgumentParser(prog="python -m cct_kernels", description=__doc__)
    parser.add_argument(
        "--dtype", default="float32", choices=["float32", "bfloat16", "float16"], help="of the tensors asked about"
    )
    for line in lines(getattr(torch, parser.parse_args().dtype)):
        print(line)


if __name__ == "__main__":
    main()
