"""The rows of bench/gpu.sh: `python -m bench.gpu_rows STAGE... [--device cuda] [--out DIR] [--tiny]`.

Stages: ops, inference, latency, training, autotune. A row is written when it is done, so that a stage that is cut off keeps
what it has. --tiny: a small model and small batches, as the self-test takes on a CPU.
"""

import argparse
import sys
import time
import traceback
from pathlib import Path

import torch

from cct.models import count_macs, count_parameters

from . import gpu_ops, gpu_peers, gpu_timing, record
from .gpu_bench import BF16, Bench, hold_to_norm
from .peers import Missing
from .test_models import WITHOUT_DROPOUT, gradients, images
from .test_ops import PROBE


def inference_rows(bench, batch, peers, timer, stage):
    model = bench.model().eval()
    x = images(model, batch, bench.device)[0]
    exact = bench.model().eval().double()(x[:PROBE].double())
    with torch.no_grad():
        torch_own = model.to(BF16)(x[:PROBE].to(BF16)).float()

    def check(name, call):
        hold_to_norm(name, "logits", call()[:PROBE].float(), torch_own, exact.detach(), BF16)

    x = x.to(BF16)
    bench.session(timer, 2 * bench.sizes["rounds"]).row(
        bench.key("inference" if stage != "latency" else "latency", bench.what, batch, stage=stage),
        {name: lambda name=name: gpu_peers.inference(name, bench.model().eval().to(BF16), x) for name in peers}, check,
        flops=2 * batch * count_macs(model).full, moved=x.nbytes + 2 * count_parameters(model).total,
    )  # fmt: skip


def training_rows(bench, peers, stage):
    """Forward, backward and AdamW under bfloat16 autocast, with the published drop rates; then the peak memory of a step."""
    batch, quiet = bench.sizes["batch"], bench.model(**WITHOUT_DROPOUT).train()
    x, labels = images(quiet, batch, bench.device)
    exact = gradients(bench.model(**WITHOUT_DROPOUT).double(), x[:PROBE].double(), torch.float64)
    torch_own, peaks = gradients(quiet, x[:PROBE], BF16), {}

    def check(name, call):
        if bench.device == "cuda":
            peaks[name] = {"median": _peak(call)}
        if name in gpu_peers.COMPILE | gpu_peers.AUTOTUNE:  # a second compilation would take the time of the others
            if not torch.isfinite(call()):
                raise Missing("its loss is not finite")
            return
        _, holder = gpu_peers.module(name, bench.model(**WITHOUT_DROPOUT).train())
        for result, value in gradients(holder, x, BF16).items():
            hold_to_norm(name, result, value, torch_own[result], exact[result], BF16)

    parameters = count_parameters(quiet).total
    session = bench.session()
    builders = {n: lambda n=n: gpu_peers.Training(n, bench.model().train(), x, labels, BF16) for n in peers}
    session.row(
        bench.key("training", bench.what, batch, stage=stage), builders, check,
        flops=3 * 2 * batch * count_macs(quiet).full, moved=x.nbytes + 4 * parameters * 10,
    )  # fmt: skip
    if peaks:
        session.keep(record.make(bench.key("memory", bench.what, batch, stage=stage), peaks, {}, unit="bytes"))


def _peak(step):
    """Bytes that a step needs beyond what lies there before it, launched kernel by kernel (as are the first ones of ours)."""
    step()
    step.optimizer.zero_grad(set_to_none=True)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def stages(bench):
    """{stage: its parts, the ones that matter most first}."""
    batch, cold, latency = bench.sizes["batch"], gpu_timing.cold, gpu_timing.latency
    all_ours = ("ours", "ours eager")
    return {
        "ops": [
            lambda: gpu_ops.attention_rows(bench),
            lambda: gpu_ops.op_rows(bench),
            lambda: gpu_ops.augmentation_row(bench),
            lambda: gpu_ops.encoder_rows(bench),
        ],
        "inference": [lambda: inference_rows(bench, batch, (*all_ours, *bench.eager, *bench.compiled), cold, "inference")],
        "latency": [lambda: inference_rows(bench, 1, (*all_ours, *bench.eager, *bench.compiled), latency, "latency")],
        "training": [lambda: training_rows(bench, (*all_ours, *bench.eager, *bench.compiled[:1]), "training")],
        "autotune": [
            lambda: inference_rows(bench, batch, ("ours", "max-autotune"), cold, "autotune"),
            lambda: training_rows(bench, ("ours", "reduce-overhead", "max-autotune"), "autotune"),
            lambda: inference_rows(bench, 1, ("ours", "max-autotune"), latency, "autotune"),
            lambda: gpu_ops.op_rows(bench, ("ours", "max-autotune"), "autotune"),
        ],
    }


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_rows", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="+", choices=["ops", "inference", "latency", "training", "autotune"])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--out", type=Path, default=record.RESULTS)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU (torch.cuda.is_available() is False); --device cpu --tiny tries the script out")
    bench, failed = Bench(args.device, args.tiny, args.out), 0
    for name in args.stages:
        for part in stages(bench)[name]:
            began = time.perf_counter()
            try:
                part()
            except Exception:
                failed += 1
                traceback.print_exc()
            print(f"{name}: {time.perf_counter() - began:.1f} s", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
