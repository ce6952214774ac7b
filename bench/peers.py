"""Who is timed: our own code first, then everything else that computes the same thing. Each peer is optional.

A builder returns a function, or raises `Missing` with the reason why its peer cannot take part; the reason is printed.
"""

import importlib.util
import logging
import tempfile
from pathlib import Path

import torch

import cct_kernels
from cct.models import create_model
from cct.reports.machine import machine
from cct_kernels import reference

from .published import Published

SLOW = {"max-autotune"}  # compile for minutes: only in some rows, or when asked for by name


class Missing(Exception):
    """A peer that cannot take part; the message says why."""


def need(package, install=None):
    if importlib.util.find_spec(package) is None:
        raise Missing(f"not installed (pip install {install or package})")


def autocast(device, dtype):
    return torch.autocast(device, dtype, enabled=dtype != torch.float32)


# ---- ops: builder(op name) -> function(**tensors, **options) ----

OPS = {
    "ours": lambda op: getattr(cct_kernels, op),
    "eager": lambda op: getattr(reference, op),
    "compile": lambda op: torch.compile(getattr(reference, op), dynamic=False),
    "max-autotune": lambda op: torch.compile(getattr(reference, op), dynamic=False, mode="max-autotune"),
}

# ---- modules for training: builder(model with fused=False) -> module on the same parameters ----


def ours(model):
    config = model.config
    fused = create_model(config["name"], **config["kwargs"], fused=True).train(model.training)
    fused.load_state_dict(model.state_dict())
    return fused.to(next(model.parameters()).device)


MODULES = {
    "ours": ours,
    "unfused": lambda model: model,
    "published": Published,
    "published+sdpa": lambda model: Published(model, sdpa=True),
    "compile": lambda model: torch.compile(Published(model), dynamic=False),
    "max-autotune": lambda model: torch.compile(Published(model), dynamic=False, mode="max-autotune"),
}

# ---- inference: builder(model with fused=False, x, dtype, threads) -> function() -> logits ----


def _module(build):
    def builder(model, x, dtype, threads):
        module = build(model)

        @torch.inference_mode()
        def call():
            with autocast(x.device.type, dtype):
                return module(x)

        return call

    return builder


def _compiled(mode):
    def build(model):
        options = dict(torch._inductor.list_mode_options(mode)) if mode else {}
        return torch.compile(Published(model), dynamic=False, options=options | {"freezing": True})  # weights packed once

    return _module(build)


def _zentorch(model, x, dtype, threads):
    _cpu_only(x)
    need("zentorch", "zentorch=={}.*".format(torch.__version__.split("+")[0]))
    if "avx512f" not in machine()["features"]:
        raise Missing("optimises on CPUs with AVX-512 only; elsewhere it is torch.compile")
    import zentorch  # noqa: F401  (registers the backend)

    call = _module(lambda model: torch.compile(Published(model), dynamic=False, backend="zentorch"))(model, x, dtype, threads)
    with torch._inductor.config.patch(freezing=True, joint_custom_post_pass=None):  # it leaves its pass there for everybody
        call()
    return call


def _onnx_file(model, x, folder):
    need("onnxscript")
    path = Path(folder) / "model.onnx"
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    torch.onnx.export(Published(model), (x,), str(path), dynamo=True, verbose=False)
    return str(path)


def _cpu_only(x):
    if x.device.type != "cpu":
        raise Missing("timed on the CPU only")


def _onnxruntime(model, x, dtype, threads):
    _cpu_only(x)
    need("onnxruntime")
    if dtype != torch.float32:
        raise Missing("has no bfloat16 kernels on the CPU")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        session = onnxruntime.InferenceSession(_onnx_file(model, x, folder), options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x.numpy()}
    return lambda: torch.from_numpy(session.run(None, feed)[0])


def _openvino(model, x, dtype, threads):
    _cpu_only(x)
    need("openvino")
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",  # all threads work on the one request
    }
    core = openvino.Core()
    with tempfile.TemporaryDirectory() as folder:
        compiled = core.compile_model(core.read_model(_onnx_file(model, x, folder)), "CPU", settings)
    request, tensor = compiled.create_infer_request(), openvino.Tensor(x.numpy(), shared_memory=True)
    return lambda: torch.from_numpy(request.infer([tensor])[0])


INFERENCE = {
    **{name: _module(MODULES[name]) for name in ("ours", "unfused", "published", "published+sdpa")},
    "compile": _compiled(None),
    "max-autotune": _compiled("max-autotune"),
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "zentorch": _zentorch,
}
