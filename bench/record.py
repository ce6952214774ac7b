"""A row as JSON and as text: machine, versions, commit, roofs, and each peer's times."""

import datetime
import json
from pathlib import Path

from cct.reports.machine import commit, machine, versions

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
NOT_ASKED = "not asked for in this run"  # why a peer is missing that `--peers` did not name


def make(key, peers, missing, *, unit="s", work=None, roof=None, **more):
    """A row. key: what was computed; peers: {name: {"median": ..., "p20": ..., "p80": ...}}, "ours" first, in `unit`."""
    date = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M")
    row = {**key, "unit": unit, "peers": peers, "missing": missing, "work": work, "roof": roof, **more}
    return row | {"machine": machine(), "versions": versions(), "commit": commit(), "date": date}


def append(row, folder=RESULTS):
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{row['machine']['name']}.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")


def of_this_commit(folder):
    """The rows of this machine that were recorded at this commit; changes that are not committed do not count."""
    path = folder / f"{machine()['name']}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [row for row in rows if row["commit"].rstrip("+") == commit().rstrip("+")]


def best_peer(row):
    """(name, value) of the best peer that is not ours; None when nobody else took part."""
    others = {name: peer["median"] for name, peer in row["peers"].items() if name != "ours"}
    return min(others.items(), key=lambda item: item[1], default=None)


def share_of_roof(row, seconds):
    """The share of the roof: the least time that products and traffic allow, over `seconds`; None without a roof."""
    if not row["roof"]:
        return None
    return max(row["work"]["flops"] / row["roof"]["flops"], row["work"]["bytes"] / row["roof"]["bytes"]) / seconds


def title(row):
    words = [row["kind"], row["what"], row.get("direction"), f"batch {row['batch']}" if "batch" in row else None]
    return " ".join(str(w) for w in [*words, row.get("dtype"), row.get("device")] if w)


def lines(row):
    """The row as text, one line for each peer, lost cases included."""
    threads = f", {row['threads']} threads" if row.get("device") == "cpu" else ""
    yield title(row) + threads + (f", ours by {row['backend']}" if row.get("backend") else "")
    if row["roof"]:
        roof = row["roof"]
        yield f"  roof {roof['flops'] / 1e9:.0f} GFLOP/s ({roof['method']}), {roof['bytes'] / 1e9:.1f} GB/s"
    ours = row["peers"].get("ours", {}).get("median")
    for name, peer in row["peers"].items():
        yield (
            f"  {name:<16}" + _numbers(row, peer) + (f"  ours {peer['median'] / ours:5.2f}x" if ours and name != "ours" else "")
        )
    if others := [name for name, reason in row["missing"].items() if reason == NOT_ASKED]:
        yield f"  {NOT_ASKED}: {', '.join(others)}"
    for name, reason in row["missing"].items():
        if reason != NOT_ASKED:
            yield f"  {name:<16}{reason}"
    best = best_peer(row)
    if ours and best and best[1] < ours:
        yield f"  LOST to {best[0]}"


def _numbers(row, peer):
    median = peer["median"]
    if row["unit"] == "bytes":
        return f"{median / 1e6:10.1f} MB"
    text = f"{median * 1e3:10.3f} ms ({peer['p20'] * 1e3:.3f} to {peer['p80'] * 1e3:.3f})"
    if row["work"]:
        text += f"{row['work']['bytes'] / median / 1e9:8.1f} GB/s{row['work']['flops'] / median / 1e9:9.1f} GFLOP/s"
        text += f"{share_of_roof(row, median):7.0%} of the roof"
    if row["kind"] in ("inference", "training"):
        text += f"{row['batch'] / median:9.1f} img/s"
    return text
