"""Compiles what an op would launch, for a GPU that need not be here.

    for launched in compiled("sm_90", case, torch.bfloat16):
        print(launched.kernel.name, resources(launched.kernel))

The op runs forward and backward on meta tensors, and each of its launches becomes a compilation with exactly the constants, the
divisibility attributes and the options it would have on that GPU.
"""

import contextlib
import math
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

import cct_kernels

from .. import dispatch, testing
from ..encoder import Block, encoder
from . import launch, load


class _Driver:
    """Stands where triton expects the driver of a GPU; answers what a compilation asks."""

    def __init__(self, arch):
        self.arch = arch

    def get_current_device(self):
        return self.arch  # the key of triton's cache of compiled kernels

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", int(self.arch.removeprefix("sm_")), 32)


class Launch(NamedTuple):
    """A compiled kernel, how many programs a launch of it has, and the bytes of the tensors it is given, each counted once."""

    kernel: triton.compiler.CompiledKernel
    programs: int
    bytes: int


def compiled(arch, case, dtype, autocast=None, backward=True):
    """The launches of distinct kernels that a case of testing.py makes on `arch`, in order.

    autocast: the dtype of torch.autocast around the call, or None.
    """

    def op(**arguments):
        return getattr(cct_kernels, case.op)(**arguments, backend="triton")

    with _compiling(arch, case.op, autocast) as launches:
        tensors = testing.make_inputs(case, dtype, "meta")
        out = op(**tensors, **case.options)
        if backward:
            testing.run(op, tensors, case.options, torch.empty_like(out))
    return launches


def compiled_encoder(arch, dtype, B, N, C, F, num_heads, dropout=0.0, attn_dropout=0.0, drop_path=False, backward=True):
    """As `compiled`, of an encoder of three blocks: the first, one between and the last."""
    sizes = [(C,), (C,), (3 * C, C), (C, C), (C,), (C,), (C,), (F, C), (F,), (C, F), (C,)]
    blocks = [Block(*(torch.empty(size, dtype=dtype, device="meta") for size in sizes)) for _ in range(3)]
    x = torch.empty(B, N, C, dtype=dtype, device="meta", requires_grad=backward)
    options = {"num_heads": num_heads, "dropout": dropout, "attn_dropout": attn_dropout}
    if drop_path:
        options["drop_path_scales"] = torch.empty(3, 2, B, dtype=dtype, device="meta")
    if dropout or attn_dropout:
        options["seed"] = torch.empty(2, dtype=torch.int64, device="meta")
    with _compiling(arch, "encoder") as launches:
        for parameter in (t for block in blocks for t in block):
            parameter.requires_grad_(backward)
        out = encoder(x, blocks, **options, backend="triton")
        if backward:
            out.backward(torch.empty_like(out))
    return launches


@contextlib.contextmanager
def _compiling(arch, op, autocast=None):
    """Within it `op` runs on meta tensors; each new kernel joins the list that it gives."""
    load()
    launches = []

    def compile_instead(self, grid):
        def call(*args, **options):
            kernel = self.run(*args, grid=grid, warmup=True, **options)
            if all(kernel is not other.kernel for other in launches):
                tensors = {id(t): t.numel() * t.element_size() for t in args if isinstance(t, torch.Tensor)}
                launches.append(Launch(kernel, math.prod(grid), sum(tensors.values())))

        return call

    with contextlib.ExitStack() as stack:

        def replace(target, name, value):
            stack.callback(setattr, target, name, getattr(target, name))
            setattr(target, name, value)

        replace(JITFunction, "__getitem__", compile_instead)
        replace(triton.runtime.driver, "_active", _Driver(arch))
        replace(launch, "architecture", lambda device: arch)
        replace(launch, "LAUNCH_ON_META", True)
        replace(torch, "is_autocast_enabled", lambda device: autocast is not None)  # the real one does not know "meta"
        replace(torch, "get_autocast_dtype", lambda device: autocast)
        replace(dispatch, "machine_why_not", lambda backend: None)
        replace(dispatch, "TABLE", dispatch.TABLE | {(op, "meta"): ("triton",)})
        yield launches


def resources(kernel):
    """registers, stack and local memory (bytes a thread; spills lie there) and shared memory (bytes a program) of a kernel."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(kernel.asm["cubin"])
        text = subprocess.run([tool, "--dump-resource-usage", path], check=True, capture_output=True, text=True).stdout
    used = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", text))
    return {
        "registers": int(used["REG"]),
        "stack": int(used["STACK"]),
        "local": int(used["LOCAL"]),
        "shared": kernel.metadata.shared,
        "warps": kernel.metadata.num_warps,
    }
