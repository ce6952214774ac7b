"""The vision models: forward pass against an independent one, sizes, arguments, timm's methods, training behaviour."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F

import cct.models as models
from cct.models import CCT, CVT, ViTLite, create_model
from cct_kernels import BackendError
from cct_kernels.calls import draw_drop_path

SMALL = {"img_size": 8, "embedding_dim": 8, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1.5, "num_classes": 3}
FAMILIES = {
    "cct": lambda **k: CCT(**SMALL | {"kernel_size": 3, "n_conv_layers": 2} | k),
    "cvt": lambda **k: CVT(**SMALL | {"kernel_size": 4} | k),
    "vit": lambda **k: ViTLite(**SMALL | {"kernel_size": 4} | k),
}
EMBEDDINGS = ("learnable", "sine", "none")


def build(family, seed=0, **kwargs):
    torch.manual_seed(seed)
    return FAMILIES[family](**kwargs)


def images(model, batch=2, seed=1, **kwargs):
    return torch.randn(batch, model.in_chans, *model.img_size, generator=torch.Generator().manual_seed(seed), **kwargs)


def by_hand(family, model, x):
    """The forward pass of the paper and the official code from the state dict alone, with torch.nn.functional."""
    w = {k.removeprefix("classifier."): v for k, v in model.state_dict().items()}
    if family == "cct":
        for i in range(2):
            x = F.max_pool2d(F.relu(F.conv2d(x, w[f"tokenizer.conv_layers.{i}.0.weight"], padding=1)), 3, 2, 1)
    else:
        x = F.conv2d(x, w["tokenizer.conv_layers.0.0.weight"], w["tokenizer.conv_layers.0.0.bias"], stride=4)
    x = x.flatten(2).transpose(1, 2)
    if family == "vit":
        x = torch.cat([w["class_emb"].expand(len(x), -1, -1), x], 1)
    x = x + w.get("positional_emb", 0)
    B, N, C = x.shape

    def norm(x, name):
        return F.layer_norm(x, (C,), w[f"{name}.weight"], w[f"{name}.bias"])

    for i in range(2):
        qkv = norm(x, f"blocks.{i}.pre_norm") @ w[f"blocks.{i}.self_attn.qkv.weight"].T
        q, k, v = (t.unflatten(2, (2, C // 2)).transpose(1, 2) for t in qkv.split(C, -1))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C)
        x = x + F.linear(heads, w[f"blocks.{i}.self_attn.proj.weight"], w[f"blocks.{i}.self_attn.proj.bias"])
        x = norm(x, f"blocks.{i}.norm1")
        hidden = F.gelu(F.linear(x, w[f"blocks.{i}.linear1.weight"], w[f"blocks.{i}.linear1.bias"]))
        x = x + F.linear(hidden, w[f"blocks.{i}.linear2.weight"], w[f"blocks.{i}.linear2.bias"])
    x = norm(x, "norm")
    if family == "vit":
        pooled = x[:, 0]
    else:
        pooled = (F.linear(x, w["attention_pool.weight"], w["attention_pool.bias"]).softmax(1) * x).sum(1)
    return x, pooled, F.linear(pooled, w["fc.weight"], w["fc.bias"])


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_forward_pass(family, embedding, fused):
    model = build(family, positional_embedding=embedding, fused=fused).eval().double()
    for i, p in enumerate(model.parameters()):  # away from the initial zeros and ones
        p.data += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
    x = images(model, dtype=torch.float64)
    tokens, pooled, logits = by_hand(family, model, x)
    features = model.forward_features(x)
    torch.testing.assert_close(features, tokens, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled, rtol=0, atol=1e-12)
    torch.testing.assert_close(model.forward_head(features), logits, rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x), logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_any_size_aspect_and_channels(family):
    model = build(family, img_size=(8, 16), in_chans=5)
    assert (model.img_size, model.in_chans, model.num_features, model.num_classes) == ((8, 16), 5, 8, 3)
    assert model.grid_size == (2, 4)
    assert model(images(model)).shape == (2, 3)
    assert model.forward_features(images(model)).shape == (2, 8 + (family == "vit"), 8)
    assert model(images(model, batch=0)).shape == (0, 3)
    free = build(family, positional_embedding="none", in_chans=1)
    for size in ((8, 8), (4, 4), (12, 20)):
        assert free(torch.randn(2, 1, *size)).shape == (2, 3)


@pytest.mark.parametrize("embedding", ["learnable", "sine"])
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_input_is_named(family, embedding):
    model = build(family, positional_embedding=embedding)
    with pytest.raises(ValueError, match=r"input is 16 x 8; expected img_size 8 x 8.*img_size=\(16, 8\).*set_input_size.*none"):
        model(torch.zeros(2, 3, 16, 8))
    with pytest.raises(ValueError, match=r"input has shape \(2, 1, 8, 8\); expected \(batch, 3, 8, 8\).*in_chans"):
        model(torch.zeros(2, 1, 8, 8))
    with pytest.raises(ValueError, match="input is ndarray; expected a tensor"):
        model(torch.zeros(2, 3, 8, 8).numpy())
    with pytest.raises(ValueError, match="mask is given; expected none"):
        model(images(model), torch.ones(2, 4))


@pytest.mark.parametrize("family", ["cvt", "vit"])
def test_patches_must_divide_the_image(family):
    with pytest.raises(ValueError, match=r"img_size is 10 x 8; expected multiples of kernel_size=4"):
        build(family, img_size=(10, 8))
    with pytest.raises(ValueError, match=r"img_size is 8 x 9; expected multiples of kernel_size=4"):
        build(family, positional_embedding="none")(torch.zeros(1, 3, 8, 9))


def test_unknown_arguments_are_refused_with_the_nearest_name():
    with pytest.raises(TypeError, match=r"CCT: unknown argument 'mlp_ration' \(did you mean 'mlp_ratio'\?\); expected one"):
        CCT(mlp_ration=2)
    with pytest.raises(TypeError, match="unknown argument 'patch_size'"):
        CCT(patch_size=4)
    with pytest.raises(TypeError, match="'stochastic_depth' is given twice"):
        CCT(stochastic_depth=0.1, drop_path_rate=0.1)
    with pytest.raises(TypeError, match=r"unknown argument 'seqlen' \(did you mean 'seq_len'\?\)"):
        models.TextCCT(seqlen=3)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("num_heads", 3, "num_heads is 3; expected a divisor of embedding_dim=8"),
        ("num_layers", 0, "num_layers is 0; expected an int of at least 1"),
        ("num_classes", -1, "num_classes is -1; expected an int of at least 0"),
        ("mlp_ratio", 0, "mlp_ratio is 0; expected a number that gives 1 to"),
        ("dropout", 1.0, "dropout is 1.0; expected a number p"),
        ("stochastic_depth", -0.1, "stochastic_depth is -0.1; expected a number p"),
        ("positional_embedding", "cosine", "'cosine'; expected one of learnable, sine, none"),
        ("img_size", "8", "img_size is '8'; expected an int or a pair of ints"),
        ("img_size", (8, 0), "img_size is 0; expected an int of at least 1"),
        ("kernel_size", 0, "kernel_size is 0; expected an int of at least 1"),
        ("n_input_channels", 0, "n_input_channels is 0; expected"),
        ("fused", "always", "fused is 'always'; expected True, False or 'strict'"),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_values_are_named(family, argument, value, message):
    with pytest.raises(ValueError, match=message):
        build(family, **{argument: value})


def test_image_too_small_for_the_kernel():
    with pytest.raises(ValueError, match="input size is 2 x 2; expected one that leaves at least one token"):
        build("cct", img_size=2, kernel_size=7, padding=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_config_builds_the_same_network(family):
    model = build(family, img_size=(8, 16), in_chans=2, drop_path_rate=0.2, positional_embedding="sine")
    model.reset_classifier(7)
    model.set_input_size((16, 16))
    again = create_model(model.config["name"], **model.config["kwargs"])
    assert again.config == model.config
    assert [b.drop_path for b in again.classifier.blocks] == [b.drop_path for b in model.classifier.blocks]
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(images(model)), model.eval()(images(model)))


class Renamed(CCT):
    pass


def test_a_subclass_elsewhere_records_the_class_it_extends():
    assert Renamed(**SMALL).config["name"] == "CCT"


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_as_in_timm(family):
    model = build(family).eval().double()
    x = images(model, dtype=torch.float64)
    assert model.get_classifier() is model.classifier.fc
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    model.reset_classifier(5)
    assert model.num_classes == 5 and model(x).shape == (2, 5)
    assert model.get_classifier().weight.dtype == torch.float64
    assert 0.01 < model.get_classifier().weight.std() < 0.03
    model.reset_classifier(0)
    torch.testing.assert_close(model(x), pooled, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"num_classes is 2\.5"):
        model.reset_classifier(2.5)


@pytest.mark.parametrize("family", ["cct", "cvt"])
def test_pooling_weights(family):
    model = build(family).eval()
    with torch.no_grad():
        model.classifier.attention_pool.weight.mul_(50)
        x = images(model)
        weights = model.seqpool_weights(x)
        assert weights.shape == (2, 4)
        torch.testing.assert_close(weights.sum(1), torch.ones(2))
        pooled = (weights[..., None] * model.forward_features(x)).sum(1)
        torch.testing.assert_close(model.classifier.fc(pooled), model(x))
    with pytest.raises(ValueError, match="pools with a class token"):
        build("vit").seqpool_weights(x)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_maps(family):
    model = build(family).eval().double()
    x = images(model, dtype=torch.float64)
    maps = model.attention_maps(x)
    N = 4 + (family == "vit")
    assert [m.shape for m in maps] == [(2, 2, N, N)] * 2
    block, classifier = model.classifier.blocks[0], model.classifier
    inputs, _ = classifier.embed(*model.tokens(x))
    v = block.self_attn.qkv(block.pre_norm(inputs))[..., -8:].unflatten(2, (2, 4)).transpose(1, 2)
    attended = inputs + block.self_attn.proj((maps[0] @ v).transpose(1, 2).flatten(2))
    after = block.norm1(attended)
    after = after + block.linear2(F.gelu(block.linear1(after)))
    torch.testing.assert_close(block(inputs), after, rtol=0, atol=1e-12)


@pytest.mark.parametrize("embedding", EMBEDDINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_input_size_can_change(family, embedding):
    model = build(family, positional_embedding=embedding)
    cls = int(family == "vit")
    before = model.classifier.positional_emb
    model.set_input_size((16, 8))
    assert (model.img_size, model.grid_size) == ((16, 8), (4, 2))
    assert model(images(model)).shape == (2, 3)
    after = model.classifier.positional_emb
    if embedding == "none":
        assert after is None
        return
    assert after.requires_grad == (embedding == "learnable")
    assert torch.equal(after[:, :cls], before[:, :cls])
    if embedding == "sine":
        fresh = build(family, positional_embedding=embedding, img_size=(16, 8))
        assert torch.equal(after, fresh.classifier.positional_emb)
    else:  # rows 2 -> 4 with half-pixel centres: 3/4 + 1/4 between neighbours
        old, new = before[0, cls:].view(2, 2, 8), after[0, cls:].view(4, 2, 8)
        torch.testing.assert_close(new[0], old[0])
        torch.testing.assert_close(new[1], 0.75 * old[0] + 0.25 * old[1])
        torch.testing.assert_close(new[3], old[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_copies(family):
    model = build(family).eval()
    x = images(model)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), expected)
        assert other.config == model.config
    model.classifier.fc.weight.data.zero_()
    assert not torch.equal(model(x), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_changes_nothing_but_memory(family):
    model = build(family, dropout=0.1, attention_dropout=0.1, stochastic_depth=0.5).train()
    x, calls = images(model), []
    model.classifier.blocks[0].register_forward_pre_hook(lambda *a: calls.append(1))

    def gradients(enable):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        calls.clear()
        torch.manual_seed(3)
        loss = model(x).square().sum()
        loss.backward()
        return {"loss": loss.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}}

    plain = gradients(False)
    assert len(calls) == 1
    again = gradients(True)
    assert len(calls) == 2  # the second time inside backward
    torch.testing.assert_close(again, plain)


def test_stochastic_depth_drops_whole_samples_independently():
    model = build("cct", stochastic_depth=0.4).train()
    first, last = model.classifier.blocks
    assert (first.drop_path, last.drop_path) == (0.0, pytest.approx(0.4))
    torch.manual_seed(0)
    none, scales = draw_drop_path(torch.zeros(4000, 1, 8), [block.drop_path for block in (first, last)])
    assert torch.equal(none, torch.ones(2, 4000))
    kept, other = scales > 0
    torch.testing.assert_close(scales[0][kept], torch.full_like(scales[0][kept], 1 / 0.6))
    assert abs(kept.float().mean() - 0.6) < 6 * math.sqrt(0.24 / 4000)
    assert abs((kept & other).float().mean() - 0.36) < 6 * math.sqrt(0.36 * 0.64 / 4000)

    with torch.no_grad():  # branches that are constant show which samples got them
        for p in last.parameters():
            p.zero_()
        last.norm1.weight.fill_(1)
        last.linear2.bias.fill_(0.6)
    out = last(torch.randn(500, 3, 8))
    branch = out - F.layer_norm(out, (8,))  # 0 for dropped samples, 1 for kept ones
    per_sample = branch.mean((1, 2))
    assert set(per_sample.round(decimals=3).tolist()) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("argument", "value"), [("dropout", 0.5), ("attention_dropout", 0.5), ("stochastic_depth", 0.9)]
)  # fmt: skip
def test_randomness_only_in_training(argument, value):
    rates = {"dropout": 0.0, "attention_dropout": 0.0, "stochastic_depth": 0.0, argument: value}
    model = build("cct", **rates)
    model.classifier.blocks[1].self_attn.proj.weight.data.normal_()
    x = images(model, batch=16)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def test_initial_values():
    model = create_model("vit_7_4_32")
    for name, p in model.named_parameters():
        if "norm" in name:
            assert (p == (1 if name.endswith("weight") else 0)).all(), name
        elif name == "classifier.class_emb" or (name.startswith("classifier") and name.endswith("bias")):
            assert (p == 0).all(), name
        elif name == "tokenizer.conv_layers.0.0.bias":
            assert p.abs().max() <= 1 / math.sqrt(48) and spread(p, 1 / math.sqrt(3 * 48))
        elif name == "tokenizer.conv_layers.0.0.weight":
            assert spread(p, math.sqrt(2 / 48))
        elif name == "classifier.positional_emb":
            assert spread(p, 0.2) and p.abs().max() < 2
        else:
            assert spread(p, 0.02), name
    conv = create_model("cct_7_3x2_32").tokenizer.convs
    assert spread(conv[0].weight, math.sqrt(2 / 27)) and spread(conv[1].weight, math.sqrt(2 / 576))
    assert spread(create_model("cct_7_3x2_32").classifier.attention_pool.weight, 0.02)


def spread(p, std):
    """Mean 0 and this standard deviation, within five standard errors."""
    n = p.numel()
    return abs(p.std() / std - 1) < 5 / math.sqrt(2 * n) + 1e-3 and abs(p.mean()) < 5 * std / math.sqrt(n)


def test_the_final_norm_is_computed_once(monkeypatch):
    from cct_kernels import reference

    seen = []
    real = F.layer_norm
    monkeypatch.setattr(reference.F, "layer_norm", lambda *a: seen.append(1) or real(*a))
    model = build("cct", fused=False)
    model(images(model))
    assert len(seen) == 2 * 2 + 1


def test_fused_is_checked_when_set():
    model = build("cct")
    model.fused = "strict"
    assert model.fused == "strict"
    with pytest.raises(ValueError, match="fused is None"):
        model.fused = None


def test_strict_raises_rather_than_run_in_plain_pytorch():
    model = build("cct", fused="strict").double()  # no kernel computes in float64
    with pytest.raises(BackendError, match="conv_tokenizer: no fused backend runs here"):
        model(images(model, dtype=torch.float64))


def test_fused_report_names_every_op_and_reason():
    model = build("cct").double()
    lines = model.fused_report().splitlines()
    assert lines[0] == "fused=True on cpu float64"
    ops = ["compact_transformer", "conv_tokenizer", "encoder", "layernorm_attention", "layernorm_mlp", "seqpool"]
    assert [line.split()[:2] for line in lines[1:]] == [[op, "reference"] for op in ops]
    assert "does not compute in float64" in lines[-1]
    model.fused = "strict"
    assert all(line.split()[1] == "raises" for line in model.fused_report().splitlines()[1:])
    model.fused = False
    assert all("fused=False asks for plain PyTorch" in line for line in model.fused_report().splitlines()[1:])


def test_plain_ops_are_announced_once(caplog):
    from cct.models import fused

    fused.announce.cache_clear()
    model = build("cct").double()
    for _ in range(2):
        model(images(model, dtype=torch.float64))
    build("cct", fused=False).double()(images(model, dtype=torch.float64))
    (record,) = caplog.records
    assert "\n" not in record.message
    for op in ("compact_transformer", "conv_tokenizer", "encoder", "layernorm_attention", "layernorm_mlp", "seqpool"):
        assert op in record.message
    assert "float64" in record.message


@pytest.mark.parametrize(("family", "fused"), list(itertools.product(FAMILIES, [True, False])))
def test_compiles_as_one_graph(family, fused):
    torch.compiler.reset()
    model = build(family, fused=fused)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = images(model)
    model.eval()
    torch.testing.assert_close(compiled(x), model(x))
    model.train()
    compiled(x).sum().backward()
    assert model.classifier.fc.weight.grad is not None


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_autocast_trains(family):
    model = build(family)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(model))
    logits.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
