"""`cct reproduce`."""

import sys

from .parser import add_command

EPILOG = """
examples:
  cct reproduce                                        the tables, and how much of each has been run
  cct reproduce 1 --row CCT-2/3x2 --dataset cifar10    one cell of Table 1
  cct reproduce 2 --seeds 3 --budget 60                an hour of Table 2; the same command goes on where it stopped
  cct reproduce speed --seeds 3                        our own recipes that end at an accuracy, and how long they take
  cct reproduce 1 --dry-run                            what would be run
  cct reproduce 8 --set epochs=10 amp=bf16             every recipe with these changes; kept apart, and named in the results

Each run is a `cct train -c RECIPE` in RUNS/RECIPE/seed-N, and may be stopped at any moment. After each, its curve goes to
RESULTS/runs and RESULTS/TABLE.csv is written: the printed value; ours after the last epoch, of the best epoch and of the moving
average, mean and standard deviation over the seeds; epochs, minutes, machine, versions, commit, command.
Exit codes: 0 done, or stopped at the budget; 1 a run failed; 2 wrong usage; 130 and 143 stopped by a signal.
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "reproduce", run, "run the recipes of a table of the paper", EPILOG)
    parser.add_argument("table", metavar="TABLE", nargs="?", help="1 2 3 4 7 8 11, figure5, claims, twins, speed ...")
    parser.add_argument("--row", metavar="R", help="only rows of this name, or whose name begins with it")
    parser.add_argument("--dataset", metavar="D", help="only this data set, such as cifar10")
    parser.add_argument("--seeds", metavar="K", type=int, default=1, help="runs of each recipe: its seed, the next one ... (1)")
    parser.add_argument("--budget", metavar="MINUTES", type=float, help="stop after this time, everything saved")
    parser.add_argument(
        "--set", metavar="KEY=VALUE", nargs="+", default=[], help="change the recipes; keys as in a recipe file"
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be run, and how far it is")
    parser.add_argument("--data-dir", metavar="DIR", help="folder with the data files")
    parser.add_argument("--device", metavar="DEVICE", help="auto, cpu, cuda or cuda:N (auto)")
    parser.add_argument("--threads", metavar="N", type=int, help="CPU threads")
    parser.add_argument("--runs", metavar="DIR", default="runs/reproduce", help="folder of the runs (runs/reproduce)")
    parser.add_argument("--results", metavar="DIR", default="results", help="folder of the tables (results)")


def run(args):
    """Run, or list; returns the exit code."""
    from cct.reports import paper, results

    from .output import writing_to
    from .runs import Runs

    if args.table is None:
        return _list_tables(args)
    table = paper.key(args.table)
    cells = results.in_printed_order(table, _select(args, table, results.cells(table)))
    runs = Runs(args, changes=_changes(args.set))
    sizes = {cell.recipe: [] for cell in cells}
    for cell in cells:
        sizes[cell.recipe] += [size for size in [results.size_after_training(cell)] if size]
    jobs = [runs.job(recipe, n, sizes[recipe]) for n in range(_seeds(args)) for recipe in sizes]
    with writing_to(args.results, "--results") if not args.dry_run else _nothing():
        if args.dry_run:
            _show_jobs(table, cells, jobs, runs)
            return 0

        def publish(job):
            if kept := results.publish(job.folder, job.record, args.results):
                print(
                    f"{kept}: is another run that was finished or got further; it stays until this one is finished",
                    file=sys.stderr,
                )
            _write_tables(args.results, table)

        code = runs.go(jobs, publish)
        _write_tables(args.results, table)
    _show_table(table, cells, args.results)
    return code


def _nothing():
    import contextlib

    return contextlib.nullcontext()


def _write_tables(folder, wanted):
    """Write the wanted table, and every other one that a run gives a number of: the tables of the paper share runs."""
    from cct.reports import paper, results

    runs = results.records(folder)
    for table in paper.TITLES:
        rows = results.table_rows(table, results.cells(table), runs)
        if table == wanted or any(row["state"] != results.NOT_RUN for row in rows):
            results.write_table(folder, table, rows)


def _seeds(args):
    from cct.training.config import ConfigError

    if args.seeds < 1:
        raise ConfigError(f"--seeds: got {args.seeds}, expected at least 1")
    if args.budget is not None and not args.budget > 0:
        raise ConfigError(f"--budget: got {args.budget:g}, expected minutes, more than 0")
    return args.seeds


def _select(args, table, cells):
    """The cells that --row and --dataset name; ConfigError naming the nearest when there is none."""
    from cct.reports import paper
    from cct.training.config import ConfigError, nearest

    if not cells:
        raise ConfigError(f"{paper.title(table)}: no recipe gives one of its numbers; `cct reproduce` lists the tables")
    for flag, wanted, name in (("--row", args.row, "row"), ("--dataset", args.dataset, "dataset")):
        if wanted is None:
            continue
        names = list(dict.fromkeys(getattr(cell, name) for cell in cells))
        word = wanted.lower() if name == "row" else wanted.lower().replace("-", "_").replace("cifar_", "cifar")
        chosen = [n for n in names if n.lower() == word] or [n for n in names if name == "row" and n.lower().startswith(word)]
        if not chosen:
            known = f" (there are {'; '.join(names)})"
            raise ConfigError(f"{flag}: {paper.title(table)} has no {wanted!r} with a recipe{nearest(wanted, names)}{known}")
        cells = [cell for cell in cells if getattr(cell, name) in chosen]
    return cells


def _changes(pairs):
    """{key: value} of --set, checked as in a recipe file."""
    from cct.training.config import FIELDS, KINDS, ConfigError, coerce, nearest

    changes = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise ConfigError(f"--set: got {pair!r}, expected KEY=VALUE, such as epochs=10")
        if key not in FIELDS:
            raise ConfigError(f"--set: unknown key {key!r}{nearest(key, FIELDS)}")
        if key in ("seed", "output", "data_dir", "device", "threads", "model_kwargs"):
            raise ConfigError(f"--set: {key} cannot be set here; see --seeds, --runs, --data-dir, --device, --threads")
        changes[key] = coerce(key, value)
        if changes[key] is None and KINDS[key] not in (int | None, float | None, str | None):
            raise ConfigError(f"--set: {key} cannot be taken away here; write a recipe of your own without it")
    return {name: changes[name] for name in FIELDS if name in changes}  # in whatever order they were given, the same runs


# What is printed.


def _list_tables(args):
    from rich.table import Table

    from cct.reports import paper, results

    listing = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("table", "what", "printed", "recipes", "run"):
        listing.add_column(name, no_wrap=True, justify="left" if name in ("table", "what") else "right")
    for table, what in paper.TITLES.items():
        cells = results.cells(table)
        rows = [row for row in results.read_table(args.results, table) if row["state"] != results.NOT_RUN]
        done = len({(row["row"], row["dataset"]) for row in rows})
        listing.add_row(table, what, str(len(paper.printed(table)) or "-"), str(len(cells)), str(done))
    _print(listing)
    _print("`cct reproduce TABLE --dry-run` says what a table takes; numbers that are printed only are of other models")


def _show_jobs(table, cells, jobs, runs):
    from cct.reports import paper

    _print(f"{paper.title(table)}: {_count(len(cells), 'number')} of {_count(len({job.recipe for job in jobs}), 'recipe')}")
    for job in jobs:
        given = ", ".join(f"{cell.row} {cell.dataset} {_paper(cell)}" for cell in cells if cell.recipe == job.recipe)
        difference = runs.difference(job)
        _print(f"{'cannot go on' if difference else job.state():<18} {given}\n{'':<18} {difference or job.command}")


def _show_table(table, cells, folder):
    from rich.table import Table

    from cct.reports import results

    wanted = {(cell.row, cell.dataset) for cell in cells}
    shown = Table("row", "data", "paper", "last", "best", "ema", "seeds", "state", box=None, pad_edge=False, header_style="dim")
    for row in results.read_table(folder, table):
        if (row["row"], row["dataset"]) in wanted:
            spread = {name: f" ± {row[f'{name}_sd']}" if row[f"{name}_sd"] else "" for name in ("last", "best", "ema")}
            values = [row[name] + spread[name] for name in ("last", "best", "ema")]
            state = row["state"] + (f", {row['changes']}" if row["changes"] else "")
            shown.add_row(row["row"], row["dataset"], row["paper"], *values, str(len(row["seeds"].split())), state)
    _print(shown)


def _paper(cell):
    return "(not printed)" if cell.value is None else f"{cell.value:.2f} %"


def _count(n, word):
    return f"{n} {word}{'' if n == 1 else 's'}"


def _print(what):
    from rich.console import Console

    Console(highlight=False, markup=False).print(what, soft_wrap=isinstance(what, str))
