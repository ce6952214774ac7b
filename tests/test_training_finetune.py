"""Fine-tuning through the command: another image size resizes the embedding, other classes replace the head."""

import numpy as np
import pytest
import torch
from PIL import Image

from cct.cli import main
from cct.models import create_model
from cct.models.checkpoints import load_checkpoint, load_weights
from cct.models.positional import resize

TINY = ["--model-kwargs", "embedding_dim=32", "num_layers=1", "num_heads=1"]
FAST = ["--epochs", "1", "--batch-size", "64", "--threads", "1", "--device", "cpu", *TINY]
STILL = ["--lr", "1e-12", "--warmup-lr", "1e-12", "--weight-decay", "0", "--min-lr", "0"]  # keeps the weights they began with
EMBEDDING, HEAD = "classifier.positional_emb", "classifier.fc.weight"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The weights of a run on the digits at 8 x 8."""
    folder = tmp_path_factory.mktemp("base") / "run"
    assert main(["train", *FAST, "--img-size", "8", "--samples-per-class", "40", "--lr", "3e-3", "--output", str(folder)]) == 0
    return folder / "last.safetensors"


def tune(base, folder, *flags):
    assert main(["train", *FAST, *STILL, "--pretrained", str(base), "--output", str(folder), *map(str, flags)]) == 0
    return load_checkpoint(folder / "last.safetensors")


def test_another_size(base, tmp_path, caplog):
    before, _ = load_checkpoint(base)
    after, config = tune(base, tmp_path / "run", "--img-size", 16, "--samples-per-class", 20)
    expected = resize(before[EMBEDDING], (2, 2), (4, 4), 0)
    assert after[EMBEDDING].shape == (1, 16, 32) and torch.allclose(after[EMBEDDING], expected, atol=1e-6)
    assert torch.allclose(after[HEAD], before[HEAD], atol=1e-6) and config["preprocessing"]["size"] == [16, 16]
    assert "positional embedding resized from 2 x 2 to 4 x 4 tokens" in caplog.text


@pytest.mark.parametrize("as_pth", [False, True])
def test_other_classes_and_another_size(base, tmp_path, caplog, as_pth):
    """Three classes of grey pictures, 12 x 16 pixels cut to 12; from our file, and from a bare .pth as others publish them."""
    rng = np.random.default_rng(0)
    for kind in range(3):
        for part, n in (("train", 6), ("valid", 3), ("test", 2)):
            for i in range(n):
                path = tmp_path / "photos" / part / f"kind{kind}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (12, 16), dtype=np.uint8)).save(path)
    before, _ = load_checkpoint(base)
    if as_pth:
        base = tmp_path / "base.pth"
        torch.save(before, base)
    flags = [
        "--data",
        "folder",
        "--data-dir",
        tmp_path / "photos",
        "--img-size",
        12,
        "--val-split",
        "valid",
        "--num-classes",
        3,
    ]
    after, config = tune(base, tmp_path / "run", *flags, "--scale", 0.5, 1, "--stream")
    assert after[HEAD].shape == (3, 32) and config["classes"] == ["kind0", "kind1", "kind2"]
    assert after[EMBEDDING].shape == (1, 9, 32)
    assert "resized from 2 x 2 to 3 x 3" in caplog.text and "the head for 3 classes is new and untrained" in caplog.text
    body = [name for name in before if name not in (EMBEDDING, HEAD, "classifier.fc.bias")]
    assert all(torch.allclose(after[name], before[name], atol=1e-6) for name in body)
    assert "test/ 6 images" in config["data"]["split"]
    header = (tmp_path / "run/metrics.csv").read_text().splitlines()[0]
    assert "val_top1" in header and "test_top1" not in header
    assert main(["eval", str(tmp_path / "run"), "--split", "test"]) == 0


def test_from_224_to_384():
    """As ImageNet at 224 becomes ImageNet at 384 and Flowers-102: the grid of 14 x 14 tokens becomes 24 x 24."""
    small = create_model("cct_14_7x2_224", num_layers=1)
    large = create_model("cct_14_7x2_384_fl", num_layers=1)
    lines = load_weights(large, small.state_dict())
    assert lines[0] == "positional embedding resized from 14 x 14 to 24 x 24 tokens"
    assert lines[1].endswith("the head for 102 classes is new and untrained")
    expected = torch.nn.functional.interpolate(
        small.classifier.positional_emb.detach().view(1, 14, 14, 384).permute(0, 3, 1, 2), (24, 24), mode="bilinear"
    )
    ours = large.classifier.positional_emb.detach().view(1, 24, 24, 384).permute(0, 3, 1, 2)
    assert torch.allclose(ours, expected, atol=1e-6)


def test_weights_of_another_model_are_refused(base, tmp_path, capsys):
    words = ["train", "--epochs", "1", "--model", "cct_4_3x2", "--pretrained", str(base), "--output", str(tmp_path / "run")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "last.safetensors: the weights are of another model" in error and "create the model they were trained as" in error
