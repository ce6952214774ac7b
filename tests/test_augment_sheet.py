"""The contact sheet: which images, what stands under them, and the command that draws it."""

import pytest
import torch
from PIL import Image

import cct.data
from cct.cli import main
from cct.data import Augment
from cct.reports import sheet


def test_each_class_comes_once_before_any_comes_twice():
    labels = torch.tensor([2, 2, 0, 2, 1, 0, 3])
    assert sheet.choose(labels, 4).tolist() == [2, 4, 0, 6]
    assert sheet.choose(labels, 6).tolist() == [2, 4, 0, 6, 5, 1]
    assert len(sheet.choose(labels, 20)) == 7


def test_captions_are_the_targets_of_the_batches():
    data, augment = cct.data.load("digits"), Augment(2, False, mixup=0.8, cutmix=1.0, smoothing=0.0)
    rows = list(sheet.mixed_batches(data, augment, seed=1))
    assert len(rows) == sheet.BATCHES and {kind for (kind, _), _, _ in rows} == {"mixup", "CutMix"}
    for (_, where), images, captions in rows:
        lam = float(where.rpartition(" ")[2])
        assert images.shape[0] == len(captions) == sheet.EPOCHS + 1
        for caption in captions:
            weights = [float(line.split()[0]) for line in caption.splitlines()]
            assert weights == sorted(weights, reverse=True) and sum(weights) == pytest.approx(1, abs=0.011)
            assert min(abs(w - lam) for w in weights) < 0.006 or weights == [1.0]


@pytest.mark.parametrize(
    "flags", [[], ["--aa", "rand-m9-mstd0.5-inc1", "--scale", "0.8", "1", "--mixup", "0.8", "--reprob", "0.5"]]
)
def test_the_command_draws_a_sheet(tmp_path, capsys, flags):
    path = tmp_path / "sheet.png"
    assert main(["data", "show", "--img-size", "8", "--output", str(path), *flags]) == 0
    with Image.open(path) as image:
        assert image.width == 1650 and image.height > 900 * (1 + bool(flags) / 2)
        extremes = image.convert("L").getextrema()
    assert extremes[0] < 40 and extremes[1] == 255
    assert ("mixup 0.8, erasing 0.5" if flags else "crop after padding 1") in capsys.readouterr().out


def test_a_folder_can_be_shown(tmp_path):
    for name, value in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (12, 10), value).save(tmp_path / part / name / "a.png")
    path = tmp_path / "sheet.png"
    assert main(["data", "show", str(tmp_path), "--img-size", "16", "--cutmix", "1", "--output", str(path)]) == 0
    with Image.open(path) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert (200, 0, 0) in colours and (0, 0, 200) in colours


def test_mistakes_are_named(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["data", "show", "--output", str(tmp_path / "file" / "sheet.png")]) == 2
    assert "cannot make this folder" in capsys.readouterr().err
    (tmp_path / "sheet.png").mkdir()
    assert main(["data", "show", "--img-size", "8", "--output", str(tmp_path / "sheet.png")]) == 1
    assert f"cannot save to {tmp_path}: Is a directory" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["data", "show", "--mixup-alpha", "1"])
    assert "--mixup" in capsys.readouterr().err
    assert main(["data", "show", "--aa", "randaugment"]) == 2
    assert "expected autoaugment, or rand" in capsys.readouterr().err
