"""The encoder op: equal to the loop over its two ops on every backend that runs here, its contract, its use by the models."""

import pytest
import torch

from cct.models import create_model
from cct_kernels import encoder, layernorm_attention, layernorm_mlp, reference
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import assert_no_worse, poisoned_memory

# name: B, N, C, heads, F, blocks, mask
CASES = {
    "CCT-7, odd batch": (3, 256, 256, 4, 512, 2, False),
    "CCT-2, many images a thread": (9, 64, 128, 2, 128, 2, False),
    "CCT-14, one image": (1, 196, 384, 6, 1152, 1, False),
    "class token": (2, 65, 256, 4, 512, 2, False),
    "text, mask, head dim 75": (3, 33, 300, 4, 300, 2, True),
    "narrow": (5, 7, 12, 3, 20, 3, True),
    "one token": (2, 1, 64, 1, 96, 2, False),
    "CVT-7, one image": (1, 64, 256, 4, 512, 2, False),
    "ViT-Lite-7, one image": (1, 65, 256, 4, 512, 2, False),
    "few rows, mask, 300 keys": (1, 300, 384, 3, 600, 1, True),
    "CCT-7, one image": (1, 256, 256, 4, 512, 2, False),
    "few rows, one token": (2, 1, 192, 3, 500, 2, False),
    "few rows, odd": (2, 11, 190, 5, 333, 3, True),
    "empty batch": (0, 8, 64, 1, 64, 1, False),
    "no block": (2, 8, 64, 1, 64, 0, False),
}


def make(name, dtype):
    B, N, C, heads, F, depth, masked = CASES[name]
    generator = torch.Generator().manual_seed(7)

    def draw(*shape, scale=1.0, shift=0.0):
        return (shift + scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)

    def norm():
        return draw(C, scale=0.1, shift=1.0), draw(C, scale=0.1)

    blocks = [
        (
            *norm(), draw(3 * C, C, scale=1.5 * C**-0.5), draw(C, C, scale=C**-0.5), draw(C, scale=0.1),
            *norm(), draw(F, C, scale=C**-0.5), draw(F, scale=0.1), draw(C, F, scale=F**-0.5), draw(C, scale=0.1),
        )
        for _ in range(depth)
    ]  # fmt: skip
    lengths = torch.linspace(N, 0, B).long() if B > 1 else torch.tensor([N * 3 // 4])
    mask = torch.arange(N) < lengths[:, None] if masked else None
    return draw(B, N, C), blocks, {"num_heads": heads, "mask": mask}


def double(blocks):
    return [[t.double() for t in block] for block in blocks]


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", CASES)
def test_parity_at_each_instruction_set(isa, threads, name, dtype):
    x, blocks, options = make(name, dtype)
    exact = reference.encoder(x.double(), double(blocks), **options)
    with poisoned_memory(), torch.no_grad():
        out = encoder(x, blocks, **options, backend="cpu")
    assert_no_worse(name, out, reference.encoder(x, blocks, **options), exact, dtype)


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["CCT-7, odd batch", "CCT-2, many images a thread", "narrow"])
def test_one_op_and_the_loop_agree(name, number, dtype, set_threads):
    """To the bit, whether the threads divide images or rows."""
    set_threads(number)
    x, blocks, options = make(name, dtype)
    with torch.no_grad():
        one = encoder(x, blocks, **options)
        for block in blocks:
            x = layernorm_attention(x, *block[:5], **options)
            x = layernorm_mlp(x, *block[5:])
    assert torch.equal(one, x)


FEW_ROWS = [name for name in CASES if "one image" in name or "few rows" in name or "75" in name]


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", FEW_ROWS)
def test_few_rows_do_not_depend_on_threads_or_neighbours(name, dtype, set_threads):
    """To the bit, however many threads share the weights, and whatever else is in the batch."""
    x, blocks, options = make(name, dtype)
    results = []
    with torch.no_grad():
        for number in (1, 2, 3, 5):
            set_threads(number)
            results.append(encoder(x, blocks, **options))
        if name == "CCT-7, one image":  # two of them are not few
            alone = results[0]
        elif len(x) == 1:
            both = {**options, "mask": None if options["mask"] is None else options["mask"].expand(2, -1)}
            alone = encoder(torch.cat([x, x.flip(1)]), blocks, **both)[:1]
        else:
            first = {**options, "mask": None if options["mask"] is None else options["mask"][:1]}
            alone = encoder(x[:1], blocks, **first)
    assert all(torch.equal(results[0], other) for other in results[1:])
    assert torch.equal(results[0][:1], alone)


def test_gradients_and_dropout_are_those_of_the_loop():
    """Block l takes offset + 2 l for its attention and offset + 2 l + 1 for its MLP."""
    x, blocks, options = make("CCT-2, many images a thread", torch.float32)
    scales = torch.tensor([[[0.0, 1.25, 1.25] * 3] * 2] * 2)
    options |= {"attn_dropout": 0.1, "dropout": 0.2, "seed": torch.tensor([5, 9]), "drop_path_scales": scales}
    leaves = [x, *(t for block in blocks for t in block)]
    dout = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    for leaf in leaves:
        leaf.requires_grad_()
    ours = torch.autograd.grad(encoder(x, blocks, **options), leaves, dout)
    y = x
    for i, block in enumerate(blocks):
        common = {"dropout": 0.2}
        y = layernorm_attention(
            y, *block[:5], num_heads=2, attn_dropout=0.1, drop_path_scale=scales[i, 0], seed=torch.tensor([5, 9 + 2 * i]),
            **common,
        )  # fmt: skip
        y = layernorm_mlp(y, *block[5:], drop_path_scale=scales[i, 1], seed=torch.tensor([5, 10 + 2 * i]), **common)
    assert all(torch.equal(a, b) for a, b in zip(ours, torch.autograd.grad(y, leaves, dout), strict=True))


def test_autocast_and_inference_mode(least_bfloat16_error):
    x, blocks, options = make("class token", torch.float32)
    exact = reference.encoder(x.double(), double(blocks), **options)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        out, eager = encoder(x, blocks, **options), reference.encoder(x, blocks, **options)
    assert out.dtype == torch.float32
    error, allowed = ((v.double() - exact).abs().max() for v in (out, eager))
    assert least_bfloat16_error < error <= 2 * allowed


def test_models_use_it_and_see_every_change_of_a_weight():
    torch.manual_seed(0)
    model = create_model("cct_2_3x2", img_size=16).eval()
    x = torch.randn(3, 3, 16, 16)
    for change in (
        lambda p: None,
        lambda p: p.add_(0.01),
        lambda p: p.data.mul_(1.5),
        lambda p: p.numpy().__setitem__(0, 0.5),
        lambda p: p.data.__setitem__((3, 5), 2.0),
    ):
        with torch.no_grad():
            change(model.classifier.blocks[1].linear1.weight.detach())
            fused = model(x)
            model.fused = False
            plain = model(x)
            model.fused = True
        torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)


def test_hooks_on_a_block_are_called():
    model = create_model("cct_2_3x2", img_size=16).eval()
    x, seen = torch.randn(2, 3, 16, 16), []
    with torch.no_grad():
        plain = model(x)
        handle = model.classifier.blocks[0].register_forward_hook(lambda module, args, out: seen.append(out.shape))
        torch.testing.assert_close(model(x), plain)
        handle.remove()
        model(x)
    assert seen == [(2, 16, 128)]


def test_a_block_in_another_mode_runs_in_its_own():
    model = create_model("cct_2_3x2", img_size=16, attention_dropout=0.5, stochastic_depth=0.5)
    for block in model.classifier.blocks:
        block.eval()
    x = torch.randn(2, 3, 16, 16)
    assert model.training and torch.equal(model(x), model(x))


def test_fullgraph_compile():
    x, blocks, options = make("narrow", torch.float32)
    with torch.no_grad():
        compiled = torch.compile(lambda x: encoder(x, blocks, **options), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(x), encoder(x, blocks, **options))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, b: (x[0], b), "encoder: x has shape"),
        (lambda x, b: (x, [block[:10] for block in b]), r"encoder: blocks\[0\] has 10 tensors; expected norm_weight"),
        (lambda x, b: (x, [(*block[:9], None, block[10]) for block in b]), "fc2_weight is NoneType"),
        (lambda x, b: (x[..., :9], b), "norm_weight has shape"),
        (lambda x, b: (x, [tuple(t.double() for t in block) for block in b]), "norm_weight has dtype"),
    ],
)
def test_bad_input(change, message):
    x, blocks, options = make("narrow", torch.float32)
    with pytest.raises(ValueError, match=message), torch.no_grad():
        encoder(*change(x, blocks), **options)


@pytest.mark.parametrize("num_heads", [0, 1.0, 2**70])  # the last is more than the dispatcher takes
def test_a_number_of_heads_that_is_none(num_heads):
    x, blocks, options = make("narrow", torch.float32)
    with pytest.raises(ValueError, match="encoder: num_heads is"):
        encoder(x, blocks, **options | {"num_heads": num_heads})


def test_malformed_calls_of_the_native_op_raise():
    x, blocks, _ = make("narrow", torch.float32)
    flat = [t for block in blocks for t in block]
    native = torch.ops.cct_kernels.encoder_forward
    for args in ((x, flat[:5], 3, None), (x[0], flat, 3, None), (x, flat, 5, None), (x, flat, 3, torch.ones(5, 3).bool())):
        with pytest.raises(ValueError):
            native(*args, 1e-5, torch.float32)
