"""Adapters, pruning and hooks on the modules inside a model: what the ops would pass by is called."""

import copy

import pytest
import torch
import torch.nn.utils.parametrizations as parametrizations
from torch import nn
from torch.nn.utils import prune

from cct.models import CCT, TextCCT, ViTLite
from cct_kernels import BackendError

SMALL = {"img_size": 16, "embedding_dim": 32, "num_layers": 2, "num_heads": 2, "mlp_ratio": 2, "num_classes": 5}
BLOCK = "classifier.blocks.1."
PARTS = ("pre_norm", "self_attn.qkv", "self_attn.proj", "norm1", "linear1", "linear2")
PATHS = (
    "tokenizer.conv_layers.0.0",
    *(BLOCK + part for part in PARTS),
    "classifier.norm",
    "classifier.attention_pool",
    "classifier.fc",
)
LINEAR = [path for path in PATHS if "norm" not in path]


def build(**kwargs):
    torch.manual_seed(0)
    return CCT(
        **SMALL, kernel_size=3, n_conv_layers=2, **{"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0} | kwargs
    )


def images(batch=3):
    return torch.randn(batch, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def put(model, path, module):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


class Adapter(nn.Module):
    """A layer with a learned change beside it, as LoRA's."""

    def __init__(self, base):
        super().__init__()
        self.base, self.beside = base, copy.deepcopy(base)
        nn.init.normal_(self.beside.weight, std=0.1)
        for parameter in base.parameters():
            parameter.requires_grad_(False)

    weight = property(lambda self: self.base.weight)
    bias = property(lambda self: self.base.bias)

    def forward(self, x):
        return self.base(x) + self.beside(x)


@pytest.mark.parametrize("train", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("path", LINEAR)
def test_adapters_count_and_learn(path, fused, train):
    model, merged = build(fused=fused), build(fused=fused)
    put(model, path, adapter := Adapter(model.get_submodule(path)))
    layer = merged.get_submodule(path)
    with torch.no_grad():
        layer.weight += adapter.beside.weight
        if layer.bias is not None:
            layer.bias += adapter.beside.bias
    with torch.set_grad_enabled(train):
        ours, expected = model.train(train)(images()), merged.train(train)(images())
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    if train:
        ours.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(adapter.beside.weight.grad, layer.weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
@pytest.mark.parametrize("path", ["classifier.blocks.1", *PATHS])
def test_every_kind_of_hook_is_called(path, kind):
    model, x = build(), images().requires_grad_()
    expected = model(x)
    seen = []
    getattr(model.get_submodule(path), f"register_{kind}_hook")(lambda *args: seen.append(1))
    out = model(x)
    out.sum().backward()
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert seen
    if kind.startswith("forward"):
        seen.clear()
        with torch.no_grad():
            model.eval()(x)
        assert seen == [1]


def test_pruned_and_parametrised_layers():
    model = build()
    weight = (linear := model.classifier.blocks[0].linear1).weight
    prune.l1_unstructured(linear, "weight", amount=0.5)
    with torch.no_grad():
        linear.weight_orig.mul_(2)  # as an optimizer would; the mask is applied anew in the next forward pass
    before = model(images())
    merged = build()
    with torch.no_grad():
        merged.classifier.blocks[0].linear1.weight.copy_(linear.weight_mask * weight)
    torch.testing.assert_close(before, merged(images()), rtol=1e-4, atol=1e-5)
    parametrizations.weight_norm(merged.classifier.blocks[1].self_attn.qkv)
    torch.testing.assert_close(before, merged(images()), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch")
def test_quantised_layers_run():
    model = build().eval()
    small = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        assert (small(images()) - model(images())).abs().max() < 0.1 * model(images()).abs().max()


def test_masks_and_the_class_token():
    torch.manual_seed(0)
    sentences = TextCCT(
        seq_len=9, word_embedding_dim=6, vocab_size=20, embedding_dim=8, kernel_size=2, num_layers=2, num_heads=2, num_classes=3
    )
    mask = torch.tensor([[True] * n + [False] * (9 - n) for n in (9, 4, 1)])
    for model, args in ((ViTLite(**SMALL, kernel_size=4), (images(),)), (sentences, (torch.randint(1, 20, (3, 9)), mask))):
        expected = model.eval()(*args)
        for block in model.classifier.blocks:
            block.linear2.register_forward_hook(lambda *args: None)
        torch.testing.assert_close(model(*args), expected, rtol=1e-4, atol=1e-5)


def test_rates_of_dropout_and_drop_path():
    """Both ways draw drop-path factors alike; zeros of dropout show in the first linear layer's input and output."""
    model = build(dropout=0.5, attention_dropout=0.5)
    block, x = model.classifier.blocks[0], torch.randn(64, 9, 32)
    inputs = []
    block.linear2.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    block.train()(x)
    assert 0.45 < (inputs[0] == 0).float().mean() < 0.55
    block.eval()(x)
    assert (inputs[1] == 0).float().mean() < 0.01
    plain = build(fused=False).classifier.blocks[0].train()
    special = copy.deepcopy(plain)
    special.linear1.register_forward_hook(lambda *args: None)
    outs = []
    for b in (plain, special):
        b.drop_path = 0.5
        torch.manual_seed(3)
        outs.append(b(x))
    torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
    plain.drop_path = 0.0
    assert not torch.allclose(outs[0], plain(x))


@pytest.mark.parametrize("path", PATHS[:-1])
def test_strict_says_why_not(path):
    model = build(fused="strict")
    model.get_submodule(path).register_forward_hook(lambda *args: None)
    if path == "classifier.norm":
        model(images())  # the pooling stays fused
    else:
        with pytest.raises(BackendError, match=r"hooks or ones that were replaced .* fused=True instead of 'strict'"):
            model(images())
