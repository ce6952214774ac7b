"""curve.png from the rows of metrics.csv."""

import numpy as np
import pytest
from PIL import Image

from cct.reports.curves import LINES, draw_curve, read_metrics
from cct.training.metrics import write_metrics


def make_rows(n, split="test", ema=False):
    kinds = ("train", split, *(("ema",) if ema else ()))
    rows = [{"epoch": e + 1} for e in range(n)]
    for row in rows:
        for i, kind in enumerate(kinds):
            row |= {
                f"{kind}_loss": 2.0 / row["epoch"] + i,
                f"{kind}_top1": 1 - 0.5 / row["epoch"] - 0.1 * i,
                f"{kind}_top5": None,
            }
    return rows


def colors_in(path):
    pixels = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    found = {f"#{r:02X}{g:02X}{b:02X}" for r, g, b in np.unique(pixels, axis=0)}
    return {kind for kind, (_, color) in LINES.items() if color in found}


@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize(("split", "ema"), [("test", False), ("val", True)])
def test_every_line_is_drawn(tmp_path, n, split, ema):
    draw_curve(make_rows(n, split, ema), tmp_path / "curve.png", "a title", "a note")
    assert Image.open(tmp_path / "curve.png").size == (1500, 630)
    # Test and validation share a colour: a run has one of them.
    assert colors_in(tmp_path / "curve.png") == {"train", "test", "val"} | ({"ema"} if ema else set())
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_metrics_read_back(tmp_path):
    rows = make_rows(3)
    write_metrics(tmp_path, rows)
    stored = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert read_metrics(tmp_path / "metrics.csv") == stored
    write_metrics(tmp_path, rows[:2])
    assert read_metrics(tmp_path / "metrics.csv") == stored[:2]
