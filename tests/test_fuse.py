"""Models of the published layout, patched in place: same results, same state dict, and back again."""

import copy
import io
import sys

import numpy as np
import published_layout
import pytest
import torch
from published_layout import Published
from test_models_fixtures import noise, weight
from torch import nn

from cct.models import create_model
from cct_kernels import fuse, unfuse
from cct_kernels.published import read_block

MODELS = {
    "cct_3x1": {},
    "cct_7x2_vit_pytorch": {"kernel": 7, "convs": 2, "size": 32, "style": "vit_pytorch", "ratio": 3},
    "cct_without_embedding": {"embedding": False, "convs": 2},
    "cvt": {"family": "cvt", "kernel": 4},
    "vit_lite": {"family": "vit", "kernel": 4, "layers": 3},
}


def make(name="cct_3x1", **more):
    torch.manual_seed(0)
    model = Published(**MODELS[name] | more)
    size = MODELS[name].get("size", 16)
    return model, torch.randn(3, 3, size, size)


def gradients(model, x):
    out = model(x)
    return out, torch.autograd.grad(out.square().sum(), list(model.parameters()))


def count_ops(monkeypatch):
    """Calls of the fused ops made by cct_kernels.fuse, by name."""
    module, calls = sys.modules["cct_kernels.fuse"], []
    for name in ("conv_tokenizer", "encoder", "layernorm_attention", "layernorm_mlp", "seqpool"):
        function = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, f=function, n=name, **k: (calls.append(n), f(*a, **k))[1])
    return calls


@pytest.mark.parametrize("name", MODELS)
def test_same_results_and_gradients(name, monkeypatch):
    model, x = make(name, rates=(0.0, 0.0, 0.0))
    expected, expected_gradients = gradients(model, x)
    state, kind = {n: t.clone() for n, t in model.state_dict().items()}, type(model.classifier.blocks[0])
    assert fuse(model) is model
    calls = count_ops(monkeypatch)
    out, found = gradients(model, x)
    convs = len(model.tokenizer.conv_layers)
    assert calls == ["conv_tokenizer"] * convs + ["encoder"] + ["seqpool"] * model.classifier.seq_pool
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    for a, b in zip(found, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()) + 1e-5)
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(t, state[n]) for n, t in model.state_dict().items())
    assert isinstance(model.classifier.blocks[0], kind)
    patched = [type(m) for m in model.modules()]
    assert [type(m) for m in fuse(model).modules()] == patched  # once more changes nothing
    unfuse(unfuse(model))
    assert type(model.classifier.blocks[0]) is kind
    assert torch.equal(model(x), expected)


def test_copies_and_files_stay_fused(monkeypatch):
    model, x = make()
    fuse(model.eval())
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        with torch.no_grad():
            other.classifier.fc.bias += 1  # of its own
            calls = count_ops(monkeypatch)
            assert "encoder" in (other(x), calls)[1]
            torch.testing.assert_close(other(x), model(x) + 1)
        assert type(unfuse(other).classifier.blocks[0]) is published_layout.EncoderLayer


def test_rates_are_those_of_the_modules():
    model, x = make(rates=(0.2, 0.3, 0.4))
    block = fuse(model).classifier.blocks[1]
    facts = read_block(block)
    assert (facts.attn_dropout, facts.dropout) == (0.3, 0.2) and facts.drop_path == pytest.approx(0.4)
    model.eval()
    assert read_block(block)[2:5] == (0.0, 0.0, 0.0) and torch.equal(model(x), model(x))
    block.train()
    block.self_attn.attn_drop.p = 0.5
    block.drop_path.eval()
    assert read_block(block)[2:5] == (0.5, 0.2, 0.0)


@pytest.mark.parametrize("watched", [False, True], ids=["encoder", "blocks"])
def test_training_draws_as_the_rates_say(watched):
    """Half of the branches dropped: with one block, a sample keeps both, one or none of them."""
    model, _ = make(rates=(0.0, 0.0, 0.0), layers=1)
    tokens = torch.randn(1, 8, 128).expand(400, -1, -1)
    block, classifier = model.classifier.blocks[0], model.classifier
    fuse(model.train())
    classifier.positional_emb, classifier.fc, classifier.sequence_length = None, nn.Identity(), 0
    with torch.no_grad():
        block.linear2.weight.mul_(50)  # the branch counts
        if watched:
            block.register_forward_hook(lambda *args: None)
        plain = classifier(tokens[:1])
        block.drop_path = published_layout.DropPath(0.5)
        torch.manual_seed(1)
        out = classifier(tokens)
    kinds, counts = [], []
    while len(out):
        same = torch.isclose(out, out[:1], rtol=0, atol=1e-3).all(1)
        kinds.append(out[:1]), counts.append(int(same.sum()))
        out = out[~same]
    assert len(kinds) == 4 and min(counts) > 40
    assert not any(torch.allclose(kind, plain, atol=1e-2) for kind in kinds)  # kept branches count double


def test_hooks_run_and_watched_modules_are_called(monkeypatch):
    model, x = make()
    expected = model.eval()(x)
    seen = []
    model.classifier.blocks[0].register_forward_hook(lambda module, args, out: seen.append("block"))
    fuse(model)
    assert not seen  # what is checked is a copy, without them
    model.tokenizer.register_forward_pre_hook(lambda module, args: seen.append("tokenizer"))
    inner = model.classifier.blocks[1].linear1.register_forward_hook(lambda module, args, out: seen.append("linear1"))
    calls = count_ops(monkeypatch)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert seen == ["tokenizer", "block", "linear1"]
    assert calls == ["conv_tokenizer", "layernorm_attention", "layernorm_mlp", "seqpool"]  # the second block by itself
    inner.remove()
    seen.clear(), calls.clear()
    model(x)
    assert seen == ["tokenizer", "block"] and calls.count("layernorm_mlp") == 2
    model.classifier.norm.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
    model.tokenizer.conv_layers[0][1].register_forward_hook(lambda module, args, out: seen.append("relu"))
    model(x)
    assert seen[-2:] == ["block", (3, 64, 128)] and "relu" in seen


def test_replaced_modules_run_unfused(monkeypatch):
    class Adapted(nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    model, x = make()
    fuse(model.eval())
    block = model.classifier.blocks[1]
    block.linear1.__class__ = Adapted
    calls = count_ops(monkeypatch)
    out = model(x)
    assert calls.count("layernorm_mlp") == 1
    torch.testing.assert_close(out, unfuse(model)(x), rtol=1e-4, atol=1e-5)


def test_models_of_this_package_inside_others():
    inner = create_model("cct_2_3x2", img_size=16, fused=False)
    model = nn.Sequential(nn.Identity(), inner)
    fuse(fuse(model))
    assert inner.fused is True
    unfuse(model)
    assert inner.fused is False and not hasattr(inner, "fused_before")
    inner.fused = "strict"
    assert unfuse(fuse(inner)).fused == "strict"


def test_what_is_not_a_published_model():
    with pytest.raises(ValueError, match=r"fuse: model is function; expected a torch.nn.Module"):
        fuse(make)
    with pytest.raises(
        ValueError, match=r"fuse: Linear has no tokenizer and classifier; looked for tokenizer.conv_layers\[i\]"
    ):
        fuse(nn.Linear(2, 2))
    for path, message in {
        "classifier.attention_pool": "classifier has no attention_pool",
        "classifier.blocks.1.norm1": r"classifier.blocks\[1\] has no norm1",
        "classifier.blocks.0.self_attn.proj": r"classifier.blocks\[0\] has no self_attn.proj",
    }.items():
        model, _ = make()
        parent, _, name = path.rpartition(".")
        delattr(model.get_submodule(parent), name)
        with pytest.raises(ValueError, match=f"fuse: Published: {message}; looked for"):
            fuse(model)
    model, _ = make()
    model.tokenizer.conv_layers[0][1] = nn.GELU()
    with pytest.raises(ValueError, match=r"tokenizer.conv_layers is not that; looked for"):
        fuse(model)


class ReluLayer(published_layout.EncoderLayer):
    """A subclass that looks the same and computes something else."""

    def forward(self, src):
        self.activation = nn.functional.relu
        return super().forward(src)


def test_a_model_that_computes_something_else_is_refused_unchanged():
    model, _ = make()
    model.classifier.blocks[1].__class__ = ReluLayer
    with pytest.raises(ValueError, match=r"fuse: classifier.blocks\[1\] \(ReluLayer\) computes something else .* differs by"):
        fuse(model)
    assert type(model.tokenizer) is published_layout.Tokenizer
    model, _ = make()
    model.classifier.blocks[0].self_attn.num_heads = 4  # but its forward uses 2
    with pytest.raises(ValueError, match=r"classifier.blocks\[0\] \(EncoderLayer\) computes something else"):
        fuse(model)


def test_compiles_in_one_graph_and_runs_under_autocast():
    model, x = make()
    fuse(model.eval())
    with torch.no_grad():
        expected = model(x)
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(x)
        torch.testing.assert_close(compiled, expected)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(model(x).float(), expected, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(("fixture", "options"), [
    ("cct_7_3x1_32.B", {"dim": 256, "layers": 7, "heads": 4, "ratio": 2, "size": 32}),
    ("vit_lite_7_4_32.B", {"family": "vit", "kernel": 4, "dim": 256, "layers": 7, "heads": 4, "ratio": 2, "size": 32}),
])  # fmt: skip
def test_numbers_of_the_official_code(fixtures, fixture, options):
    model, stored = Published(**options), np.load(fixtures / f"{fixture}.npz")
    model.load_state_dict({key: weight(key, t.shape, "B") for key, t in model.state_dict().items()})
    with torch.no_grad():
        found = fuse(model.eval())(noise(f"{fixture[:-2]}/input", (2, 3, 32, 32)).float())
    torch.testing.assert_close(found.double(), torch.from_numpy(stored["logits"]), rtol=1e-4, atol=1e-4)
