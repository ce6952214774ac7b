"""What every Triton launcher shares: the row of its configuration table, its operator, its device."""

import functools

import torch
import triton

from . import interpreted

# Rows of the configuration tables. A GPU takes the row of its own shared-memory size: 163 KiB on sm_80, 99 on sm_86, sm_89
# and the consumer Blackwells (sm_120), 227 on sm_90 and sm_100.
ARCHITECTURES = ("sm_80", "sm_86", "sm_90", "sm_100")
SHARED_MEMORY = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10}

# Enough programs to fill a GPU twice: work is split more finely only below that. Multiprocessors: A100 108, RTX 3090 82,
# H200 132, B200 148.
PROGRAMS = {"sm_80": 216, "sm_86": 164, "sm_90": 264, "sm_100": 296}

LAUNCH_ON_META = False  # aot.py sets it: a launcher then also runs for tensors without memory


def row(capability):
    """The table row of a compute capability, a pair of ints."""
    major, minor = capability
    if major >= 12 or (major == 8 and minor > 0):
        return "sm_86"
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100")


@functools.cache
def architecture(device):
    """The table row for tensors on `device`."""
    return row(torch.cuda.get_device_capability(device)) if device.type == "cuda" else "sm_90"


def operator(schema, fake):
    """Decorator: the launcher becomes the operator cct_triton::<schema>, with `fake` for shapes alone.

    An operator of its own, rather than torch.library.triton_op: torch.compile then passes through without tracing the
    launcher, so a launcher may look things up in tables and hold a device guard, and the same holds for every triton
    version. Nothing is lost, as there is nothing around these kernels that a compiler could still fuse into them.
    """
    name = schema.split("(")[0]

    def decorate(launcher):
        @functools.wraps(launcher)
        def guarded(x, *args):
            with torch.cuda.device_of(x):  # a launch goes to the current device, which need not be that of x
                return launcher(x, *args)

        torch.library.define(f"cct_triton::{name}", schema.removeprefix(name))
        torch.library.impl(f"cct_triton::{name}", "CUDA", guarded)
        if interpreted():  # only then can a kernel work on CPU tensors
            torch.library.impl(f"cct_triton::{name}", "CPU", guarded)
        torch.library.register_fake(f"cct_triton::{name}", lambda *args: launcher(*args) if LAUNCH_ON_META else fake(*args))
        return getattr(torch.ops.cct_triton, name).default

    return decorate


def options(warps, stages, registers=None):
    """What a launch takes of the end of a table entry. registers: of a thread at most, where the compiler by itself would take
    fewer, to fit one more program, and spill."""
    return {"num_warps": warps, "num_stages": stages} | ({"maxnreg": registers} if registers else {})


def narrow(x, rows=False):
    """x, copied only if a sample of it spans more than 32-bit offsets reach or, for `rows`, a row has gaps."""
    span = sum((size - 1) * stride for size, stride in zip(x.shape[1:], x.stride()[1:], strict=True))
    gaps = rows and x.stride(-1) != 1 and x.shape[-1] > 1
    return x.contiguous() if gaps or span >= 2**31 else x


def fills(programs, device):
    """Whether as many programs leave less than half of the GPU idle."""
    return 4 * programs >= PROGRAMS[architecture(device)]


def splits(tiles, programs, device, most=32):
    """Among how many programs to divide work of `tiles` steps that `programs` of them do at a time."""
    wanted = PROGRAMS[architecture(device)] // max(1, programs)
    per_program = max(1, triton.cdiv(tiles, max(1, min(wanted, tiles, most))))
    return triton.cdiv(tiles, per_program), per_program
