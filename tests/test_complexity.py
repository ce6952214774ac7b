"""Parameters and MACs: every number of the paper's tables, and small models counted by hand."""

import csv

import pytest
import torch

from cct.models import CCT, TextCCT, ViTLite, count_macs, count_parameters, create_model


def meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def named(row):
    family = row["family"]
    size = row["model"].rsplit("-", 1)[1].replace("/", "_")
    if family != "cct" or int(row["img"]) == 32:
        return f"{family}_{size}"
    return f"cct_{size}_{row['img']}"


def zoo(design):
    with open(design / "tables" / "model_zoo.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_parameters_of_every_row(design):
    rows = zoo(design)
    assert len(rows) == 28
    for row in rows:
        for classes in (10, 100, 102, 1000):
            counted = count_parameters(meta(named(row), num_classes=classes))
            assert counted.total == counted.trainable == int(row[f"params_{classes}"]), row["model"]
        counted = count_parameters(meta(named(row), num_classes=10))
        assert counted.positional == int(row["pos_emb_params"])
        assert counted.without_positional == int(row["params_10_no_pe"])
        without = count_parameters(meta(named(row), num_classes=10, positional_embedding="none"))
        assert without.total == int(row["params_10_no_pe"])
        sine = count_parameters(meta(named(row), num_classes=10, positional_embedding="sine"))
        assert (sine.total, sine.trainable) == (int(row["params_10"]), int(row["params_10_no_pe"]))


def test_macs_of_every_row(design):
    for row in zoo(design):
        model = meta(named(row), num_classes=10)
        assert model.tokenizer.convs[0].kernel_size[0] == int(row["kernel"])
        macs = count_macs(model)
        counted = {
            "macs_conv": macs.conv,
            "macs_linear_10": macs.linear,
            "macs_attention": macs.attention,
            "macs_seqpool": macs.seqpool,
            "macs_linear_only_10": macs.layers_only,
            "macs_full_10": macs.full,
            "macs_full_plus_5ln_10": macs.paper,
            "macs_v1_count_10": macs.first_release,
        }
        assert counted == {name: int(row[name]) for name in counted}, row["model"]


def test_printed_macs(design):
    """The columns of the paper and of the first repository, as rounded there (18.63 G of the paper is 18.61 G; spec, D8)."""
    printed = 0
    for row in zoo(design):
        macs = count_macs(meta(named(row), num_classes=10))
        for column, value in (("paper_macs_g", macs.paper), ("v1_macs_g", macs.first_release)):
            if row[column] and row[column] != "18.63":
                digits = len(row[column].split(".")[1])
                assert f"{value / 1e9:.{digits}f}" == row[column], (row["model"], column)
                printed += 1
    assert printed > 25


# Trainable parameters of paper Table 10 without the word table, sine embedding: {(family, size, kernel): {classes: count}}.
TEXT = {
    ("transformer", 2, None): {2: 1_085_702, 4: 1_086_304, 6: 1_086_906, 14: 1_089_314},
    ("transformer", 4, None): {2: 2_169_902, 4: 2_170_504},
    ("transformer", 6, None): {2: 4_335_902, 4: 4_336_504},
    ("vit", 2, 1): {2: 237_442, 4: 237_700, 14: 238_990},
    ("vit", 4, 2): {2: 474_242, 4: 474_500},
    ("vit", 6, 4): {4: 3_467_012, 14: 3_469_582},
    ("cvt", 2, 4): {4: 352_901, 6: 353_159},
    ("cvt", 6, 1): {4: 3_236_613},
    ("cct", 2, 1): {4: 237_701},
    ("cct", 4, 2): {4: 474_501},
    ("cct", 6, 4): {4: 3_467_013, 14: 3_469_583},
}


@pytest.mark.parametrize("key", TEXT, ids=str)
def test_text_parameters(key):
    family, size, kernel = key
    for classes, expected in TEXT[key].items():
        model = meta(f"text_{family}_{size}", num_classes=classes, **({"kernel_size": kernel} if kernel else {}))
        counted = count_parameters(model)
        assert counted.words == 100_000 * 300
        assert counted.trainable - counted.words == expected


def test_a_small_model_by_hand():
    model = CCT(img_size=(6, 4), embedding_dim=4, kernel_size=3, num_layers=1, num_heads=1, mlp_ratio=2, num_classes=3)
    counted = count_parameters(model)
    block = 3 * 16 + (16 + 4) + (4 * 8 + 8) + (8 * 4 + 4) + 4 * 4
    assert counted.total == 9 * 3 * 4 + 6 * 4 + (4 + 1) + block + 2 * 4 + (3 * 4 + 3)
    macs = count_macs(model)  # convolution at 6 x 4, pooled to 3 x 2 = 6 tokens
    assert macs.conv == 27 * 4 * 24
    assert macs.linear == 6 * (48 + 16 + 32 + 32) + 6 * 4 + 12
    assert macs.attention == 2 * 36 * 4
    assert macs.seqpool == 24
    assert macs.relu_pool == 2 * 4 * 24
    assert macs.layernorm == 3 * 24
    assert count_macs(model, (12, 4)).attention == 4 * macs.attention
    patches = count_macs(
        ViTLite(img_size=8, kernel_size=4, embedding_dim=4, num_layers=1, num_heads=1, mlp_ratio=2, num_classes=3)
    )
    assert (patches.conv, patches.seqpool, patches.relu_pool, patches.attention) == (48 * 4 * 4, 0, 0, 2 * 25 * 4)
    words = TextCCT(seq_len=5, word_embedding_dim=6, embedding_dim=4, kernel_size=2, num_layers=1, vocab_size=7, num_classes=3)
    counted = count_macs(words)  # stride 1, padding 1: 6 windows of 2 words, pooled to 4 tokens
    assert (counted.conv, counted.attention) == (12 * 4 * 6, 2 * 16 * 4)
    assert count_macs(words, 3).conv == 12 * 4 * 4
