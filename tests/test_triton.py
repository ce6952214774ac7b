"""The Triton kernels without a GPU: parity under the interpreter, and compilation ahead of time."""

import importlib.util
import os
import re
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch.torch_version import Version

import cct_kernels
from cct_kernels import testing
from cct_kernels.testing import make_inputs

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench.triton_cases import EXTRA

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
INTERPRETER = Path(__file__).with_name("triton_interpreter.py")
NAMES = {f"{case}": case for case in testing.CASES + EXTRA}
_cct = NAMES["layernorm_attention-B2_N256_C256_H4"]
_training = {"shapes": _cct.shapes | {"seed": (2,)}, "options": _cct.options | {"attn_dropout": 0.1}}
NAMES["layernorm_attention-B2_N256_C256_H4_dropout"] = replace(_cct, **_training)
# The shapes of the paper in the dtype of training, some in float32, one with no size a power of two; then one call for each
# entry of a table that these do not read.
COMPILED = [
    ("conv_tokenizer-B2_3x32x32_C256_k3", torch.bfloat16),
    ("conv_tokenizer-B3_64x16x16_C128_k3", torch.float32),
    ("seqpool-B2_N256_C256", torch.bfloat16),
    ("seqpool-B2_N256_C256", torch.float32),
    ("seqpool-B2_N63_C200", torch.float16),
    ("layernorm_mlp-B2_N256_C256_F512", torch.bfloat16),
    ("layernorm_mlp-B4_N17_C64_F96_train", torch.float32),
    ("layernorm_attention-B2_N256_C256_H4", torch.bfloat16),
    ("layernorm_attention-B2_N256_C256_H4_dropout", torch.bfloat16),
    ("layernorm_attention-B1_N1030_C64_H2", torch.bfloat16),
    ("layernorm_attention-B2_N20_C160_H1_train", torch.bfloat16),
    ("layernorm_attention-B3_N40_C96_H2_mask_train", torch.float16),
    ("layernorm_attention-B2_N256_C256_H4_dropout", torch.float32),
    ("layernorm_attention-B2_N128_C128_H2", torch.bfloat16),
    ("layernorm_attention-B2_N128_C128_H2_mask_train", torch.bfloat16),
    ("layernorm_attention-B2_N256_C256_H4_mask_train", torch.bfloat16),
    ("layernorm_attention-B2_N256_C256_H4_mask_train", torch.float32),
    ("layernorm_attention-B2_N20_C160_H1_train", torch.float32),
    ("layernorm_attention-B2_N256_C128_H4", torch.bfloat16),
    ("layernorm_attention-B2_N256_C128_H4_mask_train", torch.bfloat16),
    ("layernorm_attention-B2_N300_C128_H4_train", torch.bfloat16),
    ("layernorm_mlp-B3_N64_C128_F128", torch.bfloat16),
    *((f"seqpool-B2_N64_C{C}", torch.bfloat16) for C in (64, 128, 512, 1024, 2048, 4096)),
]
ENCODERS = {  # B, N, C, F, nh of the whole encoder, and what is random
    "cct_7": (128, 256, 256, 512, 4, {"attn_dropout": 0.1, "drop_path": True}),
    "cct_2": (512, 64, 128, 128, 2, {}),
    "cct_2_dropout": (512, 64, 128, 128, 2, {"dropout": 0.1, "backward": False}),
}
OPS = ["conv_tokenizer", "seqpool", "layernorm_mlp", "layernorm_attention"]
MATMULS = (
    "linear_",
    "weight_gradient_",
    "attention_",
    "row_segment_",
    "layernorm_mlp_",
    "conv_tokenizer_forward_",
    "conv_tokenizer_backward_weight_",
)
UNEVEN = "3x32x32", "C200"  # widths that are no multiple of 16: loads of single numbers there
# Bytes a thread: the tables are chosen for the Triton of PyTorch 2.11 to 2.13; newer ones distribute registers differently.
SPILLS = 0 if Version(version("triton") if importlib.util.find_spec("triton") else "0") < Version("3.8") else 32
ATOMIC = re.compile(r"^\s*(?:@\S+ )?(?:atom|red)\.", re.MULTILINE)
POINTER = re.compile(r"%(\w+): !tt\.ptr<\w+>( \{tt\.divisibility = 16 : i32\})?")
STRIDE = re.compile(r"%(stride_\w+): i(?:32|64)( \{tt\.divisibility = 16 : i32\})?")
WIDE_LOAD = re.compile(r"ld\.global\S*\.v4\.b32|cp\.async\.cg\.shared\.global [^;]*, (?:0x10|16)\b")


@pytest.mark.parametrize("op", [*OPS, "encoder", "drops or sum_of"])
def test_under_the_interpreter(op):
    if version("triton").startswith("3.6.") and Version(version("numpy")) >= Version("2.4"):
        pytest.skip("the interpreter of triton 3.6 needs numpy < 2.4")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", str(INTERPRETER), "-k", op]
    done = subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize(("name", "dtype"), COMPILED, ids=lambda p: str(p).removeprefix("torch."))
def test_compiles_without_spills(name, dtype, arch):
    from cct_kernels.triton import aot

    launches = aot.compiled(arch, NAMES[name], dtype)
    check_kernels(launches, arch, dtype)
    check_loads(launches, even=not any(part in name for part in UNEVEN))


@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_compiles_without_spills(name):
    from cct_kernels.triton import aot

    *sizes, random = ENCODERS[name]
    launches = aot.compiled_encoder("sm_90", torch.bfloat16, *sizes, **random)
    check_kernels(launches, "sm_90", torch.bfloat16)
    check_loads(launches)
    names = {launched.kernel.name for launched in launches}
    assert "row_segment_forward_kernel" in names
    assert ("row_segment_backward_kernel" in names) == random.get("backward", True)
    assert not {"layernorm_mlp_forward_kernel", "layernorm_mlp_backward_kernel"} & names


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_every_table_entry_is_compiled(arch):
    """By the tests above, and for sm_86 and sm_100 too by bench/triton_resources.py, see test_tune.py."""
    from bench import tune
    from cct_kernels.triton import aot

    def job(name, compile):
        return tune.Job(name, torch.bfloat16, compile, None)

    jobs = [job(n, lambda arch, n=n, d=d: aot.compiled(arch, NAMES[n], d)) for n, d in COMPILED]
    for name, (*sizes, options) in ENCODERS.items():
        jobs.append(job(name, lambda arch, s=sizes, o=options: aot.compiled_encoder(arch, torch.bfloat16, *s, **o)))
    assert tune.unread(jobs, arch) == []


@pytest.mark.parametrize(
    ("arch", "B", "N", "C", "dtype"),
    [
        ("sm_90", 1, 256, 256, torch.bfloat16),  # too few rows
        ("sm_90", 128, 196, 384, torch.bfloat16),  # too wide
        ("sm_90", 128, 256, 256, torch.float32),
        ("sm_80", 128, 256, 256, torch.bfloat16),
    ],
)
def test_where_the_encoder_runs_op_by_op(arch, B, N, C, dtype, monkeypatch):
    from cct_kernels.triton import launch, row_segment

    monkeypatch.setattr(launch, "architecture", lambda device: arch)
    x = torch.empty(B, N, C, dtype=dtype, device="meta")
    assert row_segment.config("forward", x, dtype, 0.0) is None and row_segment.config("backward", x, dtype, 0.0) is None


def check_kernels(launches, arch, dtype):
    from cct_kernels.triton import aot, launch

    assert launches
    for kernel in (launched.kernel for launched in launches):
        used = aot.resources(kernel)
        assert used["stack"] + used["local"] <= SPILLS, f"{kernel.name} spills: {used}"
        assert (
            arch != "sm_90" or dtype == torch.float32 or not kernel.name.startswith(MATMULS) or "wgmma" in kernel.asm["ptx"]
        ), kernel.name
        assert used["registers"] <= 255 and used["shared"] <= launch.SHARED_MEMORY[arch], f"{kernel.name}: {used}"
        assert not ATOMIC.search(kernel.asm["ptx"]), f"{kernel.name}: sums in no fixed order"


def check_loads(launches, even=True):
    """Triton takes every tensor to start at a multiple of 16 bytes, and so loads 16 bytes at a time."""
    for kernel in (launched.kernel for launched in launches):
        (signature,) = (line for line in kernel.asm["ttir"].splitlines() if "tt.func public" in line)
        known = POINTER.findall(signature) + (STRIDE.findall(signature) if even else [])
        assert known and all(divisible for _, divisible in known), f"{kernel.name}: {known}"
        if even and kernel.name != "seqpool_forward_combine_kernel":  # reads rows of C + 2 numbers
            assert WIDE_LOAD.search(kernel.asm["ptx"]), kernel.name


def test_rows_of_the_tables():
    from cct_kernels.triton import launch

    capabilities = [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)]
    assert [launch.row(c) for c in capabilities] == ["sm_80", "sm_86", "sm_86", "sm_90", "sm_100", "sm_100", "sm_86"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here: the tests of each op run the kernels on it")
@pytest.mark.parametrize("op", OPS)
def test_says_why_it_cannot_run(op):
    case = testing.cases(op)[-1]
    with pytest.raises(ValueError, match=f"{op}: backend 'triton' does not run on cpu tensors"):
        getattr(cct_kernels, op)(**make_inputs(case, torch.float32), **case.options, backend="triton")


def test_batch_sizes_share_their_kernels(monkeypatch):
    """First calls compile: training CCT-7/3x1 with any of nine batch sizes takes few kernels, most of them the same."""
    from triton.runtime.jit import JITFunction

    from cct_kernels.triton import aot

    kernels = set()
    monkeypatch.setattr(aot._Driver, "get_current_device", lambda self: "counted")  # a device with nothing compiled yet
    monkeypatch.setattr(JITFunction, "_do_compile", lambda self, key, *args: kernels.add((self.__name__, str(key))))
    counts = []
    for B in (1, 2, 7, 16, 64, 100, 128, 1000, 1024):
        for name in ("conv_tokenizer-B2_3x32x32_C256_k3", "seqpool-B2_N256_C256"):
            case = NAMES[name]
            case = replace(case, shapes=case.shapes | {"x": (B, *case.shapes["x"][1:])})
            aot.compiled("sm_90", case, torch.bfloat16)
        aot.compiled_encoder("sm_90", torch.bfloat16, B, 256, 256, 512, 4, attn_dropout=0.1, drop_path=True)
        counts.append(len(kernels))
    assert 10 < counts[0] <= 40 and counts[-1] <= 3 * counts[0], counts
