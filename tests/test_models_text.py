"""The text models: all four run with and without masks, and masks mean what the specification says."""

import pytest
import torch

from cct.models import TextCCT, TextCVT, TextTransformerLite, TextViTLite, create_model

SMALL = {"seq_len": 12, "word_embedding_dim": 6, "vocab_size": 20, "num_layers": 2, "num_heads": 2, "num_classes": 3}
FAMILIES = {
    "cct": lambda **k: TextCCT(**SMALL | {"embedding_dim": 8, "kernel_size": 2} | k),
    "cvt": lambda **k: TextCVT(**SMALL | {"embedding_dim": 8, "patch_size": 2} | k),
    "vit": lambda **k: TextViTLite(**SMALL | {"embedding_dim": 8, "patch_size": 2} | k),
    "transformer": lambda **k: TextTransformerLite(**SMALL | k),
}
TOKENS = {"cct": 7, "cvt": 6, "vit": 7, "transformer": 13}  # cct: (12 + 2 - 1) // 2 + 1; vit, transformer: class token


def build(family, **kwargs):
    torch.manual_seed(0)
    return FAMILIES[family](**kwargs).eval()


def words(length=12, batch=2):
    return torch.randint(2, 20, (batch, length), generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("embedding", ["learnable", "sine", "none"])
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_with_and_without_a_mask(family, embedding, fused):
    model = build(family, positional_embedding=embedding, fused=fused)
    ids = words()
    assert model.forward_features(ids).shape == (2, TOKENS[family], model.num_features)
    assert model(ids).shape == (2, 3)
    full = torch.ones_like(ids)
    torch.testing.assert_close(model(ids, full), model(ids))
    for mask in (full.bool(), full.float(), mask_of(12, 5)):
        assert model(ids, mask).isfinite().all()
    torch.testing.assert_close(model(ids, mask_of(12, 5)), model(ids, mask_of(12, 5).int()))
    table = model.state_dict().get("classifier.positional_emb")
    assert table is None if embedding == "none" else table.shape == (1, TOKENS[family] + 1, model.num_features)


def mask_of(*lengths, width=12):
    return torch.arange(width) < torch.tensor(lengths)[:, None]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_by_hand(family):
    """Vectors of masked words are zero; windows of words against the kernel; ReLU and pooling for CCT only; masked to zero."""
    model = build(family, positional_embedding="none").double()
    ids, mask = words(), mask_of(12, 5)
    tokens, valid = model.tokens(ids, 3 * mask)
    x = model.embedder.embeddings.weight[ids] * mask[..., None]
    if family != "transformer":
        pad, step = (1, 1) if family == "cct" else (0, 2)
        padded = torch.nn.functional.pad(x, (0, 0, pad, pad))
        kernel = model.tokenizer.convs[0].weight[:, 0]  # (C, 2, word_embedding_dim)
        x = torch.stack(
            [(padded[:, i : i + 2, None] * kernel.transpose(0, 1)).sum((1, 3)) for i in range(0, 11 + 2 * pad, step)], 1
        )
        if family == "cct":
            x = torch.cat([torch.zeros(2, 1, 8), x.relu(), torch.zeros(2, 1, 8)], 1)[:, : 2 * (x.shape[1] // 2 + 1)]
            x = x.unflatten(1, (-1, 2)).amax(2)
        x = x * valid[..., None]
        assert not valid[1].all() and (x[1] == 0).any()
    torch.testing.assert_close(tokens, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", ["vit", "transformer"])
def test_masked_words_do_not_reach_the_class_token(family):
    model = build(family)
    ids, mask = words(), mask_of(12, 6)
    other = torch.where(mask, ids, (ids + 7) % 18 + 2)
    assert not torch.equal(ids, other)
    torch.testing.assert_close(model(other, mask), model(ids, mask))
    assert not torch.allclose(model(other), model(ids))


def test_attention_maps_leave_masked_tokens_out():
    model = build("transformer")
    maps = model.attention_maps(words(), mask_of(12, 6))
    valid = maps[0][1, :, :7]  # class token and six words of the second sentence
    assert (valid[..., 7:] == 0).all()
    torch.testing.assert_close(valid[..., :7].sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(maps[0][1, :, 7:], torch.full((2, 6, 13), 1 / 13))  # invalid rows: uniform over all keys


def test_pooling_sees_every_token():
    model = build("cct")
    weights = model.seqpool_weights(words(), mask_of(12, 3))
    assert weights.shape == (2, 7) and (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(2))


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 5])
def test_token_masks(kernel):
    """A token is valid when its window, padding included, touches a valid word; pooling joins two neighbours."""
    model = build("cct", kernel_size=kernel)
    mask = mask_of(12, 5, 1)
    stride, padding = max(1, kernel // 2 - 1), max(1, kernel // 2)
    touches = []
    for row in mask.tolist():
        padded = [False] * padding + row + [False] * padding
        windows = [any(padded[i : i + kernel]) for i in range(0, len(padded) - kernel + 1, stride)]
        around = [False, *windows, False]
        touches.append([any(around[i : i + 2]) for i in range(0, len(around) - 1, 2)])
    assert model.tokenizer.token_mask(mask).tolist() == touches


def test_embedding_rows_follow_the_positions():
    """Token t gets row t + 1; row 0 is not used; a shorter sentence uses the first rows."""
    model = build("transformer", positional_embedding="learnable").double()
    classifier, ids = model.classifier, words(4)
    table, words_in = classifier.positional_emb[0], model.embedder(ids)
    embedded, _ = classifier.embed(words_in)
    torch.testing.assert_close(embedded[:, 1:], words_in + table[2:6])
    torch.testing.assert_close(embedded[:, 0], (classifier.class_emb[0] + table[1]).expand(2, -1))
    model(ids).sum().backward()
    assert (classifier.positional_emb.grad[0, 0] == 0).all() and (classifier.positional_emb.grad[0, 1:6] != 0).any()


def test_word_vectors():
    model = build("cct").train()
    table = model.embedder.embeddings.weight
    assert (table[1] == 0).all() and (table[0] != 0).all()
    model(torch.ones(2, 12, dtype=torch.long)).sum().backward()
    assert (table.grad[1] == 0).all()
    vectors = torch.randn(9, 6)
    frozen = build("cct", pretrained_weight=vectors.numpy(), embed_freeze=True)
    assert torch.equal(frozen.embedder.embeddings.weight, vectors)
    assert not frozen.embedder.embeddings.weight.requires_grad
    kwargs = frozen.config["kwargs"]
    assert (kwargs["vocab_size"], kwargs["padding_idx"], kwargs["embed_freeze"]) == (9, None, True)
    again = create_model("TextCCT", **kwargs)
    again.load_state_dict(frozen.state_dict())
    ids = words() % 9
    assert torch.equal(again.eval()(ids), frozen(ids))
    with pytest.raises(ValueError, match=r"pretrained_weight has shape \(9, 6\); expected .*word_embedding_dim=5\)"):
        build("cct", pretrained_weight=vectors, word_embedding_dim=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_input_is_named(family):
    model = build(family)
    with pytest.raises(ValueError, match=r"has 14 words; expected at most seq_len=12.*seq_len=14"):
        model(words(14))
    with pytest.raises(ValueError, match=r"word ids lie in 3..20; expected 0..19 \(vocab_size=20\)"):
        model(torch.tensor([[3, 20]]))
    with pytest.raises(ValueError, match=r"word ids lie in -1\.\.3"):
        model(torch.tensor([[3, -1]]))
    with pytest.raises(ValueError, match=r"input is torch.float32 \(2, 12\); expected int64 word ids"):
        model(torch.zeros(2, 12))
    with pytest.raises(ValueError, match=r"mask is \(2, 5\); expected \(2, 12\)"):
        model(words(), torch.ones(2, 5))
    assert build(family, positional_embedding="none")(words(16)).shape == (2, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_checkpointing_with_a_mask(family):
    model = build(family)
    ids, mask = words(), mask_of(12, 5)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(ids, mask).sum().backward()
        grads.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_compiles_as_one_graph(family):
    torch.compiler.reset()
    model = build(family, fused=False)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(words(), mask_of(12, 5)), model(words(), mask_of(12, 5)))
