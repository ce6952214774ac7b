"""The printed results of the paper and of its repository, kept as CSV files beside the recipes (cct/recipes/tables).

Sources: arXiv 2104.05704 version 4 (tables, claims of the introduction); README files of the official repository
(readme_main: its front page; readme_examples: its examples; readme_v1: its first version, April 2021).
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from cct.training.config import ConfigError, nearest

FOLDER = Path(__file__).parents[1] / "recipes" / "tables"
TITLES = {
    "1": "Small data sets, trained from scratch",
    "2": "CCT-7/3x1 trained longer",
    "3": "ImageNet-1k",
    "4": "Flowers-102",
    "7": "Positional embeddings",
    "8": "From ViT to CCT, step by step",
    "11": "Small data sets, all variants",
    "readme_main": "Released weights",
    "readme_examples": "Training script of the repository, 200 epochs",
    "readme_v1": "The same script, first version",
    "claims": "In 30 minutes",
    "figure4": "Fewer images of each class",
    "figure5": "Image size",
    "figure6": "Image size by positional embedding",
    "figure7": "Image sizes not trained at",
    "twins": "From ViT to CCT with 2 layers, 15 epochs",
    "speed": "Recipes of our own that end at an accuracy",
}
DATA_SETS = {
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "fashion_mnist": "Fashion-MNIST",
    "mnist": "MNIST",
    "flowers102": "Flowers-102",
    "imagenet": "ImageNet-1k",
}
WITHOUT_CELLS = {"9": "holds dropout rates and no accuracy; the recipes of Tables 7 and 8 train with them"}


@dataclass(frozen=True)
class Printed:
    """One printed number: `value` in %, as printed; params_m in millions, macs_g in 1e9, "" where nothing is printed."""

    row: str
    dataset: str
    metric: str
    value: str
    params_m: str
    macs_g: str
    epochs: str
    note: str


def key(name):
    """The key of a table as users may write it: "1", "table1", "Table 1" and "table-1" are "1". ConfigError when unknown."""
    word = str(name).strip().lower().replace(" ", "").replace("-", "_")
    word = word.removeprefix("table").lstrip("_") or word
    if word in WITHOUT_CELLS:
        raise ConfigError(f"table {word} {WITHOUT_CELLS[word]}")
    if word not in TITLES:
        raise ConfigError(f"unknown table {name!r}{nearest(word, TITLES)} (there are {', '.join(TITLES)})")
    return word


def stem(table):
    """The name of its files, without suffix: "table1", "figure4", "claims"."""
    return f"table{table}" if table.isdigit() else table


def title(table):
    """How it is called in text: "Table 1", "Figure 4", "README", "Claims", "Twins", "Speed"."""
    names = {"readme_main": "README", "readme_examples": "README, examples", "readme_v1": "README, 2021"}
    names |= {"claims": "Claims", "twins": "Twins", "speed": "Speed"}
    return names.get(table) or (f"Table {table}" if table.isdigit() else f"Figure {table.removeprefix('figure')}")


def printed(table):
    """The printed numbers of a table in the printed order; [] for figures, which are drawn only, twins and speed."""
    path = FOLDER / f"{stem(table)}.csv"
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return [Printed(**row) for row in csv.DictReader(file)]
