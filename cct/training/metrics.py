"""metrics.csv and metrics.jsonl of a run: one row for each finished epoch."""

import csv
import io
import json
from pathlib import Path

from cct.models.checkpoints import write_atomically

from .elapsed import clock


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


def evaluated(rows, split):
    """The rows of epochs after which the model was evaluated; the others hold None on `split` ("test" or "val")."""
    return [row for row in rows if row[f"{split}_top1"] is not None]


def best_row(rows, split):
    """The first row with the highest accuracy on `split`, or None."""
    return max(evaluated(rows, split), key=lambda row: row[f"{split}_top1"], default=None)


def reached(row, split, target):
    """(accuracy, which weights) of the row when it is at least `target` percent, else None; the better of model and average."""
    kinds = {"": row[f"{split}_top1"], " of the moving average": row.get("ema_top1")}
    top1, kind = max((value, kind) for kind, value in kinds.items() if value is not None)
    return (top1, kind) if target is not None and 100 * top1 >= target else None


def finished(state, planned, target):
    """Whether a run in this resume state has nothing left to train: it had its `planned` epochs, or is at its target."""
    split = next((name for name in ("test", "val") if any(f"{name}_top1" in row for row in state["rows"])), None)
    rows = evaluated(state["rows"], split) if split else []
    return state["epoch"] >= planned or bool(rows and reached(rows[-1], split, target))


def summary(rows, data, split, target=None, reported=None):
    """The plain sentence about a run: 'digits test top-1 98.33 % (epoch 30, best 98.61 % at epoch 27)'.

    Of a run with a target, in percent: '80.12 % test top-1 after 3:41 from process start (digits, epoch 7)', if it got there.
    reported: what to call the split, where not by its name.
    """
    last, best, reported = evaluated(rows, split)[-1], best_row(rows, split), reported or split
    if hit := reached(last, split, target):
        top1, kind = hit
        return (
            f"{percent(top1)} {reported} top-1{kind} after {clock(last['seconds_from_start'])} from process start "
            f"({data}, epoch {last['epoch']})"
        )
    missed = "" if target is None else f"; the target of {target:g} % was not reached"
    ema = f", moving average {percent(last['ema_top1'])}" if "ema_top1" in last else ""
    return (
        f"{data} {reported} top-1 {percent(last[f'{split}_top1'])} "
        f"(epoch {last['epoch']}, best {percent(best[f'{split}_top1'])} at epoch {best['epoch']}{ema}){missed}"
    )


def percent(fraction):
    """0.98333 -> '98.33 %'."""
    return f"{100 * fraction:.2f} %"
