"""Runs of recipes and the tables made of them: results/runs/RECIPE/seed-N.json and .csv, results/TABLE.csv."""

import csv
import io
import itertools
import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

from cct import recipes
from cct.models.checkpoints import write_atomically
from cct.training import settings
from cct.training.config import ConfigError, resolve

from . import paper
from .curves import read_metrics

COLUMNS = (
    "table", "row", "dataset", "metric", "paper", "state", "last", "last_sd", "best", "best_sd", "ema", "ema_sd", "highest",
    "seeds", "epochs", "minutes", "target", "to_target", "to_target_sd", "split", "recipe", "changes", "machine", "versions",
    "commit", "command", "note",
)  # fmt: skip
NUMBER = int | float
PUBLISHED = {
    "recipe": str, "changes": str, "seed": int, "command": str, "planned": int, "finished": bool, "sessions": list,
    "split": str, "epochs": int, "last": NUMBER, "best": NUMBER, "best_epoch": int, "seconds": NUMBER,
}  # fmt: skip
SESSION = ("machine", "versions", "commit")  # what each session has at least
MORE = {  # what only some records have
    "target": NUMBER | None, "settings": dict, "at": dict, "data_split": str, "tested": NUMBER, "ema": NUMBER,
    "to_target": NUMBER, "note": str,
}  # fmt: skip
NOT_RUN, DONE = "not run", "done"


def numbers(rows, target=None):
    """What the rows of metrics.csv say: accuracies in %, wall-clock `seconds`. {} when no epoch has been evaluated.

    last, ema: after the last evaluated epoch; best: the best of the epochs, on the split that is reported; to_target: seconds
    until model or average first had `target` %, where they had.
    """
    for split in ("test", "val"):
        key = f"{split}_top1"
        seen = [(row, wall) for row, wall in zip(rows, wall_clock(rows), strict=True) if key in row]
        if seen:
            last, best = seen[-1][0], max((row for row, _ in seen), key=lambda row: row[key])
            reached = [wall for row, wall in seen if target and 100 * max(row[key], row.get("ema_top1", 0.0)) >= target]
            return {
                "split": split,
                "epochs": int(rows[-1]["epoch"]),
                "last": 100 * last[key],
                "best": 100 * best[key],
                "best_epoch": int(best["epoch"]),
                "seconds": wall_clock(rows)[-1],
                **({"ema": 100 * last["ema_top1"]} if "ema_top1" in last else {}),
                **({"to_target": reached[0]} if reached else {}),
            }
    return {}


def wall_clock(rows):
    """Seconds from the start of the process to the end of each epoch, interruptions left out."""
    if all("seconds_from_start" in row for row in rows):
        return [row["seconds_from_start"] for row in rows]
    return list(itertools.accumulate(row["seconds"] for row in rows))


def publish(run, record, results):
    """Copy what a run has given so far, its `record` and its metrics.csv, to results/runs; nothing before the first epoch.

    Returns None, or the path of what is kept there instead: another run of the same name that got further, such as one that
    came with the project. A finished run takes its place all the same.

    run: its folder, RUNS/VARIANT/seed-N. record: recipe, changes, seed, command, settings (what recipe and changes say, key by
    key), planned (epochs), target (% or None), finished, sessions; data_split: how train and test were made, where the state of
    the run told it; tested: of a run that reports on val, the test accuracy of its best weights in %; and `at`, the accuracy of
    the last weights in % at other image sizes, {"16": ...}. A `note`, added by hand to what is kept, stays with its run.
    """
    metrics = Path(run) / "metrics.csv"
    facts = numbers(read_metrics(metrics), record.get("target")) if metrics.is_file() else {}
    if not facts:
        return None
    folder = Path(results) / "runs" / run.parent.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.name}.json"
    if path.is_file():
        kept = read_json(path)
        same = _began(kept) == _began(record)
        if not same and not record["finished"] and (kept.get("finished") or kept.get("epochs", 0) > facts["epochs"]):
            return path
        facts |= {"note": kept["note"]} if same and "note" in kept else {}
    write_atomically(folder / f"{run.name}.csv", lambda temporary: shutil.copyfile(metrics, temporary))
    write_json(path, {**record, **facts})
    return None


def _began(record):
    """When the first session of a run began: two of one name are thereby told apart."""
    return record["sessions"][0].get("began") if record.get("sessions") else None


def records(results):
    """Every published run as a dict, with `curve`: the path of its rows. ConfigError naming a file that is damaged.

    `changes` and `command` are against the recipe as it is now: a run of an earlier one says what it had instead, and one
    whose changes the recipe has since adopted has none.
    """
    found = []
    for path in sorted(Path(results).glob("runs/*/*.json")):
        run = read_json(path)
        missing = [key for key in PUBLISHED if key not in run]
        if missing := missing or [key for key in SESSION if any(key not in session for session in run["sessions"])]:
            raise ConfigError(f"{path}: lacks {', '.join(missing)}; remove it")
        found.append({**run, **_since_changed(run), "curve": path.with_suffix(".csv")})
    return found


def _since_changed(run):
    """`changes` and `command` against the recipe as it is now; {} where that, or what the run had, is not known."""
    then = run.get("settings", {})
    if not then or run["recipe"] not in recipes.names():
        return {}
    told = re.findall(r"(?:^| )(\w+)=", run["changes"])
    values = settings.different(then, _settings(run["recipe"]))
    # What stands open is not said: the data filled it in.
    values = {k: v for k, v in values.items() if k in told or not (v is None and k in settings.FILLED_IN)}
    words = [word for name, value in values.items() if name not in told for word in settings.flag(name, value)]
    return {
        "changes": " ".join(f"{name}={settings.text(value)}" for name, value in values.items()),
        "command": " ".join(filter(None, [run["command"], shlex.join(words)])),
    }


def _settings(recipe):
    return settings.of(resolve({}, recipes.path(recipe)))


def cells(table):
    """The cells of a table that our recipes give; "speed": one for each recipe that ends at an accuracy."""
    if table != "speed":
        return recipes.cells(table=table)
    names = [name for name in recipes.names() if "target_top1" in recipes.read(name)]
    return [recipes.Cell(name, table, name, recipes.read(name)["data"], "top1", None) for name in names]


def table_rows(table, cells, runs):
    """The rows of results/TABLE.csv: one for each cell and each way it was run, or one that says that it was not.

    Means and standard deviations are over the seeds that are finished; before one is, the run that got furthest is shown.
    """
    rows = []
    for cell in in_printed_order(table, cells):
        ours = [seen for run in runs if run["recipe"] == cell.recipe and (seen := _as_seen_by(cell, run))]
        start = {
            "table": table, "row": cell.row, "dataset": cell.dataset, "metric": cell.metric,
            "paper": "" if cell.value is None else f"{cell.value:.2f}", "recipe": cell.recipe,
        }  # fmt: skip
        if not ours:
            rows.append({**start, "state": NOT_RUN})
        for changes in dict.fromkeys(run["changes"] for run in ours):
            rows.append({**start, **_over_seeds(_one_a_seed([run for run in ours if run["changes"] == changes]))})
    return rows


def in_printed_order(table, cells):
    """The cells in the order of the paper's table; those of a figure by name, numbers in it by value."""
    order = {(p.row, p.dataset): place for place, p in enumerate(paper.printed(table))}

    def place(cell):
        words = re.split(r"(\d+)", cell.row)
        return order.get((cell.row, cell.dataset), len(order)), [(int(w), "") if w.isdigit() else (-1, w) for w in words]

    return sorted(cells, key=place)


def size_after_training(cell):
    """The image size at which a cell of Figure 7 is evaluated after the training at 32; None for all other cells."""
    size = int(cell.row.rpartition(" at ")[2]) if cell.table == "figure7" else 32
    return None if size == 32 else size


def _as_seen_by(cell, run):
    """The run with the numbers that the cell asks for; None when it has not given them."""
    size = size_after_training(cell)
    if size is None:
        return run
    value = run.get("at", {}).get(str(size))
    return None if value is None else {**{k: v for k, v in run.items() if k not in ("best", "ema")}, "last": value}


def _one_a_seed(runs):
    """Of several runs with the same seed and settings the one that got furthest."""
    best = {}
    for run in sorted(runs, key=lambda run: (run["finished"], run["epochs"])):
        best[run["seed"]] = run
    return sorted(best.values(), key=lambda run: run["seed"])


def _over_seeds(runs):
    finished = [run for run in runs if run["finished"]]
    shown = finished or [max(runs, key=lambda run: run["epochs"])]
    last = shown[-1]
    sessions = [session for run in shown for session in run["sessions"]]
    row = {
        "state": DONE if finished else f"epoch {last['epochs']} of {last['planned']}",
        "highest": f"{max(run.get('best', run['last']) for run in shown):.2f}",
        "seeds": " ".join(str(run["seed"]) for run in shown),
        "epochs": last["epochs"],
        "minutes": f"{statistics.mean(run['seconds'] for run in shown) / 60:.1f}",
        "split": "; ".join(filter(None, (last["split"], last.get("data_split"), _tested(shown)))),
        "changes": last["changes"],
        "machine": of_sessions(sessions, "machine"),
        "versions": of_sessions(sessions, "versions"),
        "commit": " ".join(dict.fromkeys(session["commit"] for session in sessions)),
        "command": "; ".join(dict.fromkeys(run["command"] for run in shown)),
        "note": "; ".join(dict.fromkeys(run["note"] for run in shown if "note" in run)),
    }
    row["target"] = last.get("target") or ""
    for name, scale in (("last", 1), ("best", 1), ("ema", 1), ("to_target", 1 / 60)):
        values = [scale * run[name] for run in shown] if all(name in run for run in shown) else []
        row[name] = f"{statistics.mean(values):.2f}" if values else ""
        row[f"{name}_sd"] = f"{statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return row


def _tested(runs):
    """Of runs that report on val: the mean test accuracy of the weights that were best on it."""
    values = [run["tested"] for run in runs if "tested" in run]
    return f"the best weights on test {statistics.mean(values):.2f} %" if len(values) == len(runs) else None


def of_sessions(sessions, key):
    """What the sessions of a run say of machine, versions or commit: each thing once, in their order."""
    return "; ".join(dict.fromkeys(session[key] for session in sessions))


def write_table(results, table, rows):
    """Write results/TABLE.csv; returns its path."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = Path(results) / f"{paper.stem(table)}.csv"
    write_atomically(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    return path


def read_table(results, table):
    """The rows of results/TABLE.csv as dicts of text; [] when there is none. ConfigError when it is no such file."""
    path = Path(results) / f"{paper.stem(table)}.csv"
    if not path.is_file():
        return []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if missing := set(COLUMNS) - {"note"} - set(reader.fieldnames or ()):  # older tables have none
        raise ConfigError(f"{path}: lacks the columns {', '.join(sorted(missing))}; `cct reproduce` writes it anew")
    return rows


def read_json(path):
    """The record of a run in a JSON file. ConfigError naming the file when it is damaged."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); remove it") from None
    if not isinstance(value, dict) or "recipe" not in value:
        raise ConfigError(f"{path}: is no record of a run; remove it")
    if (wrong := _wrong(value)) is not None:
        raise ConfigError(f"{path}: {wrong} cannot be {json.dumps(value[wrong])[:80]}; remove it")
    return value


def _wrong(run):
    """The first key of a record with a value of another type than that key has, or None."""
    for key, kind in (PUBLISHED | MORE).items():
        if key in run and not isinstance(run[key], kind):
            return key
    for session in run.get("sessions", []):
        if not isinstance(session, dict) or not all(isinstance(session.get(key, ""), str) for key in ("began", *SESSION)):
            return "sessions"
    return None if all(isinstance(value, NUMBER) for value in run.get("at", {}).values()) else "at"


def write_json(path, value):
    """Write a dict as JSON, whole or not at all."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
