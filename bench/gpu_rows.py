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
from torch.nn import functional as F

from cct.data import Augment, batches
from cct.data.dataset import Split
from cct.models import count_macs, count_parameters, create_model
from cct_kernels import dispatch, reference
from cct_kernels.encoder import encoder
from cct_kernels.testing import CASES, make_inputs

from . import gpu_encoder, gpu_peers, gpu_timing, record
from .peers import OPS, Missing
from .session import PEER_FACTOR, Session
from .test_models import WITHOUT_DROPOUT, gradients, images
from .test_ops import PROBE, checker, label, with_batch, work

BF16 = torch.bfloat16
FULL = {"model": ("CCT-7/3x1", "cct_7_3x1_32", {}), "batch": 1024, "ops": ("CCT-7/3x1",), "rounds": 20}
TINY = {"model": ("CCT-2/3x2", "cct_2_3x2_32", {"img_size": 16}), "batch": 4, "ops": ("CCT-2/3x2",), "rounds": 2}


class Bench:
    """What the stages share: device, sizes, where rows go."""

    def __init__(self, device, tiny, folder):
        self.device, self.sizes, self.folder = device, TINY if tiny else FULL, folder
        self.what, self.name, self.options = self.sizes["model"]
        self.compiled = () if tiny else (*gpu_peers.COMPILE,)
        self.eager = ("published", *(gpu_peers.BACKENDS if device == "cuda" else ()))

    def session(self, timer=gpu_timing.cold, rounds=None):
        rounds = rounds or self.sizes["rounds"]
        return Session(rounds=rounds, min_time=1e-3, threads=torch.get_num_threads(), peers=[], folder=self.folder, timer=timer)

    def model(self, **options):
        torch.manual_seed(0)
        return create_model(self.name, fused=False, **self.options, **options).to(self.device)

    def key(self, kind, what, batch, dtype=BF16, **more):
        return {"kind": kind, "what": what, "device": self.device, "dtype": str(dtype)[6:], "batch": batch, **more}


def op_rows(bench, peers=("ours", "eager", "compile"), stage="ops"):
    """Each op at the shapes of the model, forward and forward+backward."""
    if not bench.compiled:
        peers = tuple(name for name in peers if name != "compile")
    for case in CASES:
        if not case.why.startswith(bench.sizes["ops"]):
            continue
        case = with_batch(case, bench.sizes["batch"])
        tensors = make_inputs(case, BF16, bench.device)
        for direction in ("forward", "forward+backward"):
            backward = direction != "forward"
            out = getattr(reference, case.op)(**tensors, **case.options)
            dout = torch.randn_like(out) if backward else None
            check, functions = checker(case, tensors, BF16, dout), {}

            def build(name, case=case, tensors=tensors, dout=dout, functions=functions):
                functions[name] = function = OPS[name](case.op)
                if dout is None:
                    return torch.inference_mode()(lambda: function(**tensors, **case.options))
                leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
                wanted = [t for t in leaves.values() if t.requires_grad]
                return lambda: torch.autograd.grad(function(**leaves, **case.options), wanted, dout, allow_unused=True)

            flops, moved = work(case, BF16, backward)
            key = bench.key("op", f"{case.op} {label(case)}", bench.sizes["batch"], direction=direction, stage=stage)
            bench.session().row(
                key, {name: lambda name=name, build=build: build(name) for name in peers},
                lambda name, call, check=check, functions=functions: check(name, functions[name]),
                flops=flops, moved=moved, backend=dispatch.choose(case.op, tensors["x"]),
            )  # fmt: skip


def encoder_rows(bench):
    """The whole encoder as one op, forward and forward+backward, beside its plain PyTorch form with attention written out."""
    sizes, batch = gpu_encoder.SIZES[bench.what], bench.sizes["batch"]
    N, C, F, _, layers = sizes
    tensors, op = gpu_encoder.call(sizes, batch, bench.device)
    plain = {"eager": reference.encoder} | (
        {"compile": torch.compile(reference.encoder, dynamic=False)} if bench.compiled else {}
    )
    functions = {"ours": encoder, **plain}
    double = {n: t[:PROBE].double() if n == "x" else t.double() for n, t in tensors.items()}
    with torch.no_grad():
        exact, own = (op(**t, function=reference.encoder) for t in (double, tensors | {"x": tensors["x"][:PROBE]}))

    def build(name, backward):
        if not backward:
            return torch.inference_mode()(lambda: op(**tensors, function=functions[name]))
        leaves = {n: t.detach().requires_grad_() for n, t in tensors.items()}
        dout = torch.randn_like(tensors["x"])
        return lambda: torch.autograd.grad(op(**leaves, function=functions[name]), list(leaves.values()), dout)

    def check(name, call):
        with torch.no_grad():
            hold_to_norm(name, "out", op(**tensors, function=functions[name])[:PROBE], own, exact, BF16)

    flops = 2 * batch * layers * N * C * (4 * C + 2 * F + 2 * N)
    moved = 2 * tensors["x"].nbytes + sum(t.nbytes for t in tensors.values())
    for direction in ("forward", "forward+backward"):
        backward = direction != "forward"
        bench.session().row(
            bench.key("op", f"encoder {bench.what}", batch, direction=direction, stage="ops"),
            {name: lambda name=name, b=backward: build(name, b) for name in functions}, check,
            flops=flops * (3 if backward else 1), moved=moved * (3 if backward else 1),
        )  # fmt: skip


def attention_rows(bench):
    """The attention core alone beside every backend of PyTorch's, forward and backward."""
    if dispatch.machine_why_not("triton"):
        print(f"attention core: left out: {dispatch.machine_why_not('triton')}")
        return
    from cct_kernels.triton.attention import attention_backward, attention_forward

    B, N, heads, hd = bench.sizes["batch"], 256, 4, 64
    C = heads * hd
    qkv = torch.randn(B * N, 3 * C, device=bench.device, dtype=BF16)
    dout = torch.randn(B * N, C, device=bench.device, dtype=BF16)
    q, k, v = (t.detach().requires_grad_() for t in qkv.view(B, N, 3, heads, hd).permute(2, 0, 3, 1, 4))
    incoming = dout.view(B, N, heads, hd).transpose(1, 2)
    o, lse = attention_forward(qkv, B, N, heads, None, 0.0, None)
    exact = F.scaled_dot_product_attention(*(t[:PROBE].double() for t in (q, k, v))).transpose(1, 2).reshape(-1, C)

    def build(name, backward):
        if name == "ours":
            if backward:
                return lambda: attention_backward(dout, qkv, B, N, heads, None, 0.0, None, o, lse)
            return lambda: attention_forward(qkv, B, N, heads, None, 0.0, None)[0]
        call = gpu_peers.attention_backend(name, F.scaled_dot_product_attention)
        if not backward:
            return torch.no_grad()(lambda: call(q, k, v).transpose(1, 2).reshape(-1, C))
        out = call(q, k, v)
        return lambda: torch.autograd.grad(out, (q, k, v), incoming, retain_graph=True)

    for backward in (False, True):

        def check(name, call, backward=backward):
            found = call()
            if not backward:
                torch.testing.assert_close(found[: PROBE * N].double(), exact, rtol=0.05, atol=0.02)

        key = bench.key("op", "attention core CCT-7/3x1", B, direction="backward" if backward else "forward", stage="ops")
        bench.session().row(
            key, {name: lambda name=name, b=backward: build(name, b) for name in ("ours", *gpu_peers.BACKENDS)}, check,
            flops=(10 if backward else 4) * B * N * N * C, moved=(8 if backward else 4) * B * N * C * 2, backend="triton",
        )  # fmt: skip


def augmentation_row(bench):
    """Random crop and flip, and normalisation, of batches of a data set on the device."""
    n = 8 * bench.sizes["batch"]
    pixels = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, device=bench.device)
    split = Split(pixels, torch.zeros(n, dtype=torch.int64, device=bench.device))

    def epoch():
        options = {"mean": (0.5,) * 3, "std": (0.25,) * 3, "device": bench.device, "augment": Augment()}
        for _ in batches.epoch(split, batch_size=bench.sizes["batch"], seed=0, epoch=0, **options):
            pass

    moved = n * 3 * 32 * 32 * (1 + 4)
    key = bench.key("augmentation", "crop and flip", n, torch.float32, stage="ops")
    bench.session().row(key, {"ours": lambda: epoch}, lambda *_: None, flops=0, moved=moved)


def hold_to_norm(name, result, value, torch_own, exact, dtype):
    """The rule in the L2 norm, for tensors at the end of a whole network: one element in a million may lie farther out."""
    error, allowed, size = ((a.double() - b).norm().item() for a, b in ((value, exact), (torch_own, exact), (exact, 0.0)))
    bound = (1 if name.startswith("ours") else PEER_FACTOR) * (2 * allowed + 4 * torch.finfo(dtype).eps * size)
    assert error <= bound, f"wrong {result}: {error:.3g} above {bound:.3g}"


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
            lambda: attention_rows(bench),
            lambda: op_rows(bench),
            lambda: augmentation_row(bench),
            lambda: encoder_rows(bench),
        ],
        "inference": [lambda: inference_rows(bench, batch, (*all_ours, *bench.eager, *bench.compiled), cold, "inference")],
        "latency": [lambda: inference_rows(bench, 1, (*all_ours, *bench.eager, *bench.compiled), latency, "latency")],
        "training": [lambda: training_rows(bench, (*all_ours, *bench.eager, *bench.compiled[:1]), "training")],
        "autotune": [
            lambda: inference_rows(bench, batch, ("ours", "max-autotune"), cold, "autotune"),
            lambda: op_rows(bench, ("ours", "max-autotune"), "autotune"),
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
