"""The README's table from bench/results: `python -m bench.table` prints it, `--readme README.md` puts it in its place there,
`--chart FILE.png` draws it. Of several lines about the same row the last counts."""

import argparse
import json
from pathlib import Path

from .record import RESULTS, best_peer, share_of_roof

BEGIN, END = "<!-- bench -->", "<!-- /bench -->"
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


def render(machines):
    parts = []
    for rows in machines.values():
        newest = max(rows, key=lambda row: row["date"])
        facts = newest["machine"]
        name = facts.get("gpu") or f"{facts['cpu']}, {facts['cores']} cores, {', '.join(facts['features'])}"
        parts.append(f"**{name}** (PyTorch {newest['versions']['torch']}, {newest['date'][:10]}, commit {newest['commit']})\n")
        parts.append("| what | batch | dtype | ours | best peer | ours against it | of the roof |")
        parts.append("|---|---:|---|---:|---:|---:|---:|")
        parts += [_line(row) for row in rows if "ours" in row["peers"]]
        parts += ["", *_imports(rows)]
    return "\n".join(parts).strip() + "\n"


def _line(row):
    ours, best = row["peers"]["ours"]["median"], best_peer(row)
    share = share_of_roof(row, ours)
    cells = [
        " ".join(filter(None, [row["kind"], row["what"], row.get("direction")])),
        row["batch"],
        row["dtype"],
        value(row, ours),
        f"{best[0]} {value(row, best[1])}" if best else "none",
        f"{best[1] / ours:.2f}x" if best else "",
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


def chart(machines, path):
    """Bars: how many times faster (or smaller) ours is than the best peer, for each row."""
    from matplotlib.figure import Figure

    rows = [row for rows in machines.values() for row in rows if "ours" in row["peers"] and best_peer(row)]
    ratios = [best_peer(row)[1] / row["peers"]["ours"]["median"] for row in rows]
    labels = [f"{r['kind']} {r['what']} {r.get('direction', '')} B{r['batch']} {r['dtype']} {r['device']}" for r in rows]
    figure = Figure(figsize=(10, 1 + 0.28 * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(rows)), ratios, color=["tab:blue" if ratio >= 1 else "tab:red" for ratio in ratios])
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xlabel("best peer / ours (time, or memory): above 1 ours is better")
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.table", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, help=f"replace what stands between {BEGIN} and {END}")
    parser.add_argument("--chart", type=Path)
    args = parser.parse_args()
    machines = load(args.results)
    if not machines:
        parser.error(f"no results in {args.results}; run `pytest bench/ --benchmark` first")
    text = render(machines)
    if args.chart:
        chart(machines, args.chart)
    if args.readme is None:
        print(text, end="")
        return
    page = args.readme.read_text()
    if BEGIN not in page or END not in page:
        parser.error(f"{args.readme} has no {BEGIN} ... {END}")
    head, tail = page.split(BEGIN, 1)[0], page.split(END, 1)[1]
    args.readme.write_text(f"{head}{BEGIN}\n{text}{END}{tail}")


if __name__ == "__main__":
    main()
