"""Which backend runs an op: one literal table, and the reasons why a backend cannot."""

import functools

import torch

# (op, device) -> backends, fastest first. `reference` is plain PyTorch and always runs.
TABLE = {
    ("compact_transformer", "cpu"): ("cpu", "reference"),  # elsewhere its ops in turn
    ("conv_tokenizer", "cpu"): ("cpu", "reference"),
    ("conv_tokenizer", "cuda"): ("triton", "reference"),
    ("encoder", "cpu"): ("cpu", "reference"),
    ("layernorm_attention", "cpu"): ("cpu", "reference"),
    ("layernorm_attention", "cuda"): ("triton", "reference"),
    ("layernorm_mlp", "cpu"): ("cpu", "reference"),
    ("layernorm_mlp", "cuda"): ("triton", "reference"),
    ("encoder", "cuda"): ("triton", "reference"),
    ("seqpool", "cpu"): ("cpu", "reference"),
    ("seqpool", "cuda"): ("cuda", "triton", "reference"),
}
OPS = tuple(dict.fromkeys(op for op, _ in TABLE))
BACKENDS = ("cpu", "cuda", "triton", "reference")
DTYPES = {
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.float16, torch.bfloat16),
    "triton": (torch.float32, torch.float16, torch.bfloat16),
}


class BackendError(RuntimeError):
    """A backend asked for by name cannot run; the message says why."""


@functools.cache
def machine_why_not(backend):
    """Why the backend cannot run on this machine at all, or None."""
    if backend == "reference":
        return None
    if backend == "triton":
        from . import triton

        return triton.why_not()
    from . import native

    return native.why_not(backend)


def why_not(op, backend, device, dtype):
    """Why `backend` cannot run `op` on tensors of this device type and dtype, or None."""
    if backend == "reference":
        return None
    if not any(backend in backends for (name, _), backends in TABLE.items() if name == op):
        return "no kernel yet"
    if backend not in TABLE.get((op, device), ()):
        return f"does not run on {device} tensors"
    if dtype not in DTYPES[backend]:
        return f"does not compute in {_name(dtype)}; it does in {', '.join(map(_name, DTYPES[backend]))}"
    return machine_why_not(backend) or (None if backend == "triton" else _missing(op, backend))


def _missing(op, backend):
    from . import native

    return native.missing(op, backend)


def choose(op, x, backend=None):
    """The backend that runs `op` on `x`.

    backend: None takes the fastest that can run; "fused" the fastest that is not plain PyTorch, or raises; a name runs or
    raises. Exporting (torch.export, ONNX) takes the reference, so that the graph holds standard operators only.
    """
    if not isinstance(backend, (str, type(None))):
        raise ValueError(f"{op}: backend is {backend!r}; expected None, 'fused' or one of {', '.join(BACKENDS)}")
    if backend is None and exporting():
        return "reference"
    return _constant_choice(op, x.device.type, x.dtype, backend)


def _constant_choice(op, device, dtype, backend):
    return _choice(op, device, dtype, backend)  # torch.compile takes the answer and does not trace the search


def exporting():
    """Whether torch.export or ONNX tracing is at work. Traced by torch.compile, is_exporting() is true in PyTorch 2.11."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


# What torch.compiler.assume_constant_result sets; calling it would import torch._dynamo, which takes over a second.
_constant_choice._dynamo_marked_constant = exporting._dynamo_marked_constant = True


@functools.cache
def _choice(op, device, dtype, backend):
    if backend is None or backend == "fused":
        for candidate in TABLE.get((op, device), ("reference",)):
            if (candidate != "reference" or backend is None) and why_not(op, candidate, device, dtype) is None:
                return candidate
        reasons = "; ".join(f"{name}: {why_not(op, name, device, dtype)}" for name in BACKENDS if name != "reference")
        raise BackendError(f"{op}: no fused backend runs here ({reasons}); use backend=None to allow plain PyTorch")
    if backend not in BACKENDS:
        raise ValueError(f"{op}: backend is {backend!r}; expected None, 'fused' or one of {', '.join(BACKENDS)}")
    reason = why_not(op, backend, device, dtype)
    if reason is None:
        return backend
    if reason.startswith("does not"):
        raise ValueError(f"{op}: backend {backend!r} {reason}")
    raise BackendError(f"{op}: backend {backend!r} cannot run: {reason}")


def report(device="cpu", dtype=torch.float32):
    """One row for each op: (op, backend that runs, {other backend: why not})."""
    rows = []
    for op in OPS:
        if op == "compact_transformer" and (op, device) not in TABLE:
            continue  # its ops run in turn, and have rows of their own
        reasons = {b: why_not(op, b, device, dtype) for b in BACKENDS}
        runs = [b for b in TABLE.get((op, device), ("reference",)) if reasons[b] is None]
        rows.append((op, runs[0], {b: r for b, r in reasons.items() if r is not None}))
    return rows


def _name(dtype):
    return str(dtype).removeprefix("torch.")
