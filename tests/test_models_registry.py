"""Names: every official one, the short ones, the generic builders, and what create_model makes of its arguments."""

import inspect

import pytest
import torch

import cct.models as models
from cct.models import create_model, list_models

SIZES = ("2_3x2", "4_3x2", "6_3x1", "6_3x2", "7_3x1", "7_3x2")
OFFICIAL = {
    *(f"cct_{size}_32{sine}" for size in SIZES for sine in ("", "_sine")),
    *(f"{family}_{layers}_4_32{sine}" for family in ("cvt", "vit") for layers in (2, 4, 6, 7) for sine in ("", "_sine")),
    *("cct_7_3x1_32_c100", "cct_7_3x1_32_sine_c100", "cct_7_7x2_224", "cct_7_7x2_224_sine"),
    *("cct_14_7x2_224", "cct_14_7x2_384", "cct_14_7x2_384_fl", "cct_14", "cvt_8"),
    *(f"{family}_{layers}" for family in ("cct", "cvt", "vit") for layers in (2, 4, 6, 7)),
    *(f"text_{family}_{layers}" for family in ("cct", "cvt", "vit", "transformer") for layers in (2, 4, 6)),
}
# name -> layers, dim, heads, hidden, img_size, classes, kernel, convolutions, embedding
SAMPLES = {
    "cct_7_3x1": (7, 256, 4, 512, 32, 10, 3, 1, "learnable"),
    "cct_2_3x2": (2, 128, 2, 128, 32, 10, 3, 2, "learnable"),
    "cct_7_3x1_32_sine_c100": (7, 256, 4, 512, 32, 100, 3, 1, "sine"),
    "cct_7_7x2_224_sine": (7, 256, 4, 512, 224, 102, 7, 2, "sine"),
    "cct_14_7x2_384": (14, 384, 6, 1152, 384, 1000, 7, 2, "learnable"),
    "cct_14_7x2_384_fl": (14, 384, 6, 1152, 384, 102, 7, 2, "learnable"),
    "cvt_7_4": (7, 256, 4, 512, 32, 10, 4, 1, "learnable"),
    "cvt_6_8": (6, 256, 4, 512, 32, 10, 8, 1, "learnable"),
    "vit_lite_7_4_32": (7, 256, 4, 512, 32, 10, 4, 1, "learnable"),
    "vit_lite_6_16": (6, 256, 4, 512, 32, 10, 16, 1, "learnable"),
    "vit_lite_7_4_32_sine": (7, 256, 4, 512, 32, 10, 4, 1, "sine"),
    "vit_12_16": (12, 768, 12, 3072, 32, 10, 16, 1, "learnable"),
    "cct_16": (16, 384, 6, 1152, 224, 1000, 3, 1, "learnable"),
    "cvt_8": (8, 256, 4, 512, 224, 1000, 4, 1, "learnable"),
}


def meta(name, **kwargs):
    with torch.device("meta"):
        return create_model(name, **kwargs)


def test_every_official_name_is_registered_and_importable():
    assert set(list_models()) >= OFFICIAL
    for name in list_models():
        assert inspect.isfunction(getattr(models, name)) and getattr(models, name).__name__ == name


@pytest.mark.parametrize("name", SAMPLES)
def test_names_mean_what_they_say(name):
    layers, dim, heads, hidden, img, classes, kernel, convs, embedding = SAMPLES[name]
    model = meta(name)
    block = model.classifier.blocks[0]
    assert (len(model.classifier.blocks), model.num_features, block.num_heads, block.linear1.out_features) == (
        layers, dim, heads, hidden,
    )  # fmt: skip
    assert (model.img_size, model.num_classes, model.in_chans) == ((img, img), classes, 3)
    assert (model.tokenizer.convs[0].kernel_size[0], len(model.tokenizer.convs)) == (kernel, convs)
    assert model.classifier.positional_embedding == embedding
    assert model.config["name"] == name


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_and_its_config_rebuilds_it(name):
    model = meta(name)
    again = meta(model.config["name"], **model.config["kwargs"])
    shapes = {k: v.shape for k, v in model.state_dict().items()}
    assert {k: v.shape for k, v in again.state_dict().items()} == shapes
    assert again.config == model.config
    assert model.default_cfg["architecture"] == name


def test_sine_is_really_sine():
    for name in ("cct_2_3x2_32_sine", "cvt_2_4_32_sine", "vit_2_4_32_sine"):
        table = create_model(name).classifier.positional_emb
        assert not table.requires_grad
        torch.testing.assert_close(table[0, 0], torch.tensor([0.0, 1.0]).repeat(64))  # sin 0, cos 0
        torch.testing.assert_close(table[0, 3, :2], torch.tensor([3.0]).double().sin().float().new_tensor([0.14112, -0.98999]))


def test_patterns():
    assert list_models("cct_7_3x1_32*") == [
        "cct_7_3x1_32", "cct_7_3x1_32_c100", "cct_7_3x1_32_sine", "cct_7_3x1_32_sine_c100",
    ]  # fmt: skip
    assert list_models("resnet*") == []


def test_unknown_name():
    with pytest.raises(ValueError, match=r"unknown model 'cct_7_3x3' \(did you mean 'cct_7_3x[12]'\?\)"):
        create_model("cct_7_3x3")


def test_arguments_override_the_name():
    model = create_model("cvt_2_4", num_classes=3, img_size=(16, 8), in_chans=1, patch_size=8, drop_path_rate=0.0, fused=False)
    assert (model.num_classes, model.img_size, model.in_chans, model.grid_size) == (3, (16, 8), 1, (2, 1))
    assert model.classifier.blocks[1].drop_path == 0.0 and model.fused is False
    assert model(torch.zeros(1, 1, 16, 8)).shape == (1, 3)
    assert meta("cct_2_3x2", n_input_channels=2).in_chans == 2
    with pytest.raises(TypeError, match="CVT: unknown argument 'n_conv_layers'"):
        create_model("cvt_2_4", n_conv_layers=2)
    with pytest.raises(TypeError, match="TextCCT: unknown argument 'img_size'"):
        create_model("text_cct_2", img_size=3)


def test_constructors_take_the_official_arguments():
    model = models.cct_2_3x2_32(False, False, img_size=16, positional_embedding="sine", num_classes=4)
    assert (model.img_size, model.num_classes, model.classifier.positional_embedding) == ((16, 16), 4, "sine")
    assert models.vit_lite_2_4().default_cfg == {
        "architecture": "vit_lite_2_4", "num_classes": 10, "input_size": (3, 32, 32),
    }  # fmt: skip
    released = meta("cct_14_7x2_384").default_cfg
    assert (released["crop_pct"], released["mean"]) == (0.9, (0.485, 0.456, 0.406))
