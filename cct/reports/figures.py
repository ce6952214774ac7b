"""The figures of the report: Figures 3 to 7 of the paper, learning curves, accuracy against time."""

import itertools
import textwrap

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator

from cct.training.elapsed import clock

from . import paper
from .curves import INK, quieten, read_metrics
from .results import wall_clock
from .summary import dataset, label

# Of the lines of one figure. Okabe-Ito colours: told apart with every kind of colour vision.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
OURS = "#D55E00"
FAMILIES = {"ResNet": "#999999", "MobileNetV2": "#CC79A7", "ViT-Lite": "#E69F00", "CVT": "#009E73", "CCT": "#0072B2"}
STEPS = (1, 5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 21600, 43200, 86400)  # seconds between two ticks
NUMBERS = {
    "figure4": "training images of each class",
    "figure5": "side of the images, pixels",
    "figure6": "side of the images, pixels",
    "figure7": "side of the images at evaluation, pixels",
}
LARGEST = 12.0  # million parameters, as in the paper
# Rows named in the figure, and how far above its point a name stands, in letters' heights.
NAMED = {
    "CCT-2/3x2": 0, "CCT-4/3x2": 0, "CCT-7/3x1*": 0.3, "CCT-7/3x1": 0, "CCT-7/3x2": 0, "CVT-7/4": 0, "ViT-Lite-7/4": -0.7,
    "ViT-Lite-7/8": -0.3, "CVT-7/8": 0.3, "ViT-Lite-7/16": 0, "ResNet110": 0, "ResNet18": -0.7, "ResNet1k-v2*": 0,
    "MobileNetV2/2.0": 0.5, "MobileNetV2/0.5": 0,
}  # fmt: skip


def by_size(tables):
    """Figure 3: CIFAR-10 accuracy against parameters below 12 M; printed points, and rings for what was run here."""
    figure, axes = _figure((7.2, 4.6))
    seen = {}
    for table in (table for table in tables if table.key in ("1", "11")):
        for row, cells in table.rows.items():
            family = next((name for name in FAMILIES if row.startswith(name)), None)
            size = float(table.sizes.get(row, ("", ""))[0] or "inf")
            if family and size < LARGEST and "cifar10" in cells:
                seen[row] = (family, size, cells["cifar10"])
    for family, color in FAMILIES.items():
        points = [(size, float(cell.printed)) for name, size, cell in seen.values() if name == family]
        axes.scatter(*zip(*points, strict=True), s=26, color=color, label=family, zorder=3)
    for text, style, finished in (("run here", "-", True), ("run here, shorter or not finished", ":", False)):
        ours = [
            (size, float(cell.ours["last"])) for _, size, cell in seen.values() if cell.ours and bool(cell.remark) != finished
        ]
        if ours:
            ring = {"s": 90, "facecolors": "none", "edgecolors": OURS, "linewidths": 1.6, "linestyles": style, "zorder": 4}
            axes.scatter(*zip(*ours, strict=True), label=text, **ring)
    for row, up in NAMED.items():
        if row in seen:
            _, size, cell = seen[row]
            right = size < 10
            place = {"xytext": (8 if right else -8, 9 * up), "textcoords": "offset points", "ha": "left" if right else "right"}
            axes.annotate(row, (size, float(cell.printed)), fontsize=8, color=INK, va="center", **place)
    axes.set_xlim(0, LARGEST)
    axes.set_title("CIFAR-10 top-1, %", loc="left", fontsize=10, color=INK)
    axes.set_xlabel("parameters, millions", fontsize=9, color=INK)
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    return figure


def by_number(tables):
    """{title: figure} for those of Figures 4 to 7 that runs give points of: accuracy against the number in the rows' names."""
    drawn = {}
    for table in (table for table in tables if table.key in NUMBERS):
        lines = {}
        for row, cells in table.rows.items():
            name, _, number = row.removesuffix(" per class").rpartition(" at ")
            for data, cell in cells.items():
                if cell.ours:
                    lines.setdefault(f"{name}, {paper.DATA_SETS[data]}", []).append((int(number), cell))
        if lines:
            drawn[paper.title(table.key)] = _numbered(table.key, lines)
    return drawn


def _numbered(key, lines):
    figure, axes = _figure((5.2, 3.7))
    for color, (name, points) in zip(itertools.cycle(COLORS), lines.items(), strict=False):
        points.sort(key=lambda point: point[0])
        values = [(number, float(cell.ours["last"])) for number, cell in points]
        axes.plot(*zip(*values, strict=True), color=color, linewidth=1.6, label=name)
        for finished in (True, False):  # rings for what is not the recipe to its end
            some = [value for value, (_, cell) in zip(values, points, strict=True) if bool(cell.remark) != finished]
            if some:
                face = color if finished else "white"
                axes.scatter(*zip(*some, strict=True), s=26, edgecolors=color, facecolors=face, zorder=3)
    rings = any(cell.remark for points in lines.values() for _, cell in points)
    axes.set_title(f"{paper.TITLES[key]}: top-1, %", loc="left", fontsize=10, color=INK)
    axes.set_xlabel(NUMBERS[key] + (" (rings: shorter or not finished)" if rings else ""), fontsize=9, color=INK)
    axes.set_xticks(sorted({number for points in lines.values() for number, _ in points}))
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    return figure


def learning_curves(runs):
    """{data set: figure} with the held-out accuracy after each epoch, a line for each run."""
    return _panels(runs, "epoch", lambda rows: [row["epoch"] for row in rows])


def by_time(runs):
    """{data set: figure} with the held-out accuracy against wall-clock time, a line for each run."""
    return _panels(runs, "wall clock from the start of the process", wall_clock)


def _panels(runs, title, place):
    groups = {name: [] for name in paper.DATA_SETS}
    for run in sorted(runs, key=lambda run: -run["last"]):
        groups.setdefault(dataset(run), []).append(run)
    return {name: _panel(name, members, title, place) for name, members in groups.items() if members}


def _panel(name, runs, title, place):
    labels = [textwrap.fill(f"{label(run)}  {run['last']:.2f} %", 66, subsequent_indent="    ") for run in runs[: len(COLORS)]]
    figure, axes = _figure((5.2, 3.4 + 0.16 * sum(text.count("\n") + 1 for text in labels)))
    heights = []
    for color, run, text in zip(COLORS, runs, labels, strict=False):
        rows, key = read_metrics(run["curve"]), f"{run['split']}_top1"
        points = [(x, 100 * row[key]) for x, row in zip(place(rows), rows, strict=True) if key in row]
        heights.append([y for _, y in points])
        style = {"linewidth": 1.6, "marker": "o" if len(points) < 12 else None, "markersize": 3.5}
        axes.plot(*zip(*points, strict=True), color=color, label=text, **style)
    rest = f", the best {len(COLORS)} of {len(runs)} runs" if len(runs) > len(COLORS) else ""
    floor, top = _floor(heights), max(map(max, heights))
    axes.set_ylim(floor, min(100, top + 0.05 * (top - floor)))
    axes.set_title(f"{paper.DATA_SETS.get(name, name)} top-1, %{rest}", loc="left", fontsize=10, color=INK)
    axes.set_xlabel(title, fontsize=9, color=INK)
    figure.legend(frameon=False, fontsize=8, labelcolor=INK, loc="outside lower left")  # names may be longer than the axes
    axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    if place is wall_clock:
        longest = axes.get_xlim()[1]
        axes.set_xlim(left=0)
        step = next((step for step in STEPS if longest <= 6 * step), max(longest / 5, STEPS[-1]))
        axes.xaxis.set_major_locator(MultipleLocator(step))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda seconds, _: clock(seconds)))
    return figure


def _floor(lines):
    """Where the axis begins: so that the first epochs do not press the rest flat, and no line is left out."""
    points, bests = sorted(y for line in lines for y in line), [max(line) for line in lines]
    return min(points[len(points) // 10], min(bests) - 0.15 * (max(bests) - min(bests))) - 0.5


def _figure(size):
    figure = Figure(figsize=size, dpi=150, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    quieten(axes)
    return figure, axes
