"""Each op, forward and forward+backward, at the shapes the models call it with. A case of `cct_kernels.testing` is a row here
when its reason starts with the name of a model."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cct_kernels import dispatch, reference
from cct_kernels.testing import CASES, assert_no_worse, make_inputs, max_error, run

from .peers import OPS
from .session import PEER_FACTOR

MODELS = ("CCT-", "CVT-", "ViT-")
BATCHED = ("x", "mask", "drop_path_scale")  # arguments whose first dimension is the batch
PROBE = 4  # images on which results are checked
DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]


def label(case):
    """The model, and which stage of it; what else the reason says is about the case's own batch."""
    return ", ".join(part for part in case.why.split(", ") if part.startswith(MODELS) or part.endswith("stage"))


def with_batch(case, batch):
    shapes = {name: (batch, *shape[1:]) if name in BATCHED else shape for name, shape in case.shapes.items()}
    return dataclasses.replace(case, shapes=shapes)


def work(case, dtype, backward):
    """Operations of the products of the published form, and the least traffic in bytes: every tensor once for each pass."""
    tensors = {n: t.to("meta").requires_grad_(backward) for n, t in make_inputs(case, dtype).items()}
    with FlopCounterMode(display=False) as counter:
        out = getattr(reference, case.op)(**tensors, **case.options)
        if backward:
            torch.autograd.grad(out.sum(), list(tensors.values()), allow_unused=True)
    inputs, output = (sum(t.nbytes for t in group) for group in (tensors.values(), [out]))
    # Forward reads the inputs and writes the output; backward reads both kinds again and writes a gradient for each input.
    return counter.get_total_flops(), inputs + output + (2 * inputs + output if backward else 0)


def checker(case, tensors, dtype, dout):
    """Holds a function to the rule on the first images, the incoming gradient being zero for the others."""
    plain = getattr(reference, case.op)
    first = {n: t[:PROBE] if n in BATCHED else t for n, t in tensors.items()}
    head = None if dout is None else dout[:PROBE]
    double = {n: t.double() if t.is_floating_point() else t for n, t in first.items()}
    exact = run(plain, double, case.options, None if head is None else head.double())
    torch_own = run(plain, first, case.options, head)
    only_first = None if dout is None else torch.cat([head, torch.zeros_like(dout[PROBE:])])

    def check(name, function):
        for result, value in run(function, tensors, case.options, only_first).items():
            value = value[:PROBE] if result == "out" or result.removeprefix("d") in BATCHED else value
            if name == "ours":
                assert_no_worse(f"{case} {result}", value, torch_own[result], exact[result], dtype)
                continue
            scale = exact[result].abs().max().item()
            bound = PEER_FACTOR * (2 * max_error(torch_own[result], exact[result]) + 4 * torch.finfo(dtype).eps * scale)
            assert max_error(value, exact[result]) <= bound, f"wrong {result}"

    return check


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("batch", [64, 128], ids=lambda b: f"B{b}")
@pytest.mark.parametrize("case", [c for c in CASES if c.why.startswith(MODELS)], ids=lambda c: f"{c.op}-{label(c)}")
@pytest.mark.parametrize("device", DEVICES)
def test_op(bench, device, case, batch, dtype, direction):
    what = f"{case.op} {label(case)}"
    key = {"kind": "op", "what": what, "direction": direction, "device": device, "dtype": str(dtype)[6:], "batch": batch}
    bench.begin(key, OPS)
    case, backward = with_batch(case, batch), direction == "forward+backward"
    tensors = make_inputs(case, dtype, device)
    dout = None
    if backward:
        dout = torch.randn_like(getattr(reference, case.op)(**tensors, **case.options))
    functions, check = {}, checker(case, tensors, dtype, dout)

    def build(name):
        functions[name] = function = OPS[name](case.op)
        if not backward:
            return torch.inference_mode()(lambda: function(**tensors, **case.options))
        leaves = {n: t.detach().requires_grad_(t.is_floating_point()) for n, t in tensors.items()}
        wanted = [t for t in leaves.values() if t.requires_grad]
        return lambda: torch.autograd.grad(function(**leaves, **case.options), wanted, dout, allow_unused=True)

    flops, moved = work(case, dtype, backward)
    bench.row(
        key, {name: lambda name=name: build(name) for name in OPS}, lambda name, call: check(name, functions[name]),
        flops=flops, moved=moved, backend=dispatch.choose(case.op, tensors["x"]),
    )  # fmt: skip
