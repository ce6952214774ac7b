"""The CUDA library as it was compiled, and its kernels run by a host emulation, so that both are tested without a GPU.

With a GPU the same ops run under the numerics rule in the tests of each op (tests/test_seqpool.py and its siblings).
"""

import importlib
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from cct_kernels import native, reference
from cct_kernels.dispatch import TABLE
from cct_kernels.testing import assert_no_worse, cases, compare, make_inputs, max_error, poisoned_memory, run, seqpool_case

seqpool_op = importlib.import_module("cct_kernels.seqpool")  # the module; the package's name of it is the function
ROOT = Path(__file__).resolve().parents[1]
LIBRARY = native.LIBRARIES / "libcct_cuda.so"
TORCH = Path(torch.__file__).parent
needs_library = pytest.mark.skipif(not LIBRARY.exists(), reason="libcct_cuda.so was not built: nvcc was not found")


def tool(name):
    """A CUDA binary tool: of the toolkit, or of the triton wheel."""
    candidates = [shutil.which(name), Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin", name)]
    spec = importlib.util.find_spec("triton")
    if spec:
        candidates.append(Path(spec.submodule_search_locations[0], "backends/nvidia/bin", name))
    for candidate in candidates:
        if candidate and Path(candidate).exists():
            return str(candidate)
    pytest.skip(f"{name} is neither in a CUDA toolkit nor in a triton wheel here")


def output(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def kernels():
    """(architecture, kernel) -> {"REG": 80, "STACK": 0, "LOCAL": 0, ...}"""
    found, architecture, name = {}, None, None
    for line in output(tool("cuobjdump"), "--dump-resource-usage", str(LIBRARY)).splitlines():
        if match := re.search(r"arch = (sm_\w+)", line):
            architecture = match[1]
        elif match := re.search(r"Function (\S+):", line):
            name = match[1]
        elif name and "REG:" in line:
            found[architecture, name] = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", line)}
            name = None
    return found


# Registers that let enough blocks of 256 threads share a multiprocessor: four forward and three backward at the widths of most
# models (8 channels a thread, C up to 256), two at 16 channels; the others may use all there are.
LIMITS = {"seqpool_forward_kernel": {8: 64, 16: 128}, "seqpool_backward_kernel": {8: 80, 16: 128}}


@needs_library
def test_no_spills_and_few_registers(kernels):
    assert kernels
    for (architecture, name), usage in kernels.items():
        assert usage["STACK"] == 0 and usage["LOCAL"] == 0, f"{architecture} {name} spills: {usage}"
        kernel = next((kernel for kernel in LIMITS if kernel in name), None)
        channels = re.search(r"Li\d+ELi(\d+)ELi\d+E", name)
        most = LIMITS[kernel].get(int(channels[1]), 255) if kernel else 255
        assert usage["REG"] <= most, f"{architecture} {name} uses {usage['REG']} registers, more than {most}"


@needs_library
def test_both_architectures_hold_every_kernel(kernels):
    by_architecture = {a: {name for b, name in kernels if b == a} for a, _ in kernels}
    assert set(by_architecture) == {"sm_80", "sm_90a"}
    assert by_architecture["sm_80"] == by_architecture["sm_90a"]
    for op in (op for (op, _), backends in TABLE.items() if "cuda" in backends):
        for kernel in (f"{op}_forward_kernel", f"{op}_backward_kernel"):
            assert any(kernel in name for name in by_architecture["sm_80"]), kernel
    assert "sm_80" in output(tool("cuobjdump"), "--list-ptx", str(LIBRARY))  # for GPUs that came later


def dynamic_symbols(library, *flags):
    lines = output(tool("nm"), "-D", *flags, str(library)).splitlines()
    return {line.split()[-1].split("@")[0] for line in lines if line.split()[-2] not in "wv"}


# Of PyTorch's CUDA builds, all in the stable ABI since 2.10: CPU-only PyTorch, which may compile the library, has none of them.
CUDA_SYMBOLS = {"aoti_torch_get_current_cuda_stream", "torch_c10_cuda_check_msg", "torch_c10_cuda_free_error_msg"}


@needs_library
def test_needs_only_the_stable_abi():
    undefined = {line.split()[-1] for line in output(tool("nm"), "-D", "--undefined-only", str(LIBRARY)).splitlines()}
    torch_symbols = {name for name in undefined if "@" not in name and not name.startswith(("_ITM", "__gmon"))}
    assert all(re.match(r"(aoti_torch|torch)_", name) for name in torch_symbols), torch_symbols  # plain C names only
    exported = dynamic_symbols(TORCH / "lib" / "libtorch_cpu.so", "--defined-only")
    if torch.cuda.is_available():
        exported |= dynamic_symbols(TORCH / "lib" / "libtorch_cuda.so", "--defined-only")
    assert torch_symbols - exported <= CUDA_SYMBOLS
    assert not any("cuda" in name.lower() and name not in CUDA_SYMBOLS | exported for name in undefined)  # cudart is inside


# ---- the kernels on the host ----


@pytest.fixture(scope="module")
def emulated(tmp_path_factory):
    """torch.ops.cct_emulated: csrc/cuda compiled by the host compiler, behind tests/cuda_emulation.h."""
    compiler, headers = shutil.which("g++"), Path(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "include")
    if compiler is None or not (headers / "cuda_runtime.h").exists():
        pytest.skip("the emulation needs g++ and the headers of a CUDA toolkit")
    library = tmp_path_factory.mktemp("emulation") / "libcct_emulated.so"
    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    command = [
        compiler,
        "-x",
        "c++",
        "-std=c++20",
        "-O2",
        "-fPIC",
        "-shared",
        "-w",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
    ]
    command += ["-isystem", headers, "-isystem", TORCH / "include", "-include", ROOT / "tests" / "cuda_emulation.h", *sources]
    subprocess.run([*map(str, command), "-o", str(library), f"-L{TORCH / 'lib'}", "-ltorch_cpu"], check=True)
    for name, schema in native.OPS.items():
        if name.startswith("seqpool"):
            torch.library.define(f"cct_emulated::{name}", schema)
    torch.ops.load_library(library)
    return torch.ops.cct_emulated


@pytest.fixture
def seqpool(emulated, monkeypatch):
    monkeypatch.setattr(seqpool_op, "kernels", lambda *_: (emulated.seqpool_forward, emulated.seqpool_backward))

    def call(x, weight, bias=None, *, norm_weight=None, norm_bias=None, eps=1e-5):
        return seqpool_op._SeqPool.apply(x, weight, bias, norm_weight, norm_bias, eps, "cuda")

    return call


LAYOUTS = [  # a case for each layout of threads that the cases of the op do not reach
    seqpool_case("B2_N9_C509", "two vectors a thread, odd", 2, 9, 509),
    seqpool_case("B1_N11_C768", "four vectors a thread", 1, 11, 768),
    seqpool_case("B1_N3_C1030", "one group a block", 1, 3, 1030),
    seqpool_case("B97_N2_C16", "parameter gradients summed in slices", 97, 2, 16),
]


@pytest.mark.parametrize("multiprocessors", [1, 64], ids=["whole_images", "cut_images"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("case", cases("seqpool") + LAYOUTS, ids=lambda c: c.name)
def test_seqpool_parity(seqpool, monkeypatch, case, dtype, multiprocessors):
    monkeypatch.setenv("CCT_EMULATE_MULTIPROCESSORS", str(multiprocessors))
    with poisoned_memory():
        compare(case, dtype, seqpool)


@pytest.mark.parametrize("shared_bytes", [0, 65536, 262144], ids=["none", "part", "all"])
def test_seqpool_with_rows_in_shared_memory(seqpool, monkeypatch, shared_bytes):
    monkeypatch.setenv("CCT_EMULATE_MULTIPROCESSORS", "0")
    monkeypatch.setenv("CCT_EMULATE_SHARED_BYTES", str(shared_bytes))
    compare(cases("seqpool")[0], torch.float32, seqpool)


def gradients(function, tensors):
    leaves = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    return torch.autograd.grad(function(**leaves).square().sum(), list(leaves.values()))


@pytest.mark.parametrize("multiprocessors", [1, 64], ids=["whole_images", "cut_images"])
def test_seqpool_without_races(seqpool, monkeypatch, multiprocessors):
    """The same bits whichever thread of a block runs first."""
    monkeypatch.setenv("CCT_EMULATE_MULTIPROCESSORS", str(multiprocessors))
    for case in [*cases("seqpool")[1:4], LAYOUTS[2]]:
        tensors = make_inputs(case, torch.float32)
        monkeypatch.setenv("CCT_EMULATE_REVERSE", "0")
        first = gradients(seqpool, tensors)
        monkeypatch.setenv("CCT_EMULATE_REVERSE", "1")
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(seqpool, tensors), strict=True))


def test_seqpool_unaligned_and_strided(seqpool):
    tensors = make_inputs(cases("seqpool")[1], torch.float32)
    expected = gradients(seqpool, tensors)
    shifted = {n: torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t) for n, t in tensors.items()}
    assert all(t.data_ptr() % 16 for t in shifted.values())
    strided = {n: torch.stack([t, t], -1)[..., 0] for n, t in tensors.items()}
    for other in (shifted, strided):
        for a, b in zip(gradients(seqpool, other), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_seqpool_nan_and_large_scores(seqpool):
    tensors = make_inputs(cases("seqpool")[1], torch.float32)
    large = tensors | {"weight": tensors["weight"] * 1e4}
    torch.testing.assert_close(seqpool(**large), seqpool_op.seqpool(**large, backend="reference"), rtol=1e-4, atol=1e-4)
    tensors["x"][1, 5, 3] = float("nan")
    out = seqpool(**tensors)
    assert out[1].isnan().all() and not out[[0, 2]].isnan().any()


@pytest.mark.parametrize("multiprocessors", [1, 64], ids=["whole_images", "cut_images"])
def test_seqpool_with_a_part_common_to_all_tokens(seqpool, monkeypatch, multiprocessors):
    """D is far larger than the differences of t from it: the sum of ds, zero but for rounding, must not reach dweight."""
    monkeypatch.setenv("CCT_EMULATE_MULTIPROCESSORS", str(multiprocessors))
    plain = cases("seqpool")[7]
    for seed in range(3):
        tensors = make_inputs(plain, torch.float32, seed=seed)
        tensors["x"] += 100
        exact, torch_own, ours = (
            run(function, {n: t.to(dtype) for n, t in tensors.items()}, {}, torch.ones(5, 256, dtype=dtype))["dweight"]
            for function, dtype in (
                (reference.seqpool, torch.float64),
                (reference.seqpool, torch.float32),
                (seqpool, torch.float32),
            )
        )
        assert_no_worse("dweight", ours, torch_own, exact, torch.float32)
        assert max_error(ours, exact) < 1e-3 * exact.abs().max()


def test_seqpool_checks_what_it_indexes_by(emulated):
    x, weight = torch.zeros(2, 3, 8), torch.zeros(1, 8)
    out, lse, mean, rstd = emulated.seqpool_forward(x, weight, None, None, 1e-5)
    with pytest.raises(ValueError, match=r"seqpool: weight has shape \(1, 4\); expected \(1, 8\)"):
        emulated.seqpool_forward(x, torch.zeros(1, 4), None, None, 1e-5)
    with pytest.raises(ValueError, match=r"seqpool: x has shape \(2, 0, 8\); expected 1 to"):
        emulated.seqpool_forward(x[:, :0], weight, None, None, 1e-5)
    with pytest.raises(ValueError, match="seqpool: x has dtype float64; expected float32, float16 or bfloat16"):
        emulated.seqpool_forward(x.double(), weight.double(), None, None, 1e-5)
    with pytest.raises(ValueError, match="seqpool: norm_weight has dtype float16; expected float32"):
        emulated.seqpool_forward(x, weight, torch.zeros(8).half(), None, 1e-5)
    with pytest.raises(ValueError, match=r"seqpool: lse has shape \(1,\); expected \(2,\)"):
        emulated.seqpool_backward(out, x, weight, None, None, lse[:1], mean, rstd)
    with pytest.raises(ValueError, match=r"seqpool: rstd has shape \(0, 3\); expected \(2, 3\)"):
        emulated.seqpool_backward(out, x, weight, torch.zeros(8), None, lse, torch.zeros(2, 3), rstd)
