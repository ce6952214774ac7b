"""The learning curve of a run as one PNG: loss on the left, accuracy on the right."""

import csv

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cct.models.checkpoints import write_atomically
from cct.training.values import ConfigError

# Okabe-Ito colours: told apart with every kind of colour vision.
LINES = {"train": ("train", "#0072B2"), "test": ("test", "#D55E00"), "val": ("validation", "#D55E00")}
LINES |= {"ema": ("moving average", "#009E73")}
INK, FAINT = "#222222", "#DDDDDD"


def read_metrics(path):
    """metrics.csv as a list of dicts of numbers; empty cells are left out. ConfigError naming a file that is no such."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items() if value != ""} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, csv.Error) as error:  # TypeError: a row that is too short or too long
        raise ConfigError(f"{path}: cannot be read as the metrics of a run ({error})") from None


def draw_curve(rows, path, title="", note=""):
    """Draw the rows of metrics.csv (dicts, at least one) to the PNG `path`; a value may be missing or None.

    note: said above the loss, in small letters.
    """
    figure = Figure(figsize=(10, 4.2), dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _panel(left, rows, "loss", 1.0, "Loss", "{:.3f}")
    _panel(right, rows, "top1", 100.0, "Accuracy, %", "{:.2f} %")
    left.set_title(note, loc="right", fontsize=9, color=LINES["train"][1])
    _mark_best(right, rows)
    figure.suptitle(title, x=0.012, ha="left", fontsize=12, fontweight="bold", color=INK)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def quieten(axes):
    """Faint horizontal lines and one faint axis: what every figure of ours has around its data."""
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def _panel(axes, rows, quantity, scale, title, form):
    few = len(rows) < 3
    ends = []
    for kind, (name, color) in LINES.items():
        points = _points(rows, f"{kind}_{quantity}")
        if points:
            epochs, values = [epoch for epoch, _ in points], [scale * value for _, value in points]
            axes.plot(epochs, values, color=color, linewidth=1.8, marker="o" if few else None, markersize=4)
            ends.append((values[-1], f"{name} {form.format(values[-1])}", color))
    if few:
        axes.set_xticks([row["epoch"] for row in rows])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel("epoch", fontsize=9, color=INK)
    quieten(axes)
    axes.margins(x=0.02)
    _label_ends(axes, rows[-1]["epoch"], ends)


def _points(rows, key):
    """(epoch, value) of each row that has a value: not every epoch is evaluated."""
    return [(row["epoch"], row[key]) for row in rows if row.get(key) is not None]


def _label_ends(axes, x, ends):
    """Names and last values beside the line ends, moved apart where they would touch."""
    ends = sorted(ends)
    low, high = axes.get_ylim()
    gap, places = 0.065 * (high - low), [value for value, _, _ in ends]
    for _ in range(20):
        for i in range(len(places) - 1):
            lacking = places[i] + gap - places[i + 1]
            if lacking > 0:
                places[i], places[i + 1] = places[i] - lacking / 2, places[i + 1] + lacking / 2
    for place, (_, text, color) in zip(places, ends, strict=True):
        offset = {"xytext": (7, 0), "textcoords": "offset points", "va": "center", "annotation_clip": False}
        axes.annotate(text, (x, place), fontsize=9, color=color, **offset)


def _mark_best(axes, rows):
    kind = "val" if _points(rows, "val_top1") else "test"
    color = LINES[kind][1]
    epoch, value = max(_points(rows, f"{kind}_top1"), key=lambda point: point[1], default=(None, None))
    if epoch is not None:
        axes.plot([epoch], [100 * value], marker="o", markersize=7, markerfacecolor="white", markeredgecolor=color)
        axes.set_title(f"best {100 * value:.2f} % at epoch {epoch:.0f}", loc="right", fontsize=9, color=color)
