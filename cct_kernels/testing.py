"""What tests and benchmarks share: the cases of each op, and the one rule that decides "right".

exact = the reference in float64 on the same rounded inputs. A kernel is right when, for its output and for each named gradient
under a random incoming gradient,

    max|kernel - exact|  <=  2 * max|PyTorch in the same dtype - exact|  +  4 * eps(dtype) * max|exact|.
"""

import contextlib
from dataclasses import dataclass

import torch

from . import reference


@dataclass(frozen=True)
class Case:
    """One call of an op: `shapes` of its tensor arguments, `options` of the others."""

    op: str
    name: str
    why: str
    shapes: dict
    options: dict

    def __str__(self):
        return f"{self.op}-{self.name}"


def conv_case(name, why, x, C, kernel, bias=False, **options):
    shapes = {"x": x, "weight": (C, x[1], *kernel)}
    if bias:
        shapes |= {"bias": (C,)}
    return Case("conv_tokenizer", name, why, shapes, options)


def seqpool_case(name, why, B, N, C, norm=True):
    shapes = {"x": (B, N, C), "weight": (1, C), "bias": (1,)}
    if norm:
        shapes |= {"norm_weight": (C,), "norm_bias": (C,)}
    return Case("seqpool", name, why, shapes, {})


def attention_case(name, why, B, N, C, num_heads, attn_dropout=0.0, dropout=0.0, mask=False, drop_path=False, qkv_bias=False):
    shapes = {"x": (B, N, C), "norm_weight": (C,), "norm_bias": (C,), "qkv_weight": (3 * C, C)}
    shapes |= {"proj_weight": (C, C), "proj_bias": (C,)}
    options = {"num_heads": num_heads}
    if qkv_bias:
        shapes |= {"qkv_bias": (3 * C,)}
    if mask:
        shapes |= {"mask": (B, N)}
    if attn_dropout or dropout:
        options |= {"attn_dropout": attn_dropout, "dropout": dropout}
        shapes |= {"seed": (2,)}
    if drop_path:
        shapes |= {"drop_path_scale": (B,)}
    return Case("layernorm_attention", name, why, shapes, options)


def mlp_case(name, why, B, N, C, F, dropout=0.0, drop_path=False, biases=True):
    shapes = {"x": (B, N, C), "norm_weight": (C,), "norm_bias": (C,), "fc1_weight": (F, C), "fc1_bias": (F,)}
    shapes |= {"fc2_weight": (C, F), "fc2_bias": (C,)}
    options = {}
    if not biases:
        options = {"norm_bias": None, "fc1_bias": None, "fc2_bias": None}
        shapes = {key: shape for key, shape in shapes.items() if key not in options}
    if dropout:
        options |= {"dropout": dropout}
        shapes |= {"seed": (2,)}
    if drop_path:
        shapes |= {"drop_path_scale": (B,)}
    return Case("layernorm_mlp", name, why, shapes, options)


CASES = [
    conv_case("B2_3x32x32_C256_k3", "CCT-7/3x1", (2, 3, 32, 32), 256, (3, 3), padding=1),
    conv_case("B2_3x32x32_C64_k3_stage", "CCT-2/3x2, first stage", (2, 3, 32, 32), 64, (3, 3), padding=1, tokens=False),
    conv_case("B3_64x16x16_C128_k3", "CCT-2/3x2, second stage", (3, 64, 16, 16), 128, (3, 3), padding=1),
    conv_case(
        "B1_3x224x224_C64_k7", "CCT-14/7x2, first stage", (1, 3, 224, 224), 64, (7, 7), stride=2, padding=3, tokens=False
    ),
    conv_case(
        "B2_48x7x9_C70_k3", "Winograd tiles that reach beyond both sides", (2, 48, 7, 9), 70, (3, 3), True, padding=(2, 0)
    ),
    conv_case("B1_32x4x3_C5_k3_nopool", "few of them", (1, 32, 4, 3), 5, (3, 3), padding=1, relu=False, pool=None),
    conv_case("B1_64x56x56_C384_k7", "CCT-14/7x2, second stage", (1, 64, 56, 56), 384, (7, 7), stride=2, padding=3),
    conv_case(
        "B2_32x11x10_C250_k5",
        "kernel rows as they lie in the image",
        (2, 32, 11, 10),
        250,
        (5, 5),
        True,
        stride=(2, 1),
        padding=(1, 2),
    ),
    conv_case("B2_3x32x32_C256_p4", "ViT-Lite-7/4", (2, 3, 32, 32), 256, (4, 4), True, stride=4, relu=False, pool=None),
    conv_case("B2_3x32x24_C72_p8", "patches of 8 x 8", (2, 3, 32, 24), 72, (8, 8), True, stride=8, relu=False, pool=None),
    conv_case("B1_3x48x32_C72_p16", "ViT/16, small", (1, 3, 48, 32), 72, (16, 16), True, stride=16, relu=False, pool=None),
    conv_case("B2_1x33x300_C128_k4", "text", (2, 1, 33, 300), 128, (4, 300), padding=(2, 0), pool=((2, 1), (2, 1), 0)),
    conv_case("B2_5x19x23_C70_k5x3", "no size a power of two", (2, 5, 19, 23), 70, (5, 3), True, stride=(2, 1), padding=(1, 2)),
    conv_case(
        "B3_3x17x9_C20_k2_s5",
        "stride above the kernel: pixels that nothing sees",
        (3, 3, 17, 9),
        20,
        (2, 2),
        stride=5,
        pool=(2, 1, 1),
    ),
    conv_case("B2_4x11x13_C33_k3_norelu", "pooling of signed values", (2, 4, 11, 13), 33, (3, 3), True, padding=1, relu=False),
    conv_case("B2_2x9x31_C40_k3_nopool", "ReLU alone", (2, 2, 9, 31), 40, (3, 3), padding=(3, 1), pool=None, tokens=False),
    conv_case(
        "B1_6x5x6_C9_k5_pool",
        "windows of 3 x 4 pixels that overlap more than twice",
        (1, 6, 5, 6),
        9,
        (3, 2),
        padding=2,
        pool=((3, 4), 1, (1, 2)),
    ),
    conv_case("B1_1x1x1_C1_k1", "a single pixel", (1, 1, 1, 1), 1, (1, 1)),
    conv_case("B0_3x32x32_C64_k3", "empty batch", (0, 3, 32, 32), 64, (3, 3), padding=1),
    attention_case("B2_N256_C256_H4", "CCT-7/3x1", 2, 256, 256, 4),
    attention_case("B3_N64_C128_H2", "CCT-2/3x2, odd batch", 3, 64, 128, 2),
    attention_case("B1_N196_C384_H6", "CCT-14/7x2, one image shared by the threads", 1, 196, 384, 6),
    attention_case("B2_N65_C256_H4", "ViT-Lite-7/4 with its class token", 2, 65, 256, 4),
    attention_case("B2_N33_C300_H4", "text Transformer: head dim 75", 2, 33, 300, 4),
    attention_case("B2_N20_C160_H1_train", "head dim 160, with dropout", 2, 20, 160, 1, 0.2),
    attention_case("B3_N1_C64_H1", "a single token", 3, 1, 64, 1),
    attention_case("B2_N7_C12_H3", "narrower than any vector", 2, 7, 12, 3),
    attention_case("B1_N1030_C64_H2", "long", 1, 1030, 64, 2),
    attention_case("B3_N70_C128_H2_train", "both dropouts and drop-path", 3, 70, 128, 2, 0.2, 0.3, drop_path=True),
    attention_case("B3_N34_C128_H2_mask", "key mask with an empty row", 3, 34, 128, 2, mask=True),
    attention_case("B3_N40_C96_H2_mask_train", "mask, dropout, qkv bias", 3, 40, 96, 2, 0.2, 0.1, mask=True, qkv_bias=True),
    attention_case("B0_N64_C128_H2", "empty batch", 0, 64, 128, 2),
    mlp_case("B2_N256_C256_F512", "CCT-7/3x1", 2, 256, 256, 512),
    mlp_case("B3_N64_C128_F128", "CCT-2/3x2, odd batch", 3, 64, 128, 128),
    mlp_case("B1_N196_C384_F1152", "CCT-14/7x2", 1, 196, 384, 1152),
    mlp_case("B2_N63_C200_F136", "no size a power of two", 2, 63, 200, 136),
    mlp_case("B2_N1_C64_F64", "a single token", 2, 1, 64, 64),
    mlp_case("B1_N300_C12_F7", "narrower than any vector, more rows than a block", 1, 300, 12, 7),
    mlp_case("B4_N17_C64_F96_train", "dropout and drop-path", 4, 17, 64, 96, dropout=0.3, drop_path=True),
    mlp_case("B2_N33_C128_F130_plain", "without biases", 2, 33, 128, 130, biases=False),
    mlp_case("B0_N64_C128_F128", "empty batch", 0, 64, 128, 128),
    seqpool_case("B2_N256_C256", "CCT-7/3x1", 2, 256, 256),
    seqpool_case("B3_N64_C128", "CCT-2/3x2, odd batch", 3, 64, 128),
    seqpool_case("B1_N196_C384", "CCT-14/7x2, one image shared by the threads", 1, 196, 384),
    seqpool_case("B2_N63_C200", "no size a power of two", 2, 63, 200),
    seqpool_case("B2_N1_C64", "a single token", 2, 1, 64),
    seqpool_case("B1_N1024_C40", "long, narrow", 1, 1024, 40),
    seqpool_case("B2_N17_C7", "narrower than any vector", 2, 17, 7),
    seqpool_case("B5_N33_C256_plain", "without the norm", 5, 33, 256, norm=False),
    seqpool_case("B0_N64_C128", "empty batch", 0, 64, 128),
]


CONSTANTS = ("drop_path_scale", "mask", "seed")  # arguments without a gradient


def cases(op):
    return [case for case in CASES if case.op == op]


def make_inputs(case, dtype, device="cpu", seed=0):
    """Random tensors for a case, rounded to `dtype`: O(1) activations, norm weights near 1, weights scaled by fan-in."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in case.shapes.items():
        if device == "meta":
            constants = {"seed": torch.int64, "mask": torch.bool}
            tensors[name] = torch.empty(shape, dtype=constants.get(name, dtype), device=device)
            continue
        value = torch.randn(shape, generator=generator, dtype=torch.float64)
        if name == "seed":
            tensors[name] = torch.tensor([1234567890123, 7], device=device)
            continue
        if name == "mask":  # lengths from the whole sequence down to nothing
            lengths = torch.linspace(shape[1], 0, shape[0]).long()[:, None]
            tensors[name] = (torch.arange(shape[1]) < lengths).to(device)
            continue
        if name == "drop_path_scale":  # some samples dropped, the others scaled
            value = (value > -0.5) * 1.25
        if name == "norm_weight":
            value = 1 + 0.1 * value
        elif name.endswith("bias"):
            value = 0.1 * value
        elif name.endswith("weight"):
            value = value * 1.5 / max(1, value.shape[1:].numel()) ** 0.5
        tensors[name] = value.to(dtype).to(device)
    return tensors


def run(function, tensors, options, dout=None):
    """Output and gradients by name: {"out": ..., "dx": ..., "dweight": ...}. dout: the incoming gradient."""
    leaves = {name: t.detach().clone().requires_grad_(name not in CONSTANTS) for name, t in tensors.items()}
    out = function(**leaves, **options)
    results = {"out": out.detach()}
    if dout is not None:
        wanted = {name: t for name, t in leaves.items() if t.requires_grad}
        gradients = torch.autograd.grad(out, list(wanted.values()), dout.to(out.dtype), allow_unused=True)
        results |= {
            f"d{name}": torch.zeros_like(t) if g is None else g for (name, t), g in zip(wanted.items(), gradients, strict=True)
        }
    return results


def compare(case, dtype, function, device="cpu", seed=0):
    """Runs `function` (op without its backend argument) on a case, and holds it to the rule."""
    tensors = make_inputs(case, dtype, device, seed)
    plain = getattr(reference, case.op)
    shape = plain(**tensors, **case.options).shape
    dout = torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64).to(dtype).to(device)
    double = {name: t.double() if t.is_floating_point() else t for name, t in tensors.items()}
    exact = run(plain, double, case.options, dout.double())
    torch_own = run(plain, tensors, case.options, dout)
    ours = run(function, tensors, case.options, dout)
    for name, value in ours.items():
        assert_no_worse(f"{case} {name}", value, torch_own[name], exact[name], dtype)


def assert_no_worse(what, ours, torch_own, exact, dtype):
    """The rule at the top of this file."""
    assert ours.shape == exact.shape, f"{what}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    assert ours.dtype == torch_own.dtype, f"{what}: dtype {ours.dtype}, expected {torch_own.dtype}"
    if exact.numel() == 0:
        return
    error, allowed = max_error(ours, exact), max_error(torch_own, exact)
    bound = 2 * allowed + 4 * torch.finfo(dtype).eps * exact.abs().max().item()
    assert error <= bound, f"{what}: error {error:.3g} above {bound:.3g} (PyTorch's own {allowed:.3g})"


def max_error(value, exact):
    """max|value - exact|; NaN counts as infinite."""
    return (value.double() - exact.double()).abs().nan_to_num(nan=float("inf")).max().item()


@contextlib.contextmanager
def poisoned_memory():
    """Fills uninitialised memory with NaN, so that a kernel that leaves an element unwritten is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill
