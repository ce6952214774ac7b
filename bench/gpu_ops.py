"""GPU rows of single ops, of the encoder, of the attention core and of augmentation."""

import torch
from torch.nn import functional as F

from cct.data import Augment, batches
from cct.data.dataset import Split
from cct_kernels import dispatch, reference
from cct_kernels.encoder import encoder
from cct_kernels.testing import CASES, make_inputs

from . import gpu_encoder, gpu_peers
from .gpu_bench import BF16, hold_to_norm
from .peers import OPS
from .test_ops import PROBE, checker, label, with_batch, work


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
