"""The recipes: every cell of the paper's vision tables has one, each resolves and builds the model of its row."""

import dataclasses
import re

import numpy as np
import pytest
import torch

from cct import recipes
from cct.cli import main
from cct.models import create_model
from cct.models.complexity import count_parameters
from cct.reports import paper
from cct.training.config import ConfigError, resolve
from cct.training.schedules import learning_rate, total_epochs
from cct.training.setup import make_augment

# The rows that no recipe gives: cited from other papers, or needing a teacher.
NOT_OURS = {("3", "CCT-14/7x2 distilled"), ("3", "ViT-12/16 (384)"), ("readme_main", "ViT-12/16 (384)")}
FAMILIES = ("ViT-Lite", "ViT-12", "CVT", "CCT")
CLASSES = {"cifar10": 10, "mnist": 10, "fashion_mnist": 10, "cifar100": 100, "flowers102_resplit": 102, "imagenet": 1000}
# Rows that print the size of another model than the one trained (discrepancy in the paper's Table 4).
OTHER_SIZE = {("4", "CCT-14/7x2, from scratch")}


def test_every_printed_cell_has_exactly_one_recipe():
    for table in paper.TITLES:
        printed = [(p.row, p.dataset, p.metric, float(p.value)) for p in paper.printed(table)]
        ours = [cell for cell in printed if cell[0].startswith(FAMILIES) and (table, cell[0]) not in NOT_OURS]
        given = [(c.row, c.dataset, c.metric, c.value) for c in recipes.cells(table) if c.value is not None]
        assert sorted(given) == sorted(ours), table


def test_figures_cover_their_axes():
    at = {
        table: {cell.row.rpartition(" at ")[2] for cell in recipes.cells(table)} for table in ("figure4", "figure5", "figure6")
    }
    assert at["figure4"] == {f"{n} per class" for n in (500, 1000, 2000, 3000, 4000, 5000)}
    assert at["figure5"] == at["figure6"] == {"16", "24", "32", "48", "64"}
    rows = [cell.row for cell in recipes.cells("figure6")]
    assert len(rows) == len(set(rows)) == 2 * 3 * 5
    assert not any(" learnable at 48" in cell.row for cell in recipes.cells("figure7"))  # the panel ends at 32


def build(config, **kwargs):
    channels = 1 if config.data in ("mnist", "fashion_mnist") else 3
    size = {} if config.img_size is None else {"img_size": config.img_size}
    kwargs = {**config.model_arguments(), **size, **kwargs}
    with torch.device("meta"):
        return create_model(config.model, **{"num_classes": CLASSES[config.data], "in_chans": channels, **kwargs})


def test_every_recipe_resolves_and_has_the_parameters_of_its_row():
    printed = {(table, p.row, p.dataset): p.params_m for table in paper.TITLES for p in paper.printed(table)}
    checked = 0
    for name in recipes.names():
        config, keys = resolve({}, recipes.path(name)), recipes.read(name)
        model = build(config)
        make_augment(dataclasses.replace(config, flip=True, crop_padding=config.crop_padding or 0))
        assert keys["note"].strip() and next(model.tokenizer.parameters()).shape[1] == model.in_chans, name
        for cell in keys["paper"]:
            expected = printed.get((cell["table"], cell["row"], cell["dataset"]))
            if not expected or (cell["table"], cell["row"]) in OTHER_SIZE:
                continue
            # A row prints one size for all its data sets and embeddings: that of CIFAR-10 with an embedding.
            small = cell["dataset"] not in ("imagenet", "flowers102")
            ours = build(config, num_classes=10, in_chans=3, positional_embedding="learnable") if small else model
            places = len(expected.partition(".")[2])
            unit = 10 ** (6 - places)  # 22.36 is cut off, not rounded
            counted = count_parameters(ours)
            totals = (counted.total, counted.without_positional)
            assert any(float(expected) in (round(t / 1e6, places), t // unit * unit / 1e6) for t in totals), cell
            checked += 1
    assert checked > 200


def test_rows_without_seqpool_have_a_class_token():
    for cell in recipes.cells("7"):
        classifier = build(resolve({}, recipes.path(cell.recipe))).classifier
        token = "noSeqPool" in cell.row or cell.row.startswith("ViT")
        assert (classifier.class_emb is not None) == token != classifier.seq_pool, cell


@pytest.mark.parametrize(("tuned", "rates"), [(False, (0.1, 0.0, 0.0)), (True, (0.0, 0.1, 0.1))])
def test_table_9(tuned, rates):
    """Its two columns are the dropout rates of the rows of Tables 7 and 8."""
    for table in ("7", "8"):
        for cell in recipes.cells(table):
            marked = "tun" in cell.row or (table, cell.row) in {("8", "CVT-7/4"), ("8", "CCT-7/7x1")}
            if marked != tuned:
                continue
            kwargs = build(resolve({}, recipes.path(cell.recipe))).config["kwargs"]
            assert (kwargs["dropout"], kwargs["attention_dropout"], kwargs["stochastic_depth"]) == rates, cell


# Recipe -> its curve in the fixture of learning rates.
CURVES = {
    "cct_7_3x1-cifar10": "cifar10_300",
    "cct_7_3x1-cifar100": "cifar100_300",
    "cct_7_3x1_sine-cifar10-1500": "cifar10_1500",
    "cct_14_7x2-imagenet": "imagenet_300",
    "cct_14_7x2-imagenet-384": "imagenet384_ft",
    "cct_14_7x2-flowers102-384": "flowers_ft_if_cosine",
    "cct_7_3x2-v1-cifar10": "v1_lr5e-4_w5_e200",
    "cct_7_3x2-v1-cifar100": "v1_lr5e-4_w10_e200",
}


def test_learning_rates_are_those_of_the_official_scripts(fixtures):
    curves = np.load(fixtures / "lr_schedules.npz")
    for name, curve in CURVES.items():
        config = resolve({}, recipes.path(name))
        ours = [learning_rate(config, epoch) for epoch in range(total_epochs(config))]
        np.testing.assert_allclose(ours, curves[curve], rtol=1e-12, err_msg=name)
    as_written = resolve({"sched": "step"}, recipes.path("cct_14_7x2-flowers102-384"))
    ours = [learning_rate(as_written, epoch) for epoch in range(total_epochs(as_written))]
    np.testing.assert_allclose(ours, curves["flowers_ft_as_written_step"], rtol=1e-12)


def test_recipes_state_what_decides_them():
    """No recipe leans on the defaults of its data set, which may change."""
    for name in recipes.names():
        keys = recipes.read(name)
        needed = {"data", "model", "epochs", "batch_size", "opt", "lr", "weight_decay", "sched", "smoothing", "amp"}
        needed |= {"min_lr", "warmup_epochs"} - ({"min_lr"} if keys["sched"] == "cosine_v1" else set())
        assert needed <= keys.keys(), (name, needed - keys.keys())
        assert keys.get("drop_last", False) == (keys["sched"] == "cosine"), name  # timm's script, not the first one
        assert {"scale", "hflip"} <= keys.keys() or {"crop_padding", "flip"} <= keys.keys(), name


def test_names(tmp_path):
    assert recipes.names("cct_2_3x2-m*") == ["cct_2_3x2-mnist"]
    assert recipes.find("cct_2_3x2-mnist") == recipes.path("cct_2_3x2-mnist")
    file = tmp_path / "mine.yaml"
    file.write_text("data: digits\n")
    assert recipes.find(str(file)) == file
    with pytest.raises(ConfigError, match="there is no recipe 'cct_2_3x2-mnits'; did you mean 'cct_2_3x2-mnist'"):
        recipes.find("cct_2_3x2-mnits")
    assert [c.value for c in recipes.cells("2", "CCT-7/3x1, 300 epochs")] == [96.53, 80.92]


def test_the_command_lists_and_shows(capsys):
    assert main(["recipes", "--table", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len([line for line in lines if line.startswith(" cct_7_3x1")]) == 6
    assert any("cct_7_3x1-cifar10 " in line and "96.53 (1 2 7 11 readme_main)" in line for line in lines)
    assert main(["recipes", "--show", "cct_2_3x2-mnist"]) == 0
    assert capsys.readouterr().out == recipes.path("cct_2_3x2-mnist").read_text()
    for words, message in (
        (["recipes", "nosuch"], "no recipe has 'nosuch' in its name"),
        (["recipes", "--table", "figur5"], "--table: got 'figur5', expected one of 1, 11, .*; did you mean 'figure5'"),
        (["train", "-c", "cct_2_3x2-mnits"], "there is no recipe 'cct_2_3x2-mnits'; did you mean 'cct_2_3x2-mnist'"),
        (["train", "-c", "none.yaml"], "none.yaml: no such file"),
    ):
        assert main(words) == 2 and re.search(message, capsys.readouterr().err), words


def test_a_recipe_trains_by_its_name(tmp_path, caplog, capsys):
    """Its model and schedule on other data and in short, with timm's flags beside ours."""
    short = [
        "--epochs",
        "2",
        "--warmup-epochs",
        "0",
        "--cooldown-epochs",
        "0",
        "--samples-per-class",
        "4",
        "--batch-size",
        "12",
    ]
    other = ["--data", "digits", "--img-size", "8", "--model-kwargs", "num_layers=1", "--workers", "8", "--pin-mem"]
    words = ["train", "-c", "cct_2_3x2-cifar10", *short, *other, "--scale", "0.9", "1", "--output", str(tmp_path / "run")]
    assert main(words) == 0
    assert "2 epochs of 3 steps, 6 steps in all" in capsys.readouterr().out  # 40 images: the last 4 make no batch
    stored = resolve({}, tmp_path / "run/config.yaml")
    assert (stored.model, stored.lr, stored.scale, stored.epochs) == ("cct_2_3x2_32", 1e-3, (0.9, 1.0), 2)
    assert (stored.aa, stored.mixup, stored.crop_padding, stored.num_classes) == ("rand-m9-mstd0.5-inc1", 0.8, 0, 10)
    assert "no effect here: workers (" in caplog.text and "pin_mem (" in caplog.text


def test_the_folder_of_an_official_file_is_where_its_data_lie(tmp_path, capsys):
    """`train.py DIR -c cifar10.yml` names the folder of the set; beside our own keys DIR is a folder of images by class."""
    file = tmp_path / "official.yml"
    file.write_text("dataset: imagenet\nepochs: 1\nwarmup_epochs: 0\n")
    (tmp_path / "data/train/only").mkdir(parents=True)
    assert main(["train", str(tmp_path / "data"), "-c", str(file)]) == 2
    assert "data/train: found 1 folder of a class (only)" in capsys.readouterr().err
    assert main(["train", str(tmp_path / "data"), "--dataset", "imagenet"]) == 2
    assert "data/train: found 1 folder of a class (only)" in capsys.readouterr().err
    file.write_text("dataset: flowers102\nval_split: valid\n")
    assert main(["train", str(tmp_path / "data/train"), "-c", str(file)]) == 2
    assert f"there are no folders train/ and valid/, each with 1 to 102 in it; searched: {tmp_path}" in capsys.readouterr().err
    file.write_text("data: pets\n")
    assert main(["train", str(tmp_path / "data/train"), "-c", str(file)]) == 2
    assert "data/train: found 1 folder of a class (only)" in capsys.readouterr().err
