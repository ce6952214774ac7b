"""The report as Markdown."""

from . import paper
from .results import of_sessions
from .summary import state

NO_RECIPE = "\N{EN DASH}"
LEGEND = (
    "Top-1 accuracy in %. *paper*: as printed, the best of several runs. *ours*: after the last epoch, the mean over the seeds "
    "± its standard deviation. *not run*: a recipe gives it, nobody has run it here; "
    f"{NO_RECIPE}: no recipe of ours gives it."
)


def render(tables, runs, pictures):
    """The text. pictures: {file name: title} of figures in the same folder."""
    parts = ["# Results", "", LEGEND, ""]
    for name, title in pictures.items():
        parts += [f"![{title}]({name})", ""]
    for table in tables:
        parts += [f"## {heading(table)}", "", f"{table.run} of {table.runnable} numbers with a recipe were run.", ""]
        parts += [*_grid(table), ""]
    parts += ["## Runs", ""]
    parts += _runs(runs) if runs else ["Nothing was run yet: see `cct reproduce`."]
    return "\n".join(parts) + "\n"


def heading(table):
    """'Table 1: Small data sets, trained from scratch'."""
    return f"{paper.title(table.key)}: {paper.TITLES[table.key]}"


def _grid(table):
    sized = bool(table.sizes)
    head = ["row", *(["M"] if sized else [])]
    head += [f"{paper.DATA_SETS.get(name, name)} {kind}" for name in table.datasets for kind in table.kinds]
    yield _line(head)
    yield _line(["---", *["---:"] * (len(head) - 1)])
    for name, cells in table.rows.items():
        row = [name, *([table.sizes.get(name, ("", ""))[0]] if sized else [])]
        for dataset in table.datasets:
            row += _places(cells.get(dataset))[-len(table.kinds) :]
        yield _line(row)


def _places(cell):
    if cell is None:
        return ["", ""]
    ours = f"**{cell.value}**" if cell.ours else "not run" if cell.recipe else NO_RECIPE
    return [cell.printed, ours + (f" ({note})" if (note := ", ".join(filter(None, (cell.time, cell.remark)))) else "")]


def _runs(runs):
    yield _line(["recipe", "seed", "state", "last", "best (epoch)", "average", "minutes", "machine", "commit", "command"])
    yield _line(["---", "---:", "---", "---:", "---:", "---:", "---:", "---", "---", "---"])
    for run in runs:
        ema = f"{run['ema']:.2f}" if "ema" in run else ""
        best = f"{run['best']:.2f} ({run['best_epoch']})"
        numbers = [f"{run['last']:.2f}", best, ema, f"{run['seconds'] / 60:.1f}"]
        commit = of_sessions(run["sessions"], "commit") + (f" ({run['note']})" if "note" in run else "")
        facts = [of_sessions(run["sessions"], "machine"), commit, f"`{run['command']}`"]
        yield _line([run["recipe"], str(run["seed"]), state(run), *numbers, *facts])


def _line(cells):
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
