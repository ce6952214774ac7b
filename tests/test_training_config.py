"""Configuration: defaults, files and flags, and the errors that name the key."""

import dataclasses

import pytest
import torch

from cct import recipes
from cct.models import list_models
from cct.training.config import FIELDS, Config, ConfigError, coerce, read_yaml, resolve
from cct.training.defaults import DEFAULTS
from cct.training.optim import make_optimizer
from cct.training.setup import make_augment, prepare


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
        ("learning_rate: 0.1", "unknown key 'learning_rate'; did you mean 'lr'?"),
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
        ({"seed": 2**63}, f"seed: got {2**63}, expected at most {2**63 - 1}"),
        ({"epochs": 10**400}, "epochs: got 1000"),
        ({"model_kwargs": {"num_classes": 5}}, "model_kwargs: num_classes is not given here; the data decide"),
        ({"model_kwargs": {1: 2}}, "model_kwargs: got the key 1, expected names of arguments, such as embedding_dim"),
        ({"model_kwargs": {"img_size": 5}}, "model_kwargs: img_size is not given here; use img_size: SIDE"),
        ({"drop": 0.1, "model_kwargs": {"dropout": 0.2}}, "model_kwargs: dropout is given by its own key too"),
    ],
)
def test_wrong_forms_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        Config(**values)


def test_a_flag_that_names_the_data_leaves_the_file_its_schedule(tmp_path):
    timm = write(tmp_path / "timm.yaml", "dataset: cifar10\nsched: cosine\ncrop_padding: 2\n")
    ours = write(tmp_path / "ours.yaml", "data: mnist\nsched: constant\n")
    config = resolve({"dataset": "torch/cifar10"}, timm)
    assert (config.data, config.sched, config.crop_padding, config.hflip) == ("cifar10", "cosine", 2, 0.5)
    assert config.scale is None
    config = resolve({"dataset": "mnist"}, ours)
    assert (config.sched, config.drop_last, config.hflip, config.crop_padding) == ("constant", False, None, None)
    assert resolve({"dataset": "mnist", "sched": "step"}, ours).sched == "step"
    config = resolve({"dataset": "mnist"})  # timm's command line
    assert (config.sched, config.drop_last, config.hflip, config.model_ema_decay) == ("step", True, 0.5, 0.9998)


def test_a_resized_crop_is_cut_from_the_whole_image():
    def stream(**values):
        return Config(**values).data_arguments()["stream"]

    assert stream(data="folder", scale=(0.1, 1)) is True and stream(data="folder") is None
    assert stream(data="folder", scale=(0.1, 1), stream=False) is False and stream(data="cifar10", scale=(0.1, 1)) is None


def test_keys_of_timm(tmp_path, caplog):
    text = "dataset: torch/CIFAR10\nworkers: 8\npin-mem: true\n".replace("pin-mem", "pin_mem")
    config = resolve(
        {"lr": "55e-5"}, write(tmp_path / "a.yaml", text + "jsd_loss: false\nepoch_repeats: 0.\ninput_size: [3, 32, 32]")
    )
    assert (config.data, config.img_size, config.lr) == ("cifar10", 32, 55e-5)
    assert (config.sched, config.hflip, config.crop_padding) == ("step", 0.5, 0)  # what timm's script does
    assert config.scale == (0.08, 1.0)
    [line] = caplog.messages
    assert line.startswith(f"{tmp_path / 'a.yaml'}: no effect here: workers (") and "pin_mem (" in line


def test_what_timm_writes_down_of_its_own_run(tmp_path):
    """Its args.yaml has every key, and its flags are text."""
    text = "dataset: torch/cifar10\ninterpolation: ''\ncrop_pct: null\nlr_cycle_mul: 1.0\nlr_k_decay: 1.0\n"
    config = resolve({"lr_cycle_limit": "1", "lr_cycle_decay": "0.5", "epoch_repeats": "0."}, write(tmp_path / "a.yaml", text))
    assert (config.interpolation, config.crop_pct) == ("bicubic", 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("jsd_loss: true", "jsd_loss: got True, expected nothing or 0: this program cannot do it"),
        ("lr_cycle_limit: 2", "lr_cycle_limit: got 2, expected 1: this program cannot do it"),
        ("lr_cycle_decay: '0.7'", "lr_cycle_decay: got '0.7', expected 0.1 or 0.5 or 1: this program cannot do it"),
        ("epochs: 2026-13-45", r"a.yaml: month must be in 1\.\.12"),
        ("resume: a.pth", "resume: got 'a.pth', .*; use cct train --resume RUN"),
        ("train_split: all", "train_split: got 'all', expected train"),
        ("dataset: cifar10\ndata: cifar10", "dataset: is timm's name of data; give one of them"),
        ("dataset: cifar1O", "data: got 'cifar1o', expected one of .*; did you mean 'cifar10'"),
        ("input_size: [3, 32, 16]", "input_size: got .*, expected 3 numbers"),
        ("worker: 8", "unknown key 'worker'; did you mean 'workers'?"),
    ],
)
def test_keys_of_timm_that_cannot_be_followed(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        resolve({}, write(tmp_path / "a.yaml", text))


def test_optimizer_and_model_follow_their_keys():
    weight = torch.nn.Linear(2, 2)
    adamw = make_optimizer(weight, Config(opt_eps=1e-6, opt_betas=(0.8, 0.99)))
    assert adamw.defaults["eps"] == 1e-6 and adamw.defaults["betas"] == (0.8, 0.99)
    assert [make_optimizer(weight, Config(opt=opt)).defaults["nesterov"] for opt in ("sgd", "momentum")] == [True, False]
    config = resolve({"drop": 0.2, "attn_drop": 0.0, "drop_path": 0.3, "num_classes": 10, "scale": "0.8 1", "threads": 1})
    setup = prepare(config)
    kwargs = setup.model.config["kwargs"]
    assert (kwargs["dropout"], kwargs["attention_dropout"], kwargs["stochastic_depth"]) == (0.2, 0.0, 0.3)
    with pytest.raises(ConfigError, match="drop_last: no batch of 2000 images is left of 1438; lower --batch-size"):
        prepare(resolve({"drop_last": True, "batch_size": 2000}))
    assert (setup.config.crop_padding, setup.config.flip, setup.augment.scale) == (0, False, (0.8, 1.0))
    with pytest.raises(ConfigError, match="num_classes: got 7; embedded in scikit-learn has 10"):
        prepare(resolve({"num_classes": 7}))


# The official files: what all have in common, what belongs to a data set, and what is special to each of them.
COMMON = """
interpolation: bicubic
train_interpolation: random
aa: rand-m9-mstd0.5-inc1
mixup: 0.8
mixup_prob: 1.0
mixup_mode: batch
mixup_switch_prob: 0.5
cutmix: 1.0
remode: pixel
amp: True
cooldown_epochs: 10
opt: adamw
smoothing: 0.1
workers: 8
"""
MEANS = {
    "cifar10": ("[0.4914, 0.4822, 0.4465]", "[0.2470, 0.2435, 0.2616]"),
    "cifar100": ("[0.5071, 0.4867, 0.4408]", "[0.2675, 0.2565, 0.2761]"),
    "flowers102": ("[0.4353, 0.3773, 0.2872]", "[0.2966, 0.2455, 0.2698]"),
    "imagenet": ("[0.485, 0.456, 0.406]", "[0.229, 0.224, 0.225]"),
}
# dataset, model, classes, side, batch, lr, min_lr, sched, weight decay, epochs, warm-up epochs and rate, reprob, off epoch
OFFICIAL = [
    ("cifar10", None, 10, 32, 128, "55e-5", "1e-5", "cosine", "6e-2", 300, 10, "0.00001", 0.25, 175),
    ("cifar100", None, 100, 32, 128, "6e-4", "1e-5", "cosine", "6e-2", 300, 10, "0.000001", 0.25, 0),
    ("flowers102", None, 102, 224, 96, "5e-4", "1e-5", "cosine", "6e-2", 300, 10, "0.000001", 0.25, 0),
    ("imagenet", None, 1000, 224, 128, "5e-4", "1e-5", "cosine", "5e-2", 300, 25, "0.000001", 0.25, 0),
    ("cifar10", "cct_7-3x1_32", 10, 32, 128, "55e-5", "1e-5", "cosine", "6e-2", 300, 10, "0.00001", 0.0, 175),
    ("cifar10", "cct_7-3x1_32_sine", 10, 32, 128, "5e-4", "1e-5", "cosine", "5e-2", 1500, 10, "0.00001", 0.25, 0),
    ("cifar10", "cct_7-3x1_32_sine", 10, 32, 128, "5e-4", "1e-5", "cosine", "5e-2", 5000, 10, "0.00001", 0.25, 0),
    ("cifar100", "cct_7-3x1_32", 100, 32, 128, "6e-4", "1e-5", "cosine", "6e-2", 300, 10, "0.000001", 0.25, 0),
    ("cifar100", "cct_7-3x1_32_sine", 100, 32, 128, "7e-4", "1e-5", "cosine", "5e-2", 1500, 10, "0.000001", 0.25, 0),
    ("cifar100", "cct_7-3x1_32_sine", 100, 32, 128, "5e-4", "1e-5", "cosine", "5e-2", 5000, 10, "0.000001", 0.25, 0),
    ("flowers102", "cct_7-7x2_224_sine", 102, 224, 96, "5e-4", "1e-5", "cosine", "6e-2", 300, 10, "0.000001", 0.25, 0),
    ("imagenet", "cct_14_7x2_224", 1000, 224, 128, "5e-4", "1e-5", "cosine", "5e-2", 300, 10, "0.000001", 0.25, 0),
    ("imagenet", "cct_14_7x2_224", 1000, 384, 96, "1e-5", "0", "cosine", "0", 30, 0, "0.0", 0.25, 0),
    ("flowers102", "cct_14_7x2_384", 102, 384, 20, "5e-5", "1e-8", None, "5e-2", 300, 10, "0.000001", 0.25, 0),
]


@pytest.mark.parametrize("official", OFFICIAL, ids=lambda o: f"{o[1] or 'dataset'}-{o[0]}-{o[3]}-{o[9]}")
def test_official_files_run_unchanged(official, tmp_path):
    """Each key of the official files in their own spelling, and the configuration that comes of it."""
    data, model, classes, side, batch, lr, min_lr, sched, decay, epochs, warmup, warmup_lr, reprob, off = official
    crop, scale = (0.9, [0.08, 1.0]) if data == "imagenet" else (1.0, [0.8, 1.0])
    mean, std = MEANS[data]
    text = f"dataset: {data}\nnum_classes: {classes}\nimg_size: {side}\nmean: {mean}\nstd: {std}\ncrop_pct: {crop}\n"
    text += f"scale: {scale}\nmixup_off_epoch: {off}\nreprob: {reprob}\nbatch_size: {batch}\nlr: {lr}\nmin_lr: {min_lr}\n"
    text += f"weight_decay: {decay}\nepochs: {epochs}\nwarmup_epochs: {warmup}\nwarmup_lr: {warmup_lr}\n{COMMON}"
    text += f"sched: {sched}\n" if sched else ""
    text += "train_split: train\nval_split: valid\n" if data == "flowers102" else ""
    text += f"model: {model}\nmodel_ema: False\n" if model else ""
    text += "pretrained: True\n" if side == 384 else ""
    config = resolve({"device": "cpu"}, write(tmp_path / "official.yml", text))

    assert config == Config(
        data="flowers102_resplit" if data == "flowers102" else data, model=(model or "cct_2_3x2").replace("-", "_"),
        num_classes=classes, img_size=side, crop_pct=crop,
        mean=tuple(float(x) for x in mean[1:-1].split(",")), std=tuple(float(x) for x in std[1:-1].split(",")),
        pretrained=side == 384, val_split="valid" if data == "flowers102" else None,
        batch_size=batch, lr=float(lr), min_lr=float(min_lr), sched=sched or "step", weight_decay=float(decay),
        epochs=epochs, warmup_epochs=warmup, warmup_lr=float(warmup_lr), cooldown_epochs=10,
        scale=tuple(scale), aa="rand-m9-mstd0.5-inc1", mixup=0.8, cutmix=1.0, mixup_off_epoch=off, reprob=reprob,
        drop_last=True, crop_padding=0, hflip=0.5, smoothing=0.1, amp="bf16", device="cpu",
        model_ema_decay=0.9998,
    )  # fmt: skip
    if model:
        assert config.model in list_models()
    augment = make_augment(dataclasses.replace(config, flip=True))
    assert augment.mixes and augment.policy is not None and augment.hflip == 0.5


def test_recipes_are_the_official_files(tmp_path):
    """The recipe of a released checkpoint trains as its official file does, where both speak."""
    text = "dataset: cifar10\nmodel: cct_7-3x1_32\nreprob: 0\nmixup_off_epoch: 175\nscale: [0.8, 1.0]\nbatch_size: 128\n"
    text += "lr: 55e-5\nmin_lr: 1e-5\nsched: cosine\nweight_decay: 6e-2\nepochs: 300\nwarmup_epochs: 10\nwarmup_lr: 0.00001\n"
    official = resolve({}, write(tmp_path / "a.yml", text + COMMON))
    assert official == resolve({"crop_padding": 0, "model_ema_decay": 0.9998}, recipes.path("cct_7_3x1-cifar10"))
