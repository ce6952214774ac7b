"""What the report says, before it has a form: for each table the printed numbers beside ours, and every run."""

from dataclasses import dataclass

from cct import recipes

from . import paper, results


@dataclass(frozen=True)
class Cell:
    """One place of a table. printed: as printed, "" where nothing is; recipe: whether one of ours gives it; ours: the row of
    results/TABLE.csv that stands for it, or None.
    """

    printed: str
    recipe: bool
    ours: dict | None

    @property
    def value(self):
        """Ours after the last epoch, in %, with the spread over seeds: "96.12 ± 0.10"; "" when it was not run."""
        if self.ours is None:
            return ""
        return self.ours["last"] + (f" ± {self.ours['last_sd']}" if self.ours["last_sd"] else "")

    @property
    def remark(self):
        """What keeps it from being the number of the paper: "epoch 5 of 310", "with epochs=10", or ""."""
        if self.ours is None:
            return ""
        words = [] if self.ours["state"] == results.DONE else [self.ours["state"]]
        return ", ".join(words + ([f"with {self.ours['changes']}"] if self.ours["changes"] else []))

    @property
    def time(self):
        """Of a run that ends at a target, how long that took: "80 % after 3.68 ± 0.04 min"; else ""."""
        if self.ours is None or not self.ours["to_target"]:
            return ""
        spread = f" ± {self.ours['to_target_sd']}" if self.ours["to_target_sd"] else ""
        return f"{self.ours['target']:g} % after {self.ours['to_target']}{spread} min"

    @property
    def difference(self):
        """Ours minus the paper's in points, "+0.12"; "" unless both are there and the run is the recipe's to the end."""
        if self.ours is None or self.remark or self.time or not self.printed:
            return ""
        return f"{float(self.ours['last']) - float(self.printed):+.2f}".replace("-", "\N{MINUS SIGN}")


@dataclass(frozen=True)
class Table:
    """A table of the paper: rows {name: {dataset: Cell}}, sizes {name: (parameters in M, MACs in G)} as printed."""

    key: str
    datasets: list
    rows: dict
    sizes: dict

    @property
    def cells(self):
        return [cell for row in self.rows.values() for cell in row.values()]

    @property
    def kinds(self):
        """What stands in the columns of a data set; a figure has no printed numbers."""
        return ("paper", "ours") if any(cell.printed for cell in self.cells) else ("ours",)

    @property
    def run(self):
        """How many numbers have been run, to the end or in part."""
        return sum(cell.ours is not None for cell in self.cells)

    @property
    def runnable(self):
        """How many numbers a recipe gives."""
        return sum(cell.recipe for cell in self.cells)


def tables(runs):
    """Every table of the paper that has a number or a recipe, in its order. runs: `results.records`."""
    return [table for table in (_table(key, runs) for key in paper.TITLES) if table.rows]


def _table(key, runs):
    printed, cells = paper.printed(key), results.cells(key)
    rows = results.table_rows(key, cells, runs)
    places = list(dict.fromkeys((p.row, p.dataset) for p in (*printed, *results.in_printed_order(key, cells))))
    values = {(p.row, p.dataset): p.value for p in printed}
    given = {(cell.row, cell.dataset) for cell in cells}
    grid = {}
    for place in places:
        ours = [row for row in rows if (row["row"], row["dataset"]) == place and row["state"] != results.NOT_RUN]
        cell = Cell(values.get(place, ""), place in given, max(ours, key=_rank, default=None))
        grid.setdefault(place[0], {})[place[1]] = cell
    sizes = {p.row: (p.params_m, p.macs_g) for p in printed if p.params_m or p.macs_g}
    return Table(key, list(dict.fromkeys(dataset for _, dataset in places)), grid, sizes)


def _rank(row):
    return (row["state"] == results.DONE and not row["changes"], row["state"] == results.DONE, int(row["epochs"]))


def state(run):
    """'done' or 'epoch 5 of 310' of a published run."""
    return results.DONE if run["finished"] else f"epoch {run['epochs']} of {run['planned']}"


def label(run):
    """A short name of a run for figures: its recipe without the data set, what was changed, its seed when not the first."""
    name = run["recipe"].removesuffix(f"-{dataset(run)}")
    return " ".join(
        [name, *([f"({run['changes']})"] if run["changes"] else []), *([f"#{run['seed']}"] if run["seed"] != 42 else [])]
    )


def dataset(run):
    """The data set of a run's recipe; "other" when that recipe is not there any more."""
    return recipes.read(run["recipe"])["data"] if run["recipe"] in recipes.names() else "other"
