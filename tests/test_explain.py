"""`cct explain`: roll-out by hand, what the maps mean, the PNG files, and its mistakes."""

import numpy as np
import pytest
import torch
from PIL import Image

from cct.cli import main
from cct.commands.checkpoint import open_checkpoint
from cct.reports.attention import heat_maps, rollout


def photo(path, size=(24, 16)):
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return str(path)


def fails(capsys, *words):
    assert main([str(word) for word in words]) in (1, 2)
    text = capsys.readouterr().err
    assert "Traceback" not in text and len(text.splitlines()) == 1, text
    return text


def test_rollout_by_hand():
    """Two tokens, two heads: block 1 attends crosswise in one head and straight in the other, block 2 to token 0 only."""
    first = torch.tensor([[[[0.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]])
    second = torch.tensor([[[[1.0, 0.0], [1.0, 0.0]]] * 2])
    A1 = torch.tensor([[0.75, 0.25], [0.25, 0.75]])
    A2 = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    torch.testing.assert_close(rollout([first, second])[0], A2 @ A1)
    assert not torch.allclose(A2 @ A1, A1 @ A2)


def test_maps_of_a_seqpool_model(checkpoint):
    model, _ = open_checkpoint(checkpoint(img_size=(8, 12)))
    x = torch.randn(2, 3, 8, 12)
    heats = heat_maps(model, x)
    assert list(heats) == ["SeqPool weights", "Attention roll-out"]
    weights = model.seqpool_weights(x)
    torch.testing.assert_close(heats["SeqPool weights"], weights.view(2, 4, 6))
    flow = rollout(model.attention_maps(x))
    torch.testing.assert_close(flow.sum(-1), torch.ones(2, 24))
    expected = sum(weights[:, i, None] * flow[:, i] for i in range(24))
    torch.testing.assert_close(heats["Attention roll-out"].flatten(1), expected)


def test_maps_of_a_class_token(checkpoint):
    model, _ = open_checkpoint(checkpoint("vit_7_4"))
    x = torch.randn(2, 3, 8, 8)
    heats = heat_maps(model, x)
    assert list(heats) == ["Class token, last block", "Attention roll-out"]
    row = model.attention_maps(x)[-1].mean(1)[:, 0]
    torch.testing.assert_close(heats["Class token, last block"].flatten(1), row[:, 1:] / (1 - row[:, :1]))
    assert all(torch.allclose(heat.sum((1, 2)), torch.ones(2)) and heat.shape == (2, 2, 2) for heat in heats.values())


@pytest.mark.parametrize("name", ["cct_7_3x1", "vit_7_4"])
def test_one_png_for_each_image(name, checkpoint, tmp_path, capsys):
    (tmp_path / "b").mkdir()
    images = [photo(tmp_path / "cat.png"), photo(tmp_path / "b" / "cat.png", (8, 8))]
    assert main(["explain", str(checkpoint(name)), *images, "--output", str(tmp_path / "maps" / "new")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 2 and "cat-explained-2.png" in out[1] and " %, " in out[0]
    for file in ("cat-explained.png", "cat-explained-2.png"):
        picture = np.asarray(Image.open(tmp_path / "maps" / "new" / file).convert("RGB")).astype(int)
        assert picture.shape[1] > 1500 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 100
    assert main(["explain", str(checkpoint(in_chans=1)), images[0], "--output", str(tmp_path / "grey"), "--top", "2"]) == 0


def test_mistakes(checkpoint, tmp_path, capsys, monkeypatch):
    weights, image = checkpoint(), photo(tmp_path / "cat.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG broken")
    assert "nowhere: does not exist" in fails(capsys, "explain", "nowhere", image)
    assert "x.png: there is no such file" in fails(capsys, "explain", weights, "x.png")
    assert "--top: got 0" in fails(capsys, "explain", weights, image, "--top", 0)
    maps = tmp_path / "maps"
    assert "broken.png: cannot be read as an image" in fails(capsys, "explain", weights, image, broken, "--output", maps)
    assert not maps.exists()  # the good image before the broken one left nothing either
    assert "--output" in fails(capsys, "explain", weights, image, "--output", image)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    assert f"cannot save to {maps}: the disk is full" in fails(capsys, "explain", weights, image, "--output", maps)
    assert not list(maps.iterdir())
