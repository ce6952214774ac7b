"""What each Triton kernel asks of a GPU, from compilation alone: registers, shared memory, occupancy, bytes.

    python -m bench.triton_resources            writes bench/results/triton_resources.json and .md
    python -m bench.triton_resources encoder    makes only the rows again whose case begins so; the others stay

No GPU is needed and nothing is timed. One row for each distinct kernel that the shapes of the paper launch with batch 128.
Occupancy: warps that fit a multiprocessor over the most it can hold. MB: the tensors a launch is given, each counted once.
Ends with an error if a kernel spills, takes too much shared memory or, in 16 bits on sm_90, multiplies without wgmma.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
import triton

from cct_kernels import testing
from cct_kernels.triton import aot, launch

from .triton_cases import EXTRA

MATMULS = ("linear", "weight_gradient", "attention_", "row_segment_", "layernorm_mlp_", "conv_tokenizer_forward")
MATMULS += ("conv_tokenizer_backward_weight",)
RESULTS = Path(__file__).parent / "results"
BATCH = 128
NAMES = [
    "conv_tokenizer-B2_3x32x32_C256_k3",
    "conv_tokenizer-B1_64x56x56_C384_k7",
    "layernorm_attention-B2_N256_C256_H4",
    "layernorm_attention-B3_N64_C128_H2",
    "layernorm_attention-B1_N196_C384_H6",
    "layernorm_attention-B1_N1030_C64_H2",
    "layernorm_attention-B2_N20_C160_H1_train",
    "layernorm_attention-B3_N40_C96_H2_mask_train",
    "layernorm_mlp-B2_N256_C256_F512",
    "layernorm_mlp-B3_N64_C128_F128",
    "layernorm_mlp-B1_N196_C384_F1152",
    "seqpool-B2_N256_C256",
    "seqpool-B3_N64_C128",
    "seqpool-B1_N196_C384",
]
# Whole encoders: B, N, C, F, nh. Only their row segments are listed, the rest is in the rows of the two ops.
ENCODERS = [(BATCH, 256, 256, 512, 4), (4 * BATCH, 64, 128, 128, 2)]
WAYS = {
    "": {"backward": False},
    "_train": {"attn_dropout": 0.1, "drop_path": True},
    "_dropout": {"dropout": 0.1, "backward": False},
}
# Of a multiprocessor: warps, shared memory (KiB; 1 a program is the system's own). 65536 registers, 32 programs (24 on sm_120).
MULTIPROCESSOR = {"sm_80": (64, 164), "sm_86": (48, 100), "sm_90": (64, 228), "sm_100": (64, 228)}


def occupancy(used, arch):
    most_warps, shared = MULTIPROCESSOR[arch]
    registers = -(-used["registers"] // 8) * 8 * 32 * used["warps"]
    programs = min(65536 // registers, (shared << 10) // (used["shared"] + 1024), most_warps // used["warps"], 32)
    return programs * used["warps"] / most_warps


def cases():
    """The shapes of the paper and EXTRA, with batch 128 and, of attention, with dropout too."""
    by_name = {str(case): case for case in testing.CASES}
    for case in [by_name[name] for name in NAMES] + EXTRA:
        case = replace(case, name=f"B{BATCH}_" + case.name.split("_", 1)[1])
        batched = {n: (BATCH, *case.shapes[n][1:]) for n in ("x", "mask", "drop_path_scale") if n in case.shapes}
        case = replace(case, shapes=case.shapes | batched)
        yield case
        if case.op == "layernorm_attention" and "seed" not in case.shapes:
            shapes = case.shapes | {"seed": (2,), "drop_path_scale": (BATCH,)}
            yield replace(case, name=case.name + "_train", shapes=shapes, options=case.options | {"attn_dropout": 0.1})


def encoders(arch):
    """Pairs of a name and a launch: the row segments in inference and in training."""
    for B, N, C, F, heads in ENCODERS:
        for way, options in WAYS.items():
            for launched in aot.compiled_encoder(arch, torch.bfloat16, B, N, C, F, heads, **options):
                if launched.kernel.name.startswith("row_segment"):
                    yield f"encoder-B{B}_N{N}_C{C}_F{F}_H{heads}{way}", launched


def row(arch, dtype, case, launched):
    used = aot.resources(launched.kernel)
    return {
        "arch": arch,
        "dtype": str(dtype).removeprefix("torch."),
        "case": str(case),
        "kernel": launched.kernel.name.removesuffix("_kernel"),
        "programs": launched.programs,
        **used,
        "occupancy": round(occupancy(used, arch), 3),
        "megabytes": round(launched.bytes / 1e6, 2),
        "wgmma": "wgmma.mma_async" in launched.kernel.asm["ptx"],
    }


def rows(prefix):
    for arch in MULTIPROCESSOR:
        for dtype in (torch.bfloat16, torch.float32):
            for case in (case for case in cases() if str(case).startswith(prefix)):
                yield from (row(arch, dtype, case, launched) for launched in aot.compiled(arch, case, dtype))
        if "encoder".startswith(prefix):
            yield from (row(arch, torch.bfloat16, name, launched) for name, launched in encoders(arch))


def kept(prefix):
    """The rows of the last time that are not made again."""
    path = RESULTS / "triton_resources.json"
    lines = path.read_text().splitlines()[1:] if prefix and path.exists() else []
    return [r for r in map(json.loads, lines) if not r["case"].startswith(prefix)]


def main(prefix=""):
    table = kept(prefix) + list(rows(prefix))
    RESULTS.mkdir(exist_ok=True)
    versions = {"triton": triton.__version__, "torch": torch.__version__}
    with open(RESULTS / "triton_resources.json", "w") as file:
        file.write(json.dumps(versions) + "\n" + "".join(json.dumps(row) + "\n" for row in table))
    lines = [
        f"# Triton kernels, compiled ahead of time (triton {triton.__version__}); nothing here was timed",
        "",
        "Made by `python -m bench.triton_resources`. Stack: bytes of local memory a thread, where spills would lie.",
        "",
    ]
    for arch in MULTIPROCESSOR:
        lines += [
            f"## {arch}",
            "",
            "| case | dtype | kernel | programs | warps | registers | stack | shared KiB | occupancy | MB |",
        ]
        lines += ["|---|---|---|---|---|---|---|---|---|---|"]
        for r in (r for r in table if r["arch"] == arch):
            figures = r["programs"], r["warps"], r["registers"], r["stack"], round(r["shared"] / 1024, 1)
            name = r["kernel"] + (" (wgmma)" if r["wgmma"] else "")
            cells = r["case"], r["dtype"], name, *figures, f"{r['occupancy']:.0%}", r["megabytes"]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
        lines.append("")
    (RESULTS / "triton_resources.md").write_text("\n".join(lines))
    faults = [(r, fault) for r in table for fault in faults_of(r)]
    print(f"{len(table)} kernels, {len(faults)} faults")
    for r, fault in faults:
        print(" ", r["arch"], r["dtype"], r["case"], r["kernel"], fault)
    return 1 if faults else 0


def faults_of(r):
    """What a row may not have: spills, more shared memory than the GPU gives, a 16-bit product on sm_90 without wgmma."""
    if r["stack"] or r["local"]:
        yield f"spills {r['stack'] + r['local']} bytes"
    if r["shared"] > launch.SHARED_MEMORY[r["arch"]]:
        yield f"takes {r['shared']} bytes of shared memory"
    if r["arch"] == "sm_90" and r["dtype"] != "float32" and r["kernel"].startswith(MATMULS) and not r["wgmma"]:
        yield "has no wgmma"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
