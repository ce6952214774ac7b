"""Configuration: defaults, files and flags, and the errors that name the key."""

import pytest

from cct.training.config import FIELDS, Config, ConfigError, coerce, read_yaml, resolve
from cct.training.defaults import DEFAULTS


def write(path, text):
    path.write_text(text)
    return path


def test_flags_over_file_over_data_set_over_config(tmp_path):
    file = write(tmp_path / "a.yaml", "data: mnist\nlr: 3e-4\nepochs: 7\n")
    config = resolve({"epochs": "9"}, file)
    assert (config.data, config.lr, config.epochs) == ("mnist", 3e-4, 9)
    assert config.sched == DEFAULTS["mnist"]["sched"] != FIELDS["sched"].default
    assert config.momentum == FIELDS["momentum"].default


def test_every_default_is_valid():
    for data in DEFAULTS:
        resolve({"data": data})


def test_a_resolved_configuration_reads_back(tmp_path):
    config = resolve({"data": "cifar10", "amp": True, "fused": "strict", "model_kwargs": {"positional_embedding": "sine"}})
    assert resolve({}, write(tmp_path / "config.yaml", config.to_yaml())) == config


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("lr", "55e-5", 55e-5),
        ("lr", 1, 1.0),
        ("epochs", "12", 12),
        ("epochs", 3.0, 3),
        ("amp", True, "bf16"),
        ("amp", False, "off"),
        ("model_ema", "yes", True),
        ("flip", None, None),
        ("fused", "strict", "strict"),
        ("fused", "false", False),
        ("pretrained", "weights.pth", "weights.pth"),
    ],
)
def test_values_are_converted(name, text, value):
    converted = coerce(name, text)
    assert converted == value and type(converted) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("lr", "fast", "lr: got 'fast', expected a number"),
        ("lr", 0, "lr: got 0.0, expected more than 0"),
        ("lr", float("nan"), "lr: got nan, expected a number"),
        ("lr", True, "lr: got True, expected a number"),
        ("epochs", 2.5, "epochs: got 2.5, expected a whole number"),
        ("epochs", 0, "epochs: got 0, expected at least 1"),
        ("epochs", "inf", "epochs: got 'inf', expected a whole number"),
        ("smoothing", 1, "smoothing: got 1.0, expected less than 1"),
        ("model_ema", 1, "model_ema: got 1, expected true or false"),
        ("sched", "cosin", "sched: got 'cosin', expected one of cosine, .*; did you mean 'cosine'?"),
        ("fused", "stric", "fused: got 'stric', expected true, false or 'strict'"),
        ("amp", "fp16", "amp: got 'fp16', expected one of off, bf16"),
        ("model", 7, "model: got 7, expected text"),
        ("model_kwargs", [1], "model_kwargs: got .1., expected key=value pairs"),
    ],
)
def test_wrong_values_name_the_key(name, value, message):
    with pytest.raises(ConfigError, match=message):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("weight-decay: 0.1", "unknown key 'weight-decay'; did you mean 'weight_decay'?"),
        ("zzz: 1", "unknown key 'zzz'; the keys are data, "),
        ("lr: [1]", "lr: got .1., expected a number"),
        ("a: b: c", "line 1: not YAML"),
        ("- 1", "expected `key: value` lines, got list"),
    ],
)
def test_wrong_files_are_named(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_yaml(write(tmp_path / "x.yaml", text))
    assert str(error.value).startswith(str(tmp_path / "x.yaml"))


def test_missing_file_and_long_warmup(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="warmup_epochs: got 5, expected at most epochs"):
        Config(epochs=4, warmup_epochs=5)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("scale", [0.8, 1], (0.8, 1.0)),
        ("scale", "0.8 1.0", (0.8, 1.0)),
        ("mean", ["0.5"], (0.5,)),
        ("color_jitter", None, 0.0),
        ("model", "cct_7-3x1_32", "cct_7_3x1_32"),
        ("val_split", "0.1", 0.1),
        ("val_split", "valid", "valid"),
        ("tta", 0, "none"),
        ("clip_grad", "", None),
    ],
)
def test_forms_of_the_official_files(name, text, value):
    assert coerce(name, text) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scale": [1, 0.8]}, "scale: got 1.0 0.8, expected the lesser number first"),
        ({"scale": [0.8]}, "scale: got 1 numbers, expected 2"),
        ({"scale": [0.0, 1.0]}, "scale: got 0.0, expected more than 0"),
        ({"mean": ["x"]}, r"mean: got \['x'\], expected numbers such as 0.5 1.0"),
        ({"reprob": 1.5}, "reprob: got 1.5, expected at most 1"),
        ({"val_split": "tset"}, "val_split: got 'tset', expected a fraction or one of val, valid"),
        ({"drop": 0.1, "model_kwargs": {"dropout": 0.2}}, "model_kwargs: dropout is given by its own key too"),
    ],
)
def test_wrong_forms_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        Config(**values)


def test_keys_of_timm(tmp_path, caplog):
    text = "dataset: torch/CIFAR10\nworkers: 8\npin-mem: true\n".replace("pin-mem", "pin_mem")
    config = resolve(
        {"lr": "55e-5"}, write(tmp_path / "a.yaml", text + "jsd_loss: false\nepoch_repeats: 0.\ninput_size: [3, 32, 32]")
    )
    assert (config.data, config.img_size, config.lr) == ("cifar10", 32, 55e-5)
    assert (config.sched, config.hflip, config.crop_padding) == ("step", 0.5, 0)  # what timm's script does
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path / 'a.yaml'}: no effect here: workers (") and "pin_mem (" in line


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jsd_loss: true", "jsd_loss: got True, expected nothing or 0: this program cannot do it"),
        ("resume: a.pth", "resume: got 'a.pth', .*; use cct train --resume RUN"),
        ("train_split: all", "train_split: got 'all', expected 'train'"),
        ("dataset: cifar10\ndata: cifar10", "dataset: is timm's name of data; give one of them"),
        ("dataset: cifar1O", "data: got 'cifar1o', expected one of .*; did you mean 'cifar10'"),
        ("input_size: [3, 32, 16]", "input_size: got .*, expected 3 numbers"),
        ("worker: 8", "unknown key 'worker'; did you mean 'workers'?"),
    ],
)
def test_keys_of_timm_that_cannot_be_followed(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        resolve({}, write(tmp_path / "a.yaml", text))
