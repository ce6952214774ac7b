"""The tables from bench/results: `python -m bench.table` prints them, `--readme README.md` puts a summary and the whole models
in their place there and all rows into bench/results/README.md, `--chart FILE.png` draws the models. Of several lines about the
same row the last counts."""

import argparse
import itertools
import json
from pathlib import Path

from . import record
from .record import RESULTS, best_peer, share_of_roof

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
REST = "inference after 0.2 s of rest"
KEY = ("kind", "what", "direction", "device", "dtype", "batch", "threads", "stage")


def load(folder=RESULTS):
    """{machine: [row, ...]}, the newest line of each row, in the order of first appearance."""
    machines = {}
    for path in sorted(folder.glob("*.jsonl")):
        rows = {}
        for line in filter(None, path.read_text().splitlines()):
            row = json.loads(line)
            rows[tuple(row.get(k) for k in KEY)] = row
        machines[path.stem] = list(rows.values())
    return machines


def render(machines, ops=True):
    """Markdown. ops=False: the whole models alone, each machine's table behind a line that opens it."""
    parts = []
    for rows in machines.values():
        newest = max(rows, key=lambda row: row["date"])
        name = machine_name(newest)
        made = f"(PyTorch {newest['versions']['torch']}, {newest['date'][:10]}, commit {newest['commit']})"
        parts.append(f"**{name}** {made}\n" if ops else f"<details><summary><b>{name}</b> {made}</summary>\n")
        parts.append("| what | batch | dtype | ours | best peer | ours against it | of the roof |")
        parts.append("|---|---:|---|---:|---:|---:|---:|")
        parts += [_line(row) for row in _in_order(rows) if "ours" in row["peers"] and (ops or row["kind"] != "op")]
        parts += ["", *_imports(rows), *([] if ops else ["</details>\n"])]
    return "\n".join(parts).strip() + "\n"


def machine_name(row):
    facts = row["machine"]
    cpu = ", ".join([facts["cpu"], *facts["features"][-1:], f"{facts['cores']} cores"])  # the highest instruction set
    return facts.get("gpu") if row.get("device") == "cuda" else cpu


SUMMARY = {  # column: the rows that it sums up
    "inference, float32": ("inference", "float32"),
    "inference, bfloat16": ("inference", "bfloat16"),
    "training step, float32": ("training", "float32"),
    "training step, bfloat16": ("training", "bfloat16"),
    "memory of a step": ("memory", None),
    "single ops": ("op", None),
}


def summary(machines):
    """Markdown: the least and the greatest ratio of the best peer to ours, machine by machine, and every row that is behind."""
    parts = [f"| ours against the best peer | {' | '.join(SUMMARY)} |", "|---|" + "---:|" * len(SUMMARY)]
    compared = [row for rows in machines.values() for row in _in_order(rows) if "ours" in row["peers"] and best_peer(row)]
    groups = {}
    for row in compared:
        groups.setdefault(machine_name(row), []).append(row)
    for name, rows in groups.items():
        cells = [name]
        for kind, dtype in SUMMARY.values():
            ratios = [ratio(row) for row in rows if row["kind"] == kind and dtype in (None, row["dtype"])]
            cells.append(f"{min(ratios):.2f} to {max(ratios):.2f}x" if ratios else "")
        parts.append(f"| {' | '.join(cells)} |")
    behind = [row for row in compared if ratio(row) < 1]
    parts += ["", f"Ours is behind in {len(behind)} of {len(compared)} rows{':' if behind else '.'}"]
    for row in behind:
        name, best = best_peer(row)
        times = f"{value(row, row['peers']['ours']['median'])} against {value(row, best)} of {name}"
        parts.append(f"- {machine_name(row)}: {record.title(row)}, {times} ({ratio(row):.2f}x).")
    return "\n".join(parts) + "\n"


def ratio(row):
    """How many times faster, or smaller, ours is than the best peer."""
    return best_peer(row)[1] / row["peers"]["ours"]["median"]


def _in_order(rows):
    """By kind, then models in the order of their first row, dtypes, batches."""
    kinds, names = ("inference", REST, "training", "memory", "op"), list(dict.fromkeys(row.get("what") for row in rows))

    def place(row):
        kind = kinds.index(row["kind"]) if row["kind"] in kinds else len(kinds)
        return kind, names.index(row.get("what")), row.get("dtype") or "", row.get("batch") or 0

    return sorted(rows, key=place)


def _line(row):
    ours, best = row["peers"]["ours"]["median"], best_peer(row)
    share = share_of_roof(row, ours)
    cells = [
        " ".join(filter(None, [row["kind"], row["what"], row.get("direction")])),
        row["batch"],
        row["dtype"],
        value(row, ours),
        f"{best[0]} {value(row, best[1])}" if best else "none",
        f"{ratio(row):.2f}x" if best else "",
        "" if share is None else f"{share:.0%}",
    ]
    return f"| {' | '.join(map(str, cells))} |"


def value(row, value):
    if row["unit"] == "bytes":
        return f"{value / 1e6:.0f} MB"
    if row["kind"] in ("inference", "training"):
        return f"{row['batch'] / value:.0f} img/s"
    return f"{value * 1e3:.3g} ms"


def _imports(rows):
    for row in rows:
        if row["kind"] == "import":
            times = ", ".join(f"`{name}` {peer['median']:.2f} s" for name, peer in row["peers"].items())
            yield f"Import {row['what']}: {times}.\n"


CHARTED = {"inference": "Inference", "training": "Training step", "memory": "Peak memory of a training step"}
MARKS = (("o", "#2a6f97"), ("s", "#e09f3e"), ("D", "#6a4c93"), ("^", "#3a7d44"), ("v", "#555555"))


def chart(machines, path):
    """Whole models, a panel for each kind and a mark for each machine: ours against the best peer; logarithmic."""
    from matplotlib.figure import Figure

    panels = {kind: {} for kind in CHARTED}  # {kind: {label of a line: {(machine, device): ratio}}}
    names = {}
    for machine, rows in machines.items():
        for row in rows:
            if row["kind"] not in panels or "ours" not in row["peers"] or not best_peer(row):
                continue
            series = machine, row["device"]
            names[series] = machine_name(row)
            place = (row["what"], row["dtype"], row["batch"])
            panels[row["kind"]].setdefault(place, {})[series] = ratio(row)
    panels = {kind: lines for kind, lines in panels.items() if lines}
    models = list(dict.fromkeys(what for lines in panels.values() for what, _, _ in lines))
    heights = [len(lines) + 1.5 for lines in panels.values()]
    figure = Figure(figsize=(9, 1.2 + 0.24 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights, squeeze=False)[:, 0]
    for axes, (kind, lines) in zip(grid, panels.items(), strict=True):
        places = sorted(lines, key=lambda place: (models.index(place[0]), *place[1:]))
        for y, place in enumerate(places):
            axes.plot([1, *lines[place].values()], [y] * (1 + len(lines[place])), color="#cccccc", linewidth=1, zorder=1)
        for (series, name), (marker, colour) in zip(names.items(), itertools.cycle(MARKS), strict=False):
            points = [(lines[place][series], y) for y, place in enumerate(places) if series in lines[place]]
            axes.scatter(*zip(*points, strict=True) if points else ([], []), 26, colour, marker=marker, label=name, zorder=2)
        axes.set_yticks(range(len(places)), [f"{what}, batch {batch}, {dtype}" for what, dtype, batch in places], fontsize=8)
        axes.set_title(CHARTED[kind], loc="left", fontsize=10, fontweight="bold")
        axes.axvline(1, color="black", linewidth=1)
        axes.axvspan(0.01, 1, color="#c1440e", alpha=0.08, linewidth=0)
        axes.set_ylim(len(places) - 0.4, -0.6)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    ratios = [r for lines in panels.values() for line in lines.values() for r in line.values()]
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.9 * min(1, *ratios), 1.1 * max(1, *ratios))
    ticks = [t for t in (0.5, 0.7, 1, 1.5, 2, 3, 4, 6, 8) if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]]
    axes.set_xticks(ticks, [f"{t:g}x" for t in ticks])
    axes.set_xlabel("ours against the best peer: right of 1x ours is faster, or smaller")
    figure.legend(
        *grid[0].get_legend_handles_labels(), loc="outside upper left", ncols=min(2, len(names)), frameon=False, fontsize=9
    )
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, help=f"replace what stands between {BEGIN} and {END}; write RESULTS/README.md")
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    machines = load(args.results)
    if not machines:
        parser.error(f"no results in {args.results}; run `pytest bench/ --benchmark` first")
    if args.chart:
        chart(machines, args.chart)
    if args.readme is None:
        print(render(machines), end="")
        return
    page = args.readme.read_text()
    if BEGIN not in page or END not in page:
        parser.error(f"{args.readme} has no {BEGIN} ... {END}")
    head, tail = page.split(BEGIN, 1)[0], page.split(END, 1)[1]
    args.readme.write_text(f"{head}{BEGIN}\n{summary(machines)}\n{render(machines, ops=False)}{END}{tail}")
    (args.results / "README.md").write_text(f"# All rows, ops too\n\nWritten by `python -m bench.table`.\n\n{render(machines)}")


if __name__ == "__main__":
    main()
