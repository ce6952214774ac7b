"""Parity of the Triton kernels on CPU tensors, under triton's interpreter.

The interpreter must be chosen before triton is imported and holds for the whole process, so pytest does not collect this file:
test_triton.py runs it in a process of its own. By hand: `TRITON_INTERPRET=1 pytest tests/triton_interpreter.py`.
bfloat16 is absent: the interpreter computes it wrongly, without a word. Programs run one by one in numpy: small cases only.
"""

import os
from dataclasses import replace

import pytest
import torch

import cct_kernels
from cct_kernels import dispatch, testing, triton
from cct_kernels.encoder import Block, encoder
from cct_kernels.testing import compare, make_inputs, poisoned_memory, run
from cct_kernels.triton import attention, conv_tokenizer, launch, linear, row_segment

assert os.environ.get("TRITON_INTERPRET") == "1", "set TRITON_INTERPRET=1 before pytest starts"
for op in dispatch.OPS:
    if "triton" in dispatch.TABLE.get((op, "cuda"), ()):
        dispatch.TABLE[op, "cpu"] = (*dispatch.TABLE.get((op, "cpu"), ()), "triton")

# The small blocks of float32 cost a Python step each. Which blocks a GPU takes is test_triton.py's matter.
linear.CONFIGS["sm_90"][4] = linear.CONFIGS["sm_90"][2]
for kind in conv_tokenizer.CONFIGS["sm_90"].values():
    kind[2] = kind[4] = (128, 64, 64, 4, 1)
DTYPES = [torch.float32, torch.float16]
LARGEST = {"seqpool": 70_000, "conv_tokenizer": 10_000}  # elements of x


def small_cases(op):
    return [case for case in testing.cases(op) if torch.Size(case.shapes["x"]).numel() <= LARGEST.get(op, 20_000)]


def on_triton(op):
    return lambda **arguments: getattr(cct_kernels, op)(**arguments, backend="triton")


def parity(*ops):
    """Parameters: every small case of the ops in both dtypes."""
    return pytest.mark.parametrize(
        ("case", "dtype"),
        [pytest.param(c, d, id=f"{c}-{str(d)[6:]}") for op in ops for c in small_cases(op) for d in DTYPES],
    )


@parity("conv_tokenizer", "seqpool", "layernorm_mlp", "layernorm_attention")
def test_parity(case, dtype):
    with poisoned_memory():
        compare(case, dtype, on_triton(case.op))


NON_CONTIGUOUS = [
    "conv_tokenizer-B2_4x11x13_C33_k3_norelu",
    "seqpool-B2_N17_C7",
    "layernorm_mlp-B1_N300_C12_F7",
    "layernorm_mlp-B4_N17_C64_F96_train",
    "layernorm_attention-B2_N7_C12_H3",
    "layernorm_attention-B3_N70_C128_H2_train",
    "layernorm_attention-B3_N40_C96_H2_mask_train",
]


@pytest.mark.parametrize("name", NON_CONTIGUOUS)
def test_non_contiguous(name):
    """Every tensor with gaps between its elements, the incoming gradient expanded: bit for bit the same."""
    (case,) = (case for case in testing.CASES if str(case) == name)
    tensors = make_inputs(case, torch.float32)
    dout = torch.ones(1).expand(on_triton(case.op)(**tensors, **case.options).shape)
    results = [gradients(case.op, case, t, dout) for t in (tensors, {n: with_gaps(t) for n, t in tensors.items()})]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_layernorm_mlp_in_one_kernel_non_contiguous():
    """One drop-path factor expanded over the batch."""
    (case,) = (case for case in testing.cases("layernorm_mlp") if case.name == "B4_N17_C64_F96_train")
    case = replace(case, options={})
    tensors = make_inputs(case, torch.float16) | {"drop_path_scale": torch.full((4,), 1.25, dtype=torch.float16)}
    expanded = {n: with_gaps(t) for n, t in tensors.items()} | {"drop_path_scale": tensors["drop_path_scale"][:1].expand(4)}
    dout = torch.ones(1, dtype=torch.float16).expand(tensors["x"].shape)
    results = [gradients("layernorm_mlp", case, t, dout) for t in (tensors, expanded)]
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
def test_layernorm_mlp_of_no_tokens(dtype):
    (case,) = (case for case in testing.cases("layernorm_mlp") if case.name == "B2_N1_C64_F64")
    compare(replace(case, shapes=case.shapes | {"x": (2, 0, 64)}), dtype, on_triton("layernorm_mlp"))


def with_gaps(tensor):
    gaps = ~tensor if tensor.dtype == torch.bool else tensor + 1
    return torch.stack([tensor, gaps], -1)[..., 0]


def gradients(op, case, tensors, dout):
    wanted = [t.requires_grad_() for n, t in tensors.items() if n not in testing.CONSTANTS]
    out = on_triton(op)(**tensors, **case.options)
    return out, *torch.autograd.grad(out, wanted, dout)


def test_seqpool_one_program_an_image(monkeypatch):
    """With more images than the GPU holds, an image is no longer split: the other half of the kernels."""
    monkeypatch.setitem(launch.PROGRAMS, "sm_90", 1)
    for case in (testing.cases("seqpool")[3], testing.cases("seqpool")[7]):
        compare(case, torch.float32, on_triton("seqpool"))


def test_seqpool_takes_scores_of_minus_infinity():
    """All of the first block's, or of a split's."""
    x = torch.randn(1, 140, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1e-9, 1.0])
    x[:, :100, 0] = 1e30
    weight = torch.tensor([[-1e10, 0.0]])
    expected = cct_kernels.seqpool(x, weight, backend="reference")
    torch.testing.assert_close(on_triton("seqpool")(x=x, weight=weight), expected)
    assert expected.isfinite().all()


@pytest.mark.parametrize("name", ["B2_5x19x23_C70_k5x3", "B2_4x11x13_C33_k3_norelu"])
def test_conv_tokenizer_of_long_products(name, monkeypatch):
    """Pooling in a kernel of its own, and dx some images at a time, as for the large kernels of CCT-14."""
    monkeypatch.setattr(conv_tokenizer, "LONG_K", 0)
    monkeypatch.setattr(conv_tokenizer, "DCOL_BYTES", 1)
    (case,) = (case for case in testing.cases("conv_tokenizer") if case.name == name)
    with poisoned_memory():
        compare(case, torch.float16, on_triton("conv_tokenizer"))


def test_conv_tokenizer_of_single_pixels():
    """A 1 x 1 kernel: the weight as a matrix is a mere view."""
    case = testing.Case("conv_tokenizer", "k1", "", {"x": (2, 5, 4, 4), "weight": (7, 5, 1, 1)}, {"pool": None})
    compare(case, torch.float32, on_triton("conv_tokenizer"))


def test_layernorm_mlp_in_one_kernel_with_drop_path():
    (case,) = (case for case in testing.cases("layernorm_mlp") if case.name == "B4_N17_C64_F96_train")
    compare(replace(case, options={}), torch.float16, on_triton("layernorm_mlp"))


@pytest.mark.parametrize("name", ["B3_N40_C96_H2_mask_train", "B2_N33_C300_H4"])
def test_layernorm_attention_in_blocks_of_keys(name, monkeypatch):
    """The way of long rows, on short ones."""
    table = {2: {None: (32, 64 if "train" in name else 16, 4, 1)}}
    monkeypatch.setitem(attention.CONFIGS, "sm_90", dict.fromkeys(attention.CONFIGS["sm_90"], table))
    (case,) = (case for case in testing.cases("layernorm_attention") if case.name == name)
    compare(case, torch.float16, on_triton("layernorm_attention"))


@pytest.mark.parametrize("op", ["layernorm_mlp", "layernorm_attention"])
def test_autocast(op):
    """float32 tensors, float16 products: no worse than PyTorch's autocast."""
    case = small_cases(op)[3]
    tensors = make_inputs(case, torch.float32)
    plain = getattr(cct_kernels.reference, op)
    dout = torch.randn(case.shapes["x"], generator=torch.Generator().manual_seed(1))
    exact = run(plain, {n: t.double() if t.is_floating_point() else t for n, t in tensors.items()}, case.options, dout.double())
    with torch.autocast("cpu", torch.float16):
        own, ours = run(plain, tensors, case.options, dout), run(on_triton(op), tensors, case.options, dout)
    for name, value in ours.items():
        testing.assert_no_worse(name, value, own[name].to(value.dtype), exact[name], torch.float16)


def test_seqpool_opcheck():
    """Schema, fake kernels and aliasing of the operators, with the norm, without it, and on an empty batch."""
    triton.load()
    forward, backward = torch.ops.cct_triton.seqpool_forward.default, torch.ops.cct_triton.seqpool_backward.default
    for name in ("B2_N17_C7", "B5_N33_C256_plain", "B0_N64_C128"):
        (case,) = (case for case in testing.cases("seqpool") if case.name == name)
        t = make_inputs(case, torch.float32)
        args = t["x"], t["weight"], t.get("norm_weight"), t.get("norm_bias")
        torch.library.opcheck(forward, (*args, 1e-5))
        out, *saved = forward(*args, 1e-5)
        torch.library.opcheck(backward, (torch.randn_like(out), *args, *saved))


@pytest.mark.parametrize("op", ["conv_tokenizer", "seqpool", "layernorm_mlp", "layernorm_attention"])
def test_operators(op):
    """A full-graph compilation through the public op: the fake kernels give what the operators give."""
    case = small_cases(op)[-2]
    tensors = make_inputs(case, torch.float32)
    wanted = [t.requires_grad_() for name, t in tensors.items() if name not in testing.CONSTANTS]
    function = on_triton(op)
    compiled = torch.compile(lambda t: function(**t, **case.options), fullgraph=True, backend="aot_eager")
    eager, traced = function(**tensors, **case.options), compiled(tensors)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(out.square().sum(), wanted) for out in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


# Of the encoder: what each case is for -> (B, N, C, nh, F, layers), and options.
# "segments_train" runs backward op by op, on what the segments saved: they have no dropout in backward.
SHORT = torch.arange(13) < torch.tensor([[13], [6]])
ENCODERS = {
    "segments": ((2, 17, 64, 2, 96, 3), {}),
    "segments_narrow_drop_path": ((3, 9, 40, 2, 50, 2), {"drop_path": True}),
    "segments_train": ((2, 13, 72, 3, 70, 2), {"attn_dropout": 0.1, "dropout": 0.2, "drop_path": True, "mask": SHORT}),
    "ops_train": ((2, 13, 72, 3, 70, 2), {"attn_dropout": 0.1, "dropout": 0.2, "drop_path": True, "mask": SHORT}),
}


def encoder_case(name, dtype):
    """x and blocks in one dict of tensors, and a function of them that calls an encoder with the options."""
    (B, N, C, heads, F, L), options = ENCODERS[name]
    sizes = [(C,), (C,), (3 * C, C), (C, C), (C,), (C,), (C,), (F, C), (F,), (C, F), (C,)]
    shapes = {"x": (B, N, C)}
    for i in range(L):
        shapes |= {f"{i}_{name}": size for name, size in zip(Block._fields, sizes, strict=True)}
    case = testing.Case("encoder", name, "", shapes, {})
    tensors = make_inputs(case, dtype)
    tensors |= {n: 1 + t / 15 for n, t in tensors.items() if n.endswith(("norm_weight", "norm1_weight"))}
    generator = torch.Generator().manual_seed(2)
    scales = 1.25 * (torch.rand(L, 2, B, generator=generator) > 0.3) if options.get("drop_path") else None
    fixed = {"num_heads": heads, "mask": options.get("mask"), "seed": torch.tensor([1234567890123, 7])}
    fixed |= {p: options.get(p, 0.0) for p in ("attn_dropout", "dropout")}

    def call(function, x, **tensors):
        blocks = [Block(*(tensors[f"{i}_{name}"] for name in Block._fields)) for i in range(L)]
        return function(x, blocks, drop_path_scales=None if scales is None else scales.to(x.dtype), **fixed)

    return tensors, call


@pytest.fixture
def small_segments(monkeypatch):
    """Row segments for the few rows of a test and for float32 too."""
    table = {256: row_segment.Config(32, 64, 64, 4, 1)}
    monkeypatch.setitem(row_segment.CONFIGS, "sm_90", dict.fromkeys(row_segment.CONFIGS["sm_90"], table))
    monkeypatch.setattr(row_segment, "BYTES", (2, 4))
    monkeypatch.setitem(launch.PROGRAMS, "sm_90", 1)


def on_triton_encoder(*args, **options):
    return encoder(*args, **options, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float16"])
@pytest.mark.parametrize("name", ENCODERS)
def test_encoder_parity(name, dtype, request):
    """Output and every gradient of every layer; those with dropout hold only if all passes drop what philox.py says."""
    if name.startswith("segments"):
        request.getfixturevalue("small_segments")
    tensors, call = encoder_case(name, dtype)
    dout = torch.randn(tensors["x"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)
    reference = cct_kernels.reference.encoder
    exact = run(lambda **t: call(reference, **t), {n: t.double() for n, t in tensors.items()}, {}, dout.double())
    own = run(lambda **t: call(reference, **t), tensors, {}, dout)
    with poisoned_memory():
        ours = run(lambda **t: call(on_triton_encoder, **t), tensors, {}, dout)
    for key, value in ours.items():
        testing.assert_no_worse(f"{name} {key}", value, own[key], exact[key], dtype)


def needs_cpu(op):
    reason = dispatch.why_not(op, "cpu", "cpu", torch.float32)
    if reason:
        pytest.skip(f"{op} on the CPU: {reason}")


def test_encoder_drops_what_the_cpu_drops(small_segments):
    """The same seed on two backends: outputs are equal but for rounding, so each mask is."""
    needs_cpu("encoder")
    tensors, call = encoder_case("segments_train", torch.float32)
    on_cpu = call(lambda *args, **options: encoder(*args, **options, backend="cpu"), **tensors)
    torch.testing.assert_close(call(on_triton_encoder, **tensors), on_cpu, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["layernorm_mlp", "layernorm_attention"])
def test_drops_what_the_cpu_drops(op):
    needs_cpu(op)
    case = next(case for case in small_cases(op) if case.options.get("dropout"))
    tensors = make_inputs(case, torch.float32)
    on_cpu = getattr(cct_kernels, op)(**tensors, **case.options, backend="cpu")
    torch.testing.assert_close(on_triton(op)(**tensors, **case.options), on_cpu, rtol=1e-5, atol=1e-5)


def test_encoder_without_gradients(small_segments):
    """Inference keeps nothing, gives the same, and takes tensors with gaps."""
    tensors, call = encoder_case("segments_narrow_drop_path", torch.float16)
    kept = call(on_triton_encoder, **{n: t.requires_grad_() for n, t in tensors.items()})
    with torch.no_grad():
        out = call(on_triton_encoder, **{n: with_gaps(t) for n, t in tensors.items()})
    assert kept.requires_grad and not out.requires_grad and torch.equal(out, kept)


def test_encoder_operators(small_segments):
    """Schema and fake kernels through opcheck, and a full-graph compilation through the public op."""
    triton.load()
    forward, backward = torch.ops.cct_triton.encoder_forward.default, torch.ops.cct_triton.encoder_backward.default
    tensors, call = encoder_case("segments_narrow_drop_path", torch.float32)
    x, *parameters = tensors.values()
    args = x, parameters, 2, None, 0.0, 0.0, None, None, 1e-5, torch.float32
    out, saved = forward(*args, True)
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(forward, (*args, True), test_utils=checks)
    torch.library.opcheck(backward, (out, *args, saved, True), test_utils=checks)
    wanted = [t.requires_grad_() for t in tensors.values()]
    compiled = torch.compile(lambda t: call(on_triton_encoder, **t), fullgraph=True, backend="aot_eager")
    eager, traced = call(on_triton_encoder, **tensors), compiled(tensors)
    torch.testing.assert_close(traced, eager)
    for a, b in zip(*(torch.autograd.grad(o.square().sum(), wanted) for o in (eager, traced)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("parts", [1, 128, 150])
def test_sum_of_many_parts(parts):
    partial = torch.randn(parts, 2, 35)
    torch.testing.assert_close(linear.sum_partials(partial, torch.float32), partial.sum(0))
