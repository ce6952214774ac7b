"""The whole network in one call: equal to the bit to its ops in turn, but for a head in bfloat16; whoever looks at a module is
still called."""

import copy

import pytest
import torch

from cct.models import create_model
from cct_kernels import compact_transformer
from cct_kernels.dispatch import DTYPES
from cct_kernels.testing import assert_no_worse, poisoned_memory

MODELS = {
    "cct_2_3x2": {"img_size": (12, 20)},
    "cct_7_3x1": {"img_size": 16, "num_layers": 2},
    "cct_14_7x2_224": {"img_size": 33, "num_layers": 1, "num_classes": 3},
    "cvt_7_4": {"img_size": 16, "num_layers": 1, "positional_embedding": "sine"},
    "vit_lite_7_4": {"img_size": 12, "num_layers": 2},
    "cct_2_3x2 without embedding and head": {"img_size": 16, "positional_embedding": "none", "num_classes": 0},
}


def make(name, dtype=torch.float32, batch=3):
    torch.manual_seed(3)
    model = create_model(name.split()[0], **MODELS[name]).eval().to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape).to(dtype))
    return model, torch.randn(batch, 3, *model.img_size).to(dtype)


def in_turn(model, x):
    """What `forward` of the base class does."""
    return model.classifier(*model._enter(x, None))


def expect_same(out, ops):
    """Bit by bit; in bfloat16 the head's sums, see `expect_same_features` for all before it, may be rounded the other way."""
    assert out.dtype == ops.dtype
    rounding = 2**-7 if out.dtype == torch.bfloat16 else 0
    torch.testing.assert_close(out, ops, rtol=rounding, atol=1e-5 if rounding else 0)


def expect_same_features(model, x):
    """Bit by bit, without the head."""
    model = copy.deepcopy(model)
    model.reset_classifier(0)
    out, ops = model(x), in_turn(model, x)
    assert out.dtype == ops.dtype and torch.equal(out, ops)


@pytest.fixture
def calls(monkeypatch):
    """How often the native call was made."""
    import importlib

    module, made = importlib.import_module("cct_kernels.compact_transformer"), []
    native = torch.ops.cct_kernels.compact_transformer_forward

    class Ops:
        def compact_transformer_forward(self, *args):
            made.append(1)
            return native(*args)

    class Torch:
        ops = type("", (), {"cct_kernels": Ops()})

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(module, "torch", Torch())
    return made


@pytest.mark.parametrize("dtype", DTYPES["cpu"], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("name", MODELS)
def test_parity_at_each_instruction_set(isa, threads, name, dtype, calls):
    model, x = make(name, dtype)
    with poisoned_memory(), torch.no_grad():
        out, ops = model(x), in_turn(model, x)
        expect_same_features(model, x)
    assert len(calls) == 2
    expect_same(out, ops)
    model.fused = False
    with torch.no_grad():
        assert_no_worse(name, out, model(x), model.double()(x.double()), dtype)


@pytest.mark.parametrize("batch", [0, 1, 2, 5])
def test_batches_and_autocast(batch, calls):
    model, x = make("cct_2_3x2", batch=batch)
    with torch.inference_mode():
        assert torch.equal(model(x), in_turn(model, x))
        with torch.autocast("cpu", torch.bfloat16):
            out, ops = model(x), in_turn(model, x)
            assert out.dtype == torch.bfloat16
            expect_same(out, ops)
            expect_same_features(model, x)
    assert len(calls) == 3
    model(x)  # with gradients: the ops
    assert len(calls) == 3


def test_a_channels_last_image_and_a_view():
    model, x = make("cct_2_3x2")
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(model(x.contiguous(memory_format=torch.channels_last)), expected)
        assert torch.equal(model(torch.stack([x, x], -1)[..., 1]), expected)


def test_what_the_native_call_does_not_take(calls):
    """A norm without a bias, a window of more pixels than a byte counts: the ops in turn do."""
    model, x = make("cvt_7_4")
    (conv,), classifier = model.tokenizer.convs, model.classifier
    for norm_bias, pool in ((None, None), (classifier.norm.bias, ((16, 17), (1, 1), (8, 8)))):
        given = {"num_heads": 4, "relu": False, "pool": pool, "pool_weight": classifier.attention_pool.weight}
        args = (x, [(conv.weight, conv.bias, conv.stride[0], 0)], [block.tensors() for block in classifier.blocks])
        expected = compact_transformer(*args, classifier.norm.weight, norm_bias, **given)
        with torch.no_grad():
            out = compact_transformer(*args, classifier.norm.weight, norm_bias, **given)
        torch.testing.assert_close(out, expected)
    assert not calls


def test_one_number_for_both_sides_of_a_window(calls):
    model, x = make("cvt_7_4")
    (conv,), classifier = model.tokenizer.convs, model.classifier
    with torch.no_grad():
        out = compact_transformer(
            x, [(conv.weight, conv.bias, conv.stride[0], 0)], [block.tensors() for block in classifier.blocks],
            classifier.norm.weight, classifier.norm.bias, num_heads=4, relu=False, pool=None,
            positional=classifier.positional_emb, pool_weight=classifier.attention_pool.weight,
            head_weight=classifier.fc.weight, head_bias=classifier.fc.bias,
        )  # fmt: skip
        assert calls and torch.equal(out, model(x))


def test_whoever_looks_at_a_module_is_called(calls):
    for pick in (
        lambda m: m.tokenizer,
        lambda m: m.classifier,
        lambda m: m.classifier.blocks[1],
        lambda m: m.classifier.fc,
    ):
        model, x = make("cct_2_3x2")
        seen = []
        handle = pick(model).register_forward_hook(lambda module, args, out, seen=seen: seen.append(1))
        with torch.no_grad():
            hooked = model(x)
            assert seen == [1] and not calls
            handle.remove()
            assert torch.equal(model(x), hooked) and seen == [1] and calls.pop()


def test_another_head_and_another_mode(calls):
    model, x = make("vit_lite_7_4")
    model.classifier.fc = torch.nn.Sequential(model.classifier.fc, torch.nn.Softmax(1))
    with torch.no_grad():
        torch.testing.assert_close(model(x).sum(1), torch.ones(3))
        model, x = make("vit_lite_7_4")
        model.classifier.blocks[0].train()
        model(x)
    assert not calls


def test_gradients_reach_every_parameter():
    model, x = make("cct_2_3x2")
    args = dict(
        stages=[(c.weight, c.bias, c.stride, c.padding) for c in model.tokenizer.convs],
        blocks=[b.tensors() for b in model.classifier.blocks], norm_weight=model.classifier.norm.weight,
        norm_bias=model.classifier.norm.bias, num_heads=2, positional=model.classifier.positional_emb,
        pool_weight=model.classifier.attention_pool.weight, head_weight=model.classifier.fc.weight,
        head_bias=model.classifier.fc.bias,
    )  # fmt: skip
    out = compact_transformer(x, **args)
    assert torch.equal(out, model(x))
    out.sum().backward()
    without = {n for n, p in model.named_parameters() if p.grad is None}
    assert without == {"classifier.attention_pool.bias"}  # softmax does not see it, and it was not given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 12, 20)}, "x has shape .*expected 4 dimensions"),
        ({"stages": []}, "stages is list; expected a sequence of"),
        ({"norm_bias": torch.zeros(5)}, "norm_bias has shape"),
        ({"positional": torch.zeros(1, 4, 128)}, "positional has shape"),
        ({"pool_weight": None}, "pool_weight and class_token are None"),
        ({"pool_weight": torch.zeros(1, 5)}, "weight has shape"),
        ({"head_bias": torch.zeros(7)}, "head_bias has shape"),
        ({"blocks": [()]}, "blocks"),
        ({"blocks": None}, "blocks is NoneType; expected a sequence of blocks"),
        ({"blocks": [[None] * 11]}, "norm_weight is NoneType; expected a tensor"),
        ({"num_heads": 3}, "num_heads is 3"),
        ({"num_heads": 2.0}, "num_heads is 2.0; expected an int"),
        ({"num_heads": 2**70}, "num_heads is .*; expected an int below"),
        ({"relu": None}, "relu is None; expected True or False"),
        ({"eps": -1.0}, "eps is -1.0; expected a positive number"),
        ({"pool": 3}, "pool is 3; expected"),
        ({"stages": [(None, None, 1, 1)]}, "weight of a stage is NoneType; expected a tensor"),
        ({"head_weight": torch.zeros(10, 5), "head_bias": None}, r"head_weight has shape \[10, 5\]; expected \[10, 128\]"),
        ({"backend": "fast"}, "backend is 'fast'"),
    ],
)
def test_bad_input(change, message):
    model, x = make("cct_2_3x2")
    args = dict(
        x=x, stages=[(c.weight, c.bias, c.stride, c.padding) for c in model.tokenizer.convs],
        blocks=[b.tensors() for b in model.classifier.blocks], norm_weight=model.classifier.norm.weight,
        norm_bias=model.classifier.norm.bias, num_heads=2, positional=model.classifier.positional_emb,
        pool_weight=model.classifier.attention_pool.weight, head_weight=model.classifier.fc.weight,
        head_bias=model.classifier.fc.bias,
    )  # fmt: skip
    with pytest.raises(ValueError, match=message), torch.no_grad():
        compact_transformer(**args | change)


def test_malformed_calls_of_the_native_op_raise():
    model, x = make("cct_2_3x2", batch=1)
    weights = [c.weight for c in model.tokenizer.convs]
    flat = [t for b in model.classifier.blocks for t in b.tensors()]
    norm = model.classifier.norm
    good = [x, weights, [None, None], [1, 1, 1, 1] * 2, True, [3, 3, 2, 2, 1, 1], None, None, flat, 2, norm.weight, norm.bias,
            model.classifier.attention_pool.weight, None, None, 1e-5, torch.float32]  # fmt: skip
    native = torch.ops.cct_kernels.compact_transformer_forward
    with torch.no_grad():
        assert native(*good).shape == (1, 128)
        for i, wrong in ((1, []), (2, [None]), (3, [1] * 7), (3, [0] * 8), (8, flat[:7]), (10, norm.weight[:5]), (6, x),
                         (7, x), (12, norm.weight)):  # fmt: skip
            with pytest.raises((ValueError, RuntimeError)):
                native(*good[:i], wrong, *good[i + 1 :])
