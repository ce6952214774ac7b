"""`cct recipes`."""

from .parser import add_command

WIDE = 120  # characters; narrower terminals see fewer columns

EPILOG = """
examples:
  cct recipes                        every recipe, with the cells of the paper it gives
  cct recipes cct_7_3x1              those whose name holds this; * and ? are allowed
  cct recipes --table 7              those of one table: 1 2 3 4 7 8 11, readme_main, figure5, claims ...
  cct recipes --show cct_2_3x2-mnist the file itself
  cct train -c cct_2_3x2-mnist       run one; flags override what it says
"""


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "recipes", run, "list the training recipes of the paper", EPILOG)
    parser.add_argument("pattern", nargs="?", metavar="PATTERN", help="only recipes whose name holds this")
    parser.add_argument("--table", metavar="T", help="only recipes that give a cell of this table")
    parser.add_argument("--show", metavar="NAME", help="print the file of a recipe")


def run(args):
    """Print the table of recipes, or one file."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from cct import recipes
    from cct.reports.paper import WITHOUT_CELLS
    from cct.training.config import ConfigError, nearest

    if args.show is not None:
        print(recipes.path(args.show).read_text(encoding="utf-8"), end="")
        return
    names = recipes.names(args.pattern)
    if args.table is not None:
        tables = sorted({cell.table for cell in recipes.cells()})
        if args.table in WITHOUT_CELLS:
            raise ConfigError(f"--table: Table {args.table} {WITHOUT_CELLS[args.table]}")
        if args.table not in tables:
            raise ConfigError(f"--table: got {args.table!r}, expected one of {', '.join(tables)}{nearest(args.table, tables)}")
        given = {cell.recipe for cell in recipes.cells(args.table)}
        names = [name for name in names if name in given]
    if not names:
        raise ConfigError(f"no recipe has {args.pattern!r} in its name; `cct recipes` lists all")
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE
    columns = ("model", "data", "epochs") if console.width >= WIDE else ("epochs",)
    listing = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("recipe", *columns):
        listing.add_column(column, no_wrap=True)
    listing.add_column("paper, top-1 % (tables)", overflow="fold")
    for name in names:
        keys = recipes.read(name)
        listing.add_row(name, *(str(keys[column]) for column in columns), _paper(keys["paper"]))
    console.print(listing)


def _paper(cells):
    """'96.53 (1 2 11)': the values of a recipe with the tables that print them."""
    tables = {}
    for cell in cells:
        tables.setdefault("-" if cell["value"] is None else f"{cell['value']:.2f}", []).append(cell["table"])
    return ", ".join(f"{value} ({' '.join(dict.fromkeys(where))})" for value, where in tables.items())
