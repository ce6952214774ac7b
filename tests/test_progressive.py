"""Progressive resizing: smaller training images in the first epochs, one set of parameters."""

import copy
import dataclasses
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from test_training_distributed import FLAGS, TINY, assert_same_to_rounding, finished, torchrun
from test_training_loop import Quiet, assert_same_run, configure

import cct.data
from cct.cli import main
from cct.data.images import fit_all
from cct.models import create_model
from cct.training import run as run_module
from cct.training.config import ConfigError, coerce, resolve
from cct.training.loop import resume, train
from cct.training.sizes import side_of


@pytest.fixture(scope="module")
def digits():
    whole = cct.data.load("digits", img_size=16)
    return dataclasses.replace(whole, train=whole.train.subset(slice(0, 40)), test=whole.test.subset(slice(0, 40)))


@pytest.mark.parametrize("kind", ["learnable", "sine", "none"])
@pytest.mark.parametrize("name", ["cct_2_3x2", "vit_2_4"])
def test_a_smaller_size_is_that_of_set_input_size(name, kind):
    torch.manual_seed(0)
    model = create_model(name, img_size=(16, 16), positional_embedding=kind).eval()
    other, x = copy.deepcopy(model), torch.randn(2, 3, 8, 12)
    model.accept_size((8, 12))
    other.set_input_size((8, 12))
    whole = torch.randn(2, 3, 16, 16)
    before = model(whole)
    for m in (model, other):
        F.cross_entropy(m(x), torch.tensor([1, 2])).backward()
    torch.testing.assert_close(model(x), other(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.classifier.fc.weight.grad, other.classifier.fc.weight.grad, rtol=1e-4, atol=1e-6)
    if kind == "learnable":  # the sums over the pixels agree, since the rows of an interpolation add up to one
        grads = [m.classifier.positional_emb.grad for m in (model, other)]
        torch.testing.assert_close(grads[0].sum(1), grads[1].sum(1), rtol=1e-4, atol=1e-6)
    assert torch.equal(model(whole), before) and model.state_dict().keys() == other.state_dict().keys()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(model(x).float(), other(x).float(), rtol=0.02, atol=0.02)


def test_sizes_that_a_model_cannot_take():
    model = create_model("vit_2_4", img_size=16)
    for size, message in (
        (20, "accept_size got 20 x 20; expected at most img_size 16 x 16"),
        (10, "multiples of kernel_size=4"),
    ):
        with pytest.raises(ValueError, match=message):
            model.accept_size(size)
    model.accept_size((8, 12))
    with pytest.raises(ValueError, match="two sizes that give 7 tokens cannot be told apart"):
        model.accept_size((12, 8))
    with pytest.raises(ValueError, match="input is 12 x 8; expected img_size 16 x 16"):
        model(torch.zeros(1, 3, 12, 8))
    model.set_input_size(8)
    with pytest.raises(ValueError, match="input is 8 x 12"):
        model(torch.zeros(1, 3, 8, 12))


def test_resized_splits_are_near_those_of_pillow(digits):
    split = digits.train.resized((10, 12))
    assert split.img_size == (10, 12) and torch.equal(split.labels, digits.train.labels)
    square = digits.train.resized((10, 10)).images
    assert (square.int() - fit_all(digits.train.images, (10, 10)).int()).abs().max() <= 2


def test_the_side_of_each_epoch():
    config = resolve({"progressive": {3: 24, 0: 16, 7: 32}, "epochs": 9, "img_size": 32})
    assert config.progressive == "3=24,0=16,7=32" and coerce("progressive", "0=16 3=24") == "0=16 3=24"
    assert [side_of(config, e) for e in range(9)] == [16] * 3 + [24] * 4 + [None] * 2
    late = dataclasses.replace(config, progressive="2=24")
    assert [side_of(late, e) for e in (0, 1, 2, 8)] == [None, None, 24, 24]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"progressive": "24"}, r"progressive: got '24' in '24', expected EPOCH=SIDE pairs such as 0=24,6=32"),
        ({"progressive": "0=24,x=32"}, "progressive: got 'x=32'"),
        ({"progressive": "0=0"}, "progressive: got '0=0'"),
        ({"progressive": "0=8,0=16"}, "expected each epoch once"),
        ({"progressive": [0, 24]}, r"progressive: got \[0, 24\], expected EPOCH=SIDE"),
        ({"progressive": "3=16", "epochs": 3}, r"progressive: got epoch 3, expected less than epochs \(3\)"),
    ],
)
def test_what_is_no_plan_of_sizes(given, message):
    with pytest.raises(ConfigError, match=message):
        resolve(given)


@pytest.mark.parametrize(
    ("model", "plan", "message"),
    [
        ("cct_2_3x2", "0=20", "progressive: got side 20, expected at most img_size, 16"),
        ("vit_2_4", "0=10", "progressive: side 10: img_size is 10 x 10; expected multiples of kernel_size=4"),
    ],
)
def test_a_side_that_the_model_cannot_take_ends_the_run_before_it_begins(tmp_path, monkeypatch, digits, model, plan, message):
    monkeypatch.setattr(cct.data, "load", lambda *args, **kwargs: digits)
    with pytest.raises(ConfigError, match=message):
        train(resolve({"model": model, "progressive": plan, "epochs": 2, "output": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


PLAN = {"progressive": "0=8,1=12,2=16", "crop_padding": 2, "aa": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "reprob": 0.25}


def test_resume_across_a_change_of_size_is_bit_exact(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(cct.data, "load", lambda *args, **kwargs: digits)
    seen = []
    epoch = run_module.batches.epoch
    monkeypatch.setattr(
        run_module.batches,
        "epoch",
        lambda split, **k: seen.append((split.img_size, k["augment"].crop_padding)) or epoch(split, **k),
    )
    flags = {**PLAN, "model_ema": True, "amp": "bf16", "save_seconds": 3600}
    whole = train(configure(tmp_path / "whole", **flags), log=Quiet()).folder
    assert seen == [((8, 8), 1), ((12, 12), 2), ((16, 16), 2)]
    for step in (2, 3, 4, 6, 8):  # 3 steps an epoch
        stop = Quiet({step: lambda: os.kill(os.getpid(), signal.SIGTERM)})
        run = train(configure(tmp_path / f"run-{step}", **flags), log=stop).folder
        resume(run, log=Quiet())
        assert_same_run(whole, run)


def test_graphs_are_captured_for_each_size(tmp_path, monkeypatch, digits):
    monkeypatch.setattr(cct.data, "load", lambda *args, **kwargs: digits)
    forgotten = []
    monkeypatch.setattr(run_module.Step, "forget_graphs", lambda step: forgotten.append(step))
    train(configure(tmp_path / "run", **PLAN, epochs=4), log=Quiet())
    assert len(forgotten) == 3


def test_two_workers_change_the_size_as_one_does(tmp_path):
    still = [*TINY, "dropout=0.0", "attention_dropout=0.0", "stochastic_depth=0.0", "--fused=strict"]
    still += ["--progressive", "0=6,1=8", "--epochs", "2"]
    finished(torchrun(*FLAGS, *still, "--output", tmp_path / "two"))
    assert main(["train", *FLAGS, *still, "--output", str(tmp_path / "one")]) == 0
    assert_same_to_rounding(tmp_path / "one", tmp_path / "two")


def test_the_embedding_of_a_smaller_size_is_copied_to_the_device_once():
    """A copy in every step could not be in a CUDA graph."""
    model = create_model("cct_2_3x2", img_size=16, positional_embedding="learnable")
    model.accept_size(8)
    model.double()
    with torch.no_grad():
        model(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
        ((length, matrix),) = model.classifier.other_lengths.items()
        assert matrix.dtype == torch.float64 and matrix.device == model.classifier.positional_emb.device
        model(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    assert model.classifier.other_lengths[length] is matrix
