"""`cct report`."""

from .parser import add_command

EPILOG = """
examples:
  cct report                            reads results/, writes results/report/
  cct report --output ~/page

Writes report.md, report.html (one page that needs no other file), and the figures as PNG: accuracy against size as in Figure 3
of the paper, Figures 4 to 7 where they were run, learning curves, accuracy against time. The numbers are those that
`cct reproduce` put into RESULTS/runs.
"""

SIZE = (
    "Accuracy and size, Figure 3 of the paper: CIFAR-10 results of models below 12 million parameters as printed, "
    "and, as rings, those run here."
)
NUMBER = "Fewer training images and other image sizes, Figures 4 to 7 of the paper, as far as they were run here."
CURVES = "Held-out accuracy after each epoch."
TIME = "Held-out accuracy against the wall clock since the start of the process."


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "report", run, "write tables and figures: the paper beside ours", EPILOG)
    parser.add_argument("--results", metavar="DIR", default="results", help="folder of the results (results)")
    parser.add_argument("--output", metavar="DIR", help="folder of the report (report in the folder of the results)")


def run(args):
    """Write the report."""
    from pathlib import Path

    from cct.models.checkpoints import write_atomically
    from cct.reports import figures, html, markdown, results, summary
    from cct.training.config import ConfigError

    from .output import writing_to

    if not Path(args.results).is_dir():
        raise ConfigError(f"--results {args.results}: no such folder; `cct reproduce` makes it")
    runs = results.records(args.results)
    tables = summary.tables(runs)
    drawings = [(SIZE, "accuracy-size", "Accuracy and size", figures.by_size(tables))]
    for name, figure in figures.by_number(tables).items():
        drawings.append((NUMBER, name.lower().replace(" ", ""), name, figure))
    for caption, kind, draw in ((CURVES, "learning-curves", figures.learning_curves), (TIME, "accuracy-time", figures.by_time)):
        drawings += [(caption, f"{kind}-{name}", f"{caption} {name}", figure) for name, figure in draw(runs).items()]
    pictures = {}
    with writing_to(args.output or Path(args.results) / "report") as folder:
        for caption, name, title, figure in drawings:
            write_atomically(folder / f"{name}.png", lambda temporary, figure=figure: figure.savefig(temporary, format="png"))
            pictures.setdefault(caption, []).append((title, figure))
        notes = markdown.render(tables, runs, {f"{name}.png": title for _, name, title, _ in drawings})
        for name, text in (("report.md", notes), ("report.html", html.render(tables, runs, pictures))):
            write_atomically(folder / name, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    print(f"{folder / 'report.html'}, {folder / 'report.md'} and {len(drawings)} figures: {len(runs)} runs")
