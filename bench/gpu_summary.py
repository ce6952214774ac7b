"""What bench/gpu.sh measured beside what the project wants: `python -m bench.gpu_summary [--results DIR]` prints a table."""

import argparse
from pathlib import Path
from typing import NamedTuple

from . import table
from .record import RESULTS


class Target(NamedTuple):
    """A row's aim: how many times better than the best of `peers` we want to be, at least and as the aim."""

    kind: str
    what: str
    direction: str | None
    stage: str
    peers: tuple
    least: float
    aim: float


SDPA = ("sdpa flash", "sdpa cudnn", "sdpa efficient")
TARGETS = [
    Target("op", "attention core", "forward", "ops", SDPA, 1.25, 1.5),
    Target("op", "attention core", "backward", "ops", SDPA, 1.3, 1.6),
    Target("op", "layernorm_mlp", "forward", "autotune", ("max-autotune",), 1.6, 2),
    Target("op", "layernorm_mlp", "forward+backward", "autotune", ("max-autotune",), 1.35, 1.6),
    Target("op", "conv_tokenizer", "forward", "ops", ("compile",), 4, 8),
    Target("op", "conv_tokenizer", "forward+backward", "ops", ("compile",), 3, 5),
    Target("op", "seqpool", "forward+backward", "ops", ("eager", "compile"), 2.5, 4),
    Target("inference", "", None, "inference", ("published",), 5, 8),
    Target("inference", "", None, "inference", SDPA, 3, 4),
    Target("inference", "", None, "autotune", ("max-autotune",), 1.6, 2),
    Target("latency", "", None, "latency", ("published",), 6, 10),
    Target("latency", "", None, "latency", ("reduce-overhead",), 1.6, 2.5),
    Target("training", "", None, "training", ("published",), 4, 6),
    Target("training", "", None, "training", ("compile",), 1.5, 2),
    Target("memory", "", None, "training", SDPA, 2, 1 / 0.35),
    Target("memory", "", None, "training", ("compile",), 1 / 0.7, 2),
]


def judge(target, rows):
    """(what, ours, best peer, ratio, verdict) as text; ratio and verdict say "not measured" where a row or peer is missing."""
    name = " ".join(filter(None, [target.kind, target.what, target.direction])) + f" against {'/'.join(target.peers)}"
    for row in rows:
        matches = row["kind"] == target.kind and row["what"].startswith(target.what) and row.get("stage") == target.stage
        if not matches or row.get("direction") != target.direction:
            continue
        found = {n: row["peers"][n]["median"] for n in target.peers if n in row["peers"]}
        if "ours" not in row["peers"] or not found:
            continue
        ours, best = row["peers"]["ours"]["median"], min(found, key=found.get)
        ratio = found[best] / ours
        verdict = "aim" if ratio >= target.aim else "at least" if ratio >= target.least else "BELOW"
        return [name, table.value(row, ours), f"{best} {table.value(row, found[best])}", f"{ratio:.2f}x", verdict]
    return [name, "", "", "not measured", ""]


def render(rows):
    """The table, as Markdown."""
    lines = ["| row | ours | best peer | ours against it | at least | aim | reached |", "|---|---:|---:|---:|---:|---:|---|"]
    for target in TARGETS:
        name, ours, best, ratio, verdict = judge(target, rows)
        lines.append(f"| {name} | {ours} | {best} | {ratio} | {target.least:.3g}x | {target.aim:.3g}x | {verdict} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_summary", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    machines = {name: rows for name, rows in table.load(parser.parse_args().results).items() if _on_gpu(rows)}
    for name, rows in machines.items():
        print(f"## {name}\n\n{render(rows)}\n")
    if not machines:
        print("no GPU rows yet")


def _on_gpu(rows):
    return any(row.get("device") == "cuda" for row in rows)


if __name__ == "__main__":
    main()
