"""The recipes: one YAML file for each training run of the paper's vision tables, the official READMEs and Figures 4 to 7.

A file holds the keys of `cct.training.config.Config` that the run is about, and two more: `paper`, the cells of the paper that
this run gives, and `note`, what the sources leave open and what was chosen. `cct train -c NAME` runs one, `cct recipes` lists
them.
"""

import fnmatch
import functools
from dataclasses import dataclass
from pathlib import Path

import yaml

from cct.training.values import ConfigError, nearest

FOLDER = Path(__file__).parent
SUFFIX = ".yaml"


@dataclass(frozen=True)
class Cell:
    """A number of the paper and the recipe that gives it.

    table: "1", ..., "readme_main", "figure5", "claims"; row: as the table names it; dataset: our name of the data; metric:
    "top1"; value: percent, or None where a figure prints none.
    """

    recipe: str
    table: str
    row: str
    dataset: str
    metric: str
    value: float | None


def names(pattern=None):
    """The names of all recipes, sorted; `pattern` may hold * and ?, or be a part of the name."""
    found = sorted(path.name.removesuffix(SUFFIX) for path in FOLDER.glob("*" + SUFFIX))
    if pattern is not None:
        found = [name for name in found if fnmatch.fnmatchcase(name, pattern) or pattern in name]
    return found


def path(name):
    """The file of a recipe. Raises ConfigError naming the nearest recipe when there is none of that name."""
    file = FOLDER / (name + SUFFIX)
    if "/" in name or len(name) > 100 or not file.is_file():
        raise ConfigError(f"there is no recipe {name!r}{nearest(name, names())}; `cct recipes` lists them")
    return file


def find(name_or_file):
    """The file that `-c` means: a file that exists, else the recipe of that name."""
    file = Path(name_or_file)
    try:
        there = file.is_file()
    except OSError as error:  # too long, or in a folder that cannot be read
        raise ConfigError(f"{name_or_file}: cannot be read ({error.strerror})") from None
    if there or file.suffix in (".yaml", ".yml") or len(file.parts) > 1:
        return file
    return path(name_or_file)


@functools.cache
def read(name):
    """All keys of a recipe as a dict, as they stand in its file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path(name).read_text(encoding="utf-8"), loader)


def cells(table=None, row=None):
    """The cells of all recipes, by recipe; only those of a table, or of a row, when given."""
    found = [Cell(name, **cell) for name in names() for cell in read(name)["paper"]]
    return [cell for cell in found if table in (None, cell.table) and row in (None, cell.row)]
