"""The paper's numbers inside the package: equal to the design tables, and to what our own models have."""

import csv

import pytest
import torch

from cct.models import count_macs, count_parameters, create_model
from cct.reports import paper
from cct.training.config import ConfigError

CLASSES = {"cifar10": 10, "mnist": 10, "fashion_mnist": 10, "cifar100": 100, "flowers102": 102, "imagenet": 1000}


@pytest.mark.parametrize("table", [t for t in paper.TITLES if t[0] != "f" and t not in ("claims", "twins", "speed")])
def test_numbers_are_those_of_the_design(table, design):
    with open(design / "tables" / f"{paper.stem(table)}.csv", newline="", encoding="utf-8") as file:
        expected = [(r["model"], r["dataset"], r["value"], r["params"], r["macs"], r["epochs"]) for r in csv.DictReader(file)]
    ours = paper.printed(table)
    assert len(ours) == len(expected) == len({(p.row, p.dataset) for p in ours})
    for p, (model, dataset, *numbers) in zip(ours, expected, strict=True):
        assert p.row.startswith(model) and paper.DATA_SETS[p.dataset] == dataset and p.metric == "top1"
        assert [p.value, p.params_m, p.macs_g, p.epochs] == numbers


def model_of(p):
    """The model of a row, or None when it is no ViT-Lite, CVT or CCT of ours."""
    name = p.row.partition(" (")[0].partition(",")[0].removesuffix("*").removesuffix(" distilled")
    family, _, size = name.rpartition("-")
    family = {"ViT-Lite": "vit", "CVT": "cvt", "CCT": "cct", "ViT": "vit" if size == "12/16" else None}.get(family)
    if family is None or p.row == "ViT-12/16 (384)" or size == "16/7x2":  # cited; dropped from the repository
        return None
    suffix = {"flowers102": "_224", "imagenet": "_224"}.get(p.dataset, "")
    if "384" in p.row or p.params_m == "22.17":
        suffix = "_384"
    with torch.device("meta"):
        return create_model(f"{family}_{size.replace('/', '_')}{suffix}", num_classes=CLASSES[p.dataset])


def test_every_printed_size_is_counted_exactly():
    """Parameters and MACs of every ViT-Lite, CVT and CCT row with the counting of its source; the exceptions are named."""
    checked = 0
    for table in paper.TITLES:
        for p in paper.printed(table):
            model = model_of(p) if p.params_m or p.macs_g else None
            if model is None:
                continue
            # Tables print the size of the ten-class model beside all data sets of a row.
            small = CLASSES[p.dataset] <= 100
            if small:
                model.reset_classifier(10)
            parameters, macs = count_parameters(model), count_macs(model)
            digits = len(p.params_m.partition(".")[2])
            total = parameters.without_positional if p.params_m in ("3.168", "22.29") else parameters.total
            places = 10 ** (6 - digits)
            rounded = {f"{total / 1e6:.{digits}f}", f"{total // places * places / 1e6:.{digits}f}"}  # 22.36 is cut off
            assert not p.params_m or p.params_m in rounded, p
            old = table.startswith("readme") or p.macs_g == "15.02"
            counted = macs.first_release if old else macs.paper
            if p.macs_g and p.macs_g != "18.63":  # 18.61 by every counting; the source of 18.63 is not known
                assert f"{counted / 1e9:.{len(p.macs_g.partition('.')[2])}f}" == p.macs_g, p
            checked += 1
    assert checked > 200


def test_names_of_tables():
    assert [paper.key(name) for name in ("1", "Table 1", "table1", "table-1", "README-main")] == ["1"] * 4 + ["readme_main"]
    assert (
        paper.stem("11") == "table11"
        and paper.title("11") == "Table 11"
        and paper.title("figure4") == "Figure 4"
        and paper.title("claims") == "Claims"
    )
    with pytest.raises(ConfigError, match=r"unknown table 'claim'; did you mean 'claims'\?"):
        paper.key("claim")
