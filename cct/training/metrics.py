"""metrics.csv and metrics.jsonl of a run: one row for each finished epoch."""

import csv
import io
import json
from pathlib import Path

from cct.models.checkpoints import write_atomically


def write_metrics(folder, rows):
    """Write all rows (dicts with equal keys) to metrics.csv and metrics.jsonl.

    The files are written whole, from the rows that the resume state keeps, so no row can be missing or double after a resume.
    """
    if not rows:
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    for name, text in (("metrics.csv", table.getvalue()), ("metrics.jsonl", lines)):
        write_atomically(Path(folder) / name, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))


def best_row(rows, split):
    """The first row with the highest accuracy on `split` ("test" or "val"), or None."""
    return max(rows, key=lambda row: row[f"{split}_top1"], default=None)


def summary(rows, data, split):
    """The plain sentence about a run: 'digits test top-1 98.33 % (epoch 30, best 98.61 % at epoch 27)'."""
    last, best = rows[-1], best_row(rows, split)
    ema = f", moving average {percent(last['ema_top1'])}" if "ema_top1" in last else ""
    return (
        f"{data} {split} top-1 {percent(last[f'{split}_top1'])} "
        f"(epoch {last['epoch']}, best {percent(best[f'{split}_top1'])} at epoch {best['epoch']}{ema})"
    )


def percent(fraction):
    """0.98333 -> '98.33 %'."""
    return f"{100 * fraction:.2f} %"
