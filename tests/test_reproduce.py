"""`cct reproduce`: what is run, in which order, how it stops and goes on, and what the tables say about it."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cct import recipes
from cct.cli import main
from cct.commands import reproduce
from cct.commands.runs import Runs, _told
from cct.reports import results
from cct.reports.curves import read_metrics
from cct.training import metrics, run_folder
from cct.training.config import ConfigError
from cct.training.interrupt import Interrupt

TINY = """
data: digits
model: cct_2_3x2
model_kwargs: {embedding_dim: 16, num_layers: 1, num_heads: 1}
img_size: 8
epochs: 2
batch_size: 256
device: cpu
threads: 1
paper:
  - {table: "2", row: "CCT-7/3x1, 1500 epochs", dataset: digits, metric: top1, value: 98.5}
note: A model that learns little, in a second.
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder in which there are two recipes, for two rows of Table 2."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "tiny.yaml").write_text(TINY)
    (tmp_path / "recipes" / "another.yaml").write_text(TINY.replace("1500", "300"))
    monkeypatch.setattr(recipes, "FOLDER", tmp_path / "recipes")
    monkeypatch.chdir(tmp_path)
    recipes.read.cache_clear()
    yield tmp_path
    recipes.read.cache_clear()


def fails(capsys, *words):
    assert main(["reproduce", *map(str, words)]) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text and len(text.splitlines()) == 1, text
    return text


def rows_of(folder, name="table2"):
    with open(folder / "results" / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_numbers_of_a_run():
    rows = [
        {"epoch": 1.0, "test_top1": 0.5, "ema_top1": 0.4, "seconds": 3.0},
        {"epoch": 2.0, "test_top1": 0.625, "ema_top1": 0.5, "seconds": 2.0},
        {"epoch": 3.0, "test_top1": 0.6, "ema_top1": 0.55, "seconds": 2.0},
        {"epoch": 4.0, "seconds": 2.0},  # trained, not evaluated
    ]
    facts = results.numbers(rows)
    assert facts == {
        "split": "test", "epochs": 4, "last": 60.0, "best": 62.5, "best_epoch": 2, "seconds": 9.0, "ema": pytest.approx(55.0),
    }  # fmt: skip
    assert results.numbers(rows, 61)["to_target"] == 5.0 and "to_target" not in results.numbers(rows, 63)
    walls = [{**row, "seconds_from_start": 10.0 * row["epoch"]} for row in rows]
    assert (results.numbers(walls, 61)["to_target"], results.numbers(walls)["seconds"]) == (20.0, 40.0)
    average = [{**rows[0], "ema_top1": 0.7}]
    assert results.numbers(average, 61)["to_target"] == 3.0  # the average counts too
    assert results.numbers(rows[3:]) == {} and "ema" not in results.numbers([{"epoch": 1.0, "val_top1": 1.0, "seconds": 1.0}])


def run_of(recipe, seed, last, *, finished=True, epochs=300, changes="", **more):
    session = {"machine": "a machine", "versions": "torch 2", "commit": "abc"}
    return {
        "recipe": recipe, "seed": seed, "changes": changes, "finished": finished, "planned": 300, "epochs": epochs,
        "last": last, "best": last + 1, "seconds": 60.0, "split": "test", "command": "cct train", "sessions": [session], **more,
    }  # fmt: skip


def test_table_rows():
    cells = [
        recipes.Cell("b", "2", "CCT-7/3x1, 1500 epochs", "cifar10", "top1", 97.48),
        recipes.Cell("a", "2", "CCT-7/3x1, 300 epochs", "cifar10", "top1", 96.53),
        recipes.Cell("c", "2", "CCT-7/3x1, 5000 epochs", "cifar10", "top1", 98.0),
    ]
    runs = [
        run_of("a", 42, 96.0, ema=95.0, to_target=60.0), run_of("a", 43, 97.0, ema=95.5),
        run_of("a", 44, 20.0, finished=False, epochs=5), run_of("a", 42, 50.0, changes="epochs=3"),
        run_of("b", 42, 30.0, finished=False, epochs=7), run_of("b", 43, 10.0, finished=False, epochs=2),
    ]  # fmt: skip
    first, changed, partial, not_run = results.table_rows("2", cells, runs)
    assert first["row"] == "CCT-7/3x1, 300 epochs" and first["paper"] == "96.53" and first["state"] == "done"
    assert (first["last"], first["last_sd"], first["highest"], first["seeds"]) == ("96.50", "0.71", "98.00", "42 43")
    assert (first["ema"], first["ema_sd"], first["machine"], first["minutes"]) == ("95.25", "0.35", "a machine", "1.0")
    assert first["to_target"] == ""  # one of the two did not get there
    assert (changed["changes"], changed["last"], changed["last_sd"]) == ("epochs=3", "50.00", "")
    assert (partial["state"], partial["last"], partial["seeds"]) == ("epoch 7 of 300", "30.00", "42")
    assert not_run["state"] == "not run" and "last" not in not_run


def test_a_lesser_run_does_not_take_the_place_of_another(tmp_path):
    """In a new clone the runs are gone, and their results are there."""

    def publish(began, epochs, finished=False):
        run = tmp_path / "runs" / "tiny" / "seed-42"
        run.mkdir(parents=True, exist_ok=True)
        rows = "".join(f"{epoch},0.1,0.{epoch},1.0\n" for epoch in range(1, epochs + 1))
        (run / "metrics.csv").write_text("epoch,lr,test_top1,seconds\n" + rows)
        record = run_of("tiny", 42, 0.0, finished=finished, sessions=[{"began": began}])
        return results.publish(run, record, tmp_path / "results")

    path = tmp_path / "results" / "runs" / "tiny" / "seed-42.json"
    assert publish("monday", 2) is None and publish("monday", 3) is None and publish("tuesday", 4) is None
    assert publish("wednesday", 3) == path and json.loads(path.read_text())["epochs"] == 4
    assert publish("tuesday", 5, finished=True) is None
    kept = path.read_bytes(), path.with_suffix(".csv").read_bytes()
    assert publish("wednesday", 6) == path and (path.read_bytes(), path.with_suffix(".csv").read_bytes()) == kept
    assert publish("wednesday", 6, finished=True) is None and json.loads(path.read_text())["epochs"] == 6


def test_the_split_tells_the_test_accuracy_of_runs_that_report_on_val():
    cells = [recipes.Cell("a", "4", "CCT-7/7x2", "flowers102", "top1", 97.19)]
    runs = [run_of("a", seed, 90.0, tested=tested) for seed, tested in ((42, 60.0), (43, 61.0))]
    runs = [{**run, "split": "val", "data_split": "official split"} for run in runs]
    assert results.table_rows("4", cells, runs)[0]["split"] == "val; official split; the best weights on test 60.50 %"
    assert results.table_rows("4", cells, [*runs, run_of("a", 44, 90.0)])[0]["split"] == "test"


def test_figure_7_takes_the_accuracy_at_other_sizes():
    cells = [recipes.Cell("a", "figure7", f"CCT-7/3x2 none at {size}", "cifar10", "top1", None) for size in (16, 32, 48)]
    rows = results.table_rows("figure7", cells, [run_of("a", 42, 96.0, ema=95.0, at={"48": 71.25})])
    assert [(row["state"], row.get("last")) for row in rows] == [("not run", None), ("done", "96.00"), ("done", "71.25")]
    assert [row.get("best") for row in rows] == [None, "97.00", ""] and rows[2]["highest"] == "71.25" and rows[2]["ema"] == ""
    assert [results.size_after_training(cell) for cell in cells] == [16, None, 48]


def test_evaluation_at_other_sizes(folder, monkeypatch, capfd):
    runs, _ = runs_of(folder, monkeypatch, "")
    job = runs.job("tiny", 0, sizes=(16,))
    assert main(["train", "-c", str(recipes.path("tiny")), "--seed", "42", "--output", str(job.folder)]) == 0
    job.record["finished"] = True
    assert runs.go([job], lambda job: None) == 0
    value = job.record["at"]["16"]
    assert f"tiny, seed 42: at 16 pixels top-1 {value:.2f} %" in capfd.readouterr().out
    assert main(["eval", str(job.folder / "last.safetensors"), "--img-size", "16", "--json"]) == 0
    assert 100 * json.loads(capfd.readouterr().out)["top1"] == value
    assert runs.job("tiny", 0).record["at"] == {"16": value}
    (job.folder / "last.safetensors").unlink()
    assert runs.go([job], lambda job: None) == 0  # it is known already
    job.record["at"].clear()
    assert runs.go([job], lambda job: None) == 1 and job.record["at"] == {}
    runs.deadline = time.monotonic()
    capfd.readouterr()
    assert runs.go([job], lambda job: None) == 0 and job.record["at"] == {}
    assert capfd.readouterr() == ("stopped at the budget; the same command goes on\n", "")


def test_run_stop_and_go_on(folder, capfd):
    """One recipe, really trained in a process of its own; then nothing to do; then a part of it again."""
    words = ["reproduce", "2", "--row", "CCT-7/3x1, 1500", "--set", "lr=2e-3"]
    assert main(words) == 0
    out, err = capfd.readouterr()
    assert "epoch 2/2" in out and "done, lr=0.002" in out, err
    path = folder / "results" / "runs" / "tiny-lr=0.002" / "seed-42.json"
    record = json.loads(path.read_text())
    assert record["command"] == "cct train -c tiny --seed 42 --lr 0.002"
    assert record["finished"] and record["planned"] == record["epochs"] == 2 and "1 thread" in record["sessions"][0]["machine"]
    other, ours = rows_of(folder)
    assert (other["row"], other["state"], other["last"]) == ("CCT-7/3x1, 300 epochs", "not run", "")
    assert ours["last"] == f"{record['last']:.2f}" and ours["paper"] == "98.50" and ours["changes"] == "lr=0.002"
    rows = folder / "runs" / "reproduce" / "tiny-lr=0.002" / "seed-42" / "metrics.csv"
    assert path.with_suffix(".csv").read_bytes() == rows.read_bytes()
    assert float(ours["last"]) == pytest.approx(100 * read_metrics(rows)[-1]["test_top1"], abs=0.005)

    before = rows.stat().st_mtime_ns
    assert main(words) == 0 and rows.stat().st_mtime_ns == before and "epoch 2/2" not in capfd.readouterr().out

    kept = folder / "runs" / "reproduce" / "tiny-lr=0.002" / "seed-42.json"
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "finished": False}))
    assert main([*words, "--dry-run"]) == 0 and "epoch 2 of 2" in capfd.readouterr().out
    assert main(words) == 0
    assert "--resume" in capfd.readouterr().out
    assert len(json.loads(kept.read_text())["sessions"]) == 1  # nothing was trained


def test_the_record_has_the_sessions_of_the_state(folder, monkeypatch):
    """Also those of `cct train --resume` by hand and of other machines; those of a state without any come from the record."""
    job = runs_of(folder, monkeypatch, "")[1][0]
    first, second = ({"began": f"2026-01-0{day} 10:00", "machine": str(day)} for day in (1, 2))
    state = {"rows": [{}, {}], "epoch": 1, "seconds_from_start": 7.4}
    unknown = {"began": "", "machine": "not recorded", "versions": "not recorded", "commit": "not recorded"}
    unknown |= {"seconds": 7, "epochs": 2}
    for told, known, expected in [
        ([first, second], [], [first, second]),
        ([first, second], [first], [first, second]),
        ([], [], [unknown]),
        ([], [first], [first]),
        ([unknown, second], [], [unknown, second]),
        ([unknown, second], [first], [first, second]),
        ([second], [first], [first, second]),
    ]:
        job.folder.mkdir(parents=True, exist_ok=True)
        job.record["sessions"] = known
        run_folder.save_state(job.folder, {**state, "sessions": told})
        assert _told(job) == ({"sessions": expected}, False)
    run_folder.save_state(job.folder, {**state, "sessions": [first], "split": "5 train, 1 test"})
    assert _told(job)[0]["data_split"] == "5 train, 1 test"
    (job.folder / ".resume.pt.7.tmp").touch()  # another process is saving
    for name in (run_folder.STATE, run_folder.PREVIOUS):
        (job.folder / name).write_bytes(b"damage")
    assert _told(job) == ({}, False) and (job.folder / ".resume.pt.7.tmp").exists()


def test_a_run_does_not_go_on_under_another_recipe(folder, capfd):
    words = ["reproduce", "2", "--set", "mean=0.49139968"]
    recipes.path("tiny").write_text(TINY + "clip_grad: 1\n")
    recipes.read.cache_clear()
    assert main(words) == 0
    [record] = (folder / "runs" / "reproduce").glob("tiny-*/seed-42.json")

    def again():
        record.unlink(missing_ok=True)  # as if it had not been finished
        recipes.read.cache_clear()
        capfd.readouterr()
        return main(words), capfd.readouterr().err

    assert again() == (0, "")
    recipes.path("tiny").write_text(TINY.replace("num_heads: 1", "num_heads: 2") + "clip_grad: 1\n")
    code, err = again()
    assert code == 2 and "seed-42: was begun with model_kwargs {" in err and "but tiny says {" in err
    recipes.path("tiny").write_text(TINY)
    assert "was begun with clip_grad 1.0, but tiny says None" in again()[1]


def test_a_finished_run_is_of_the_recipe_it_had(folder, capfd):
    """The recipe changes under it: nothing is published for the new one, and the tables say what the old one had."""
    words = ["reproduce", "2", "--set", "lr=2e-3"]
    assert main(words) == 0
    path = folder / "results" / "runs" / "tiny-lr=0.002" / "seed-42.json"
    before = path.read_bytes()
    assert json.loads(before)["settings"]["epochs"] == 2 and "data_dir" not in json.loads(before)["settings"]
    assert [row["changes"] for row in rows_of(folder)] == ["lr=0.002"] * 2
    recipes.path("tiny").write_text(TINY.replace("epochs: 2", "epochs: 3"))
    recipes.read.cache_clear()
    capfd.readouterr()
    assert main(words) == 2 and path.read_bytes() == before
    assert "seed-42: was begun with epochs 2, but tiny says 3; choose another --runs" in capfd.readouterr().err
    assert main([*words, "--dry-run"]) == 0 and "cannot go on" in capfd.readouterr().out

    def published():
        [row] = [row for row in rows_of(folder) if row["recipe"] == "tiny"]
        return row["changes"], row["command"]

    command = "cct train -c tiny --seed 42 --lr 0.002"
    assert published() == ("epochs=2 lr=0.002", command + " --epochs 2")
    assert main(["report", "--output", str(folder / "report")]) == 0
    assert "epochs=2 lr=0.002" in (folder / "report" / "report.md").read_text()

    def recipe(text):
        recipes.path("tiny").write_text(text)
        recipes.read.cache_clear()
        reproduce._write_tables(folder / "results", "2")
        return published()

    assert recipe(TINY + "lr: 2e-3\n") == ("", command)  # adopted
    assert recipe(TINY + "crop_padding: 0\nflip: false\n") == ("lr=0.002", command)  # as the data have it anyway
    assert recipe(TINY + "scale: [0.5, 1]\n") == ("lr=0.002 scale=", command)  # which no flag takes away


def test_a_seed_counts_once():
    """One run by --set, and one from when the recipe said the same."""
    cells = [recipes.Cell("a", "2", "CCT-7/3x1, 300 epochs", "cifar10", "top1", 96.53)]
    runs = [run_of("a", 42, 96.0), run_of("a", 42, 95.0, epochs=200), run_of("a", 43, 97.0)]
    [row] = results.table_rows("2", cells, runs)
    assert (row["seeds"], row["last"]) == ("42 43", "96.50")


def test_a_run_that_was_removed_begins_anew(folder, monkeypatch):
    """Its sessions do not become those of the next one, whose first numbers then would take the place of the old."""
    runs, [job, _] = runs_of(folder, monkeypatch, "")
    old = {**job.record, "sessions": [{"began": "monday"}], "at": {"16": 1.0}}
    old["settings"] = {**old["settings"], "epochs": 9}
    for finished in (False, True):
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        results.write_json(job.record_path, {**old, "finished": finished})
        again = runs.job("tiny", 0)
        assert (again.record["sessions"], again.record["at"], again.begun) == ([], {}, {}) and not again.record["finished"]
        assert runs.difference(again) is None


def test_changes_that_name_a_path_make_one_folder(folder, monkeypatch):
    runs = runs_of(folder, monkeypatch, "")[0]
    runs.changes = {"pretrained": "weights/base.pth"}
    first, second = (runs.job(name, 0).folder for name in ("tiny", "another"))
    assert first.parent.name == "tiny-pretrained=weights_base.pth" and first.parent.parent == folder / "runs"
    assert second.parent.name != first.parent.name  # the name under which results are published


def test_what_cannot_be_taken_away():
    for pair in ("scale=", "flip=", "stream="):
        with pytest.raises(ConfigError, match=f"--set: {pair[:-1]} cannot be taken away here"):
            reproduce._changes([pair])


def test_changes_in_any_order_are_the_same_runs():
    assert reproduce._changes(["lr=2e-3", "epochs=1"]) == {"epochs": 1, "lr": 2e-3}
    assert list(reproduce._changes(["lr=2e-3", "epochs=1"])) == ["epochs", "lr"]


def test_a_change_may_take_a_value_away(folder, monkeypatch):
    runs = runs_of(folder, monkeypatch, "")[0]
    runs.changes = reproduce._changes(["target_top1="])
    job = runs.job("tiny", 0)
    assert job.words[-2:] == ["--target-top1", ""] and job.record["changes"] == "target_top1="
    assert main(["train", "-c", str(recipes.path("tiny")), *job.words, "--output", str(folder / "run")]) == 0


def runs_of(folder, monkeypatch, script, budget=None):
    """`Runs` whose processes run a Python script instead of `cct train`; its jobs have seeds 42 and 43."""
    args = SimpleNamespace(runs=str(folder / "runs"), budget=budget, data_dir=None, device=None, threads=None)
    runs = Runs(args, changes={})
    jobs = [runs.job("tiny", n) for n in range(2)]
    monkeypatch.setattr("cct.commands.runs.Job.argv", lambda job: [sys.executable, "-c", script, str(job.folder)])
    return runs, jobs


SAVES = """
import pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[1])
folder.mkdir()
signal.signal(signal.SIGTERM, lambda *_: ((folder / "saved").touch(), sys.exit(143)))
(folder / "ready").touch()
time.sleep(600)
"""


LEAVES = """
import sys
from cct.training import metrics, run_folder
run_folder._make(run_folder.Path(sys.argv[1]))
run_folder.save_state(sys.argv[1], {{"epoch": {}, "rows": [], "seconds_from_start": 0.0}})
"""


def await_ready(job):
    while not (job.folder / "ready").exists():
        time.sleep(0.02)


def test_the_budget_stops_a_run_that_saves(folder, monkeypatch, capfd):
    runs, jobs = runs_of(folder, monkeypatch, SAVES, budget=60)
    published = []

    def use_up():
        await_ready(jobs[0])
        runs.deadline = time.monotonic()

    threading.Thread(target=use_up).start()
    assert runs.go(jobs, published.append) == 0
    assert published == jobs[:1]
    assert (jobs[0].folder / "saved").exists() and not jobs[1].folder.exists()
    assert not jobs[0].record["finished"]
    assert "stopped at the budget" in capfd.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on(number, folder, monkeypatch):
    runs, jobs = runs_of(folder, monkeypatch, SAVES)

    def interrupt():
        await_ready(jobs[0])
        os.kill(os.getpid(), number)

    threading.Thread(target=interrupt).start()
    assert runs.go(jobs, lambda job: None) == 128 + number
    assert (jobs[0].folder / "saved").exists() and not jobs[1].folder.exists()


def test_a_failure_does_not_stop_the_others(folder, monkeypatch, capfd):
    runs, jobs = runs_of(folder, monkeypatch, "import sys\nif 'seed-42' in sys.argv[1]: sys.exit(2)" + LEAVES.format(2))
    assert runs.go(jobs, lambda job: None) == 1
    assert [job.record["finished"] for job in jobs] == [False, True]
    assert "tiny, seed 42: failed with exit code 2" in capfd.readouterr().err


@pytest.mark.parametrize("leaves", ["", LEAVES.format(1)])
def test_half_a_run_is_not_finished_whatever_its_exit_code(leaves, folder, monkeypatch, capfd):
    runs, jobs = runs_of(folder, monkeypatch, leaves)
    assert runs.go(jobs[:1], lambda job: None) == 1 and not jobs[0].record["finished"]
    assert capfd.readouterr().err == "tiny, seed 42: ended before its last epoch; the same command goes on\n"


def test_a_run_at_its_target_is_finished():
    row, finished = {"epoch": 1, "test_top1": 0.8, "ema_top1": 0.7}, metrics.finished
    state = {"epoch": 1, "rows": [row]}
    assert finished(state, 2, 80) and not finished(state, 2, 81) and not finished(state, 2, None) and finished(state, 1, None)
    assert finished({"epoch": 1, "rows": [{"val_top1": 0.8}]}, 2, 80)
    assert not finished({"epoch": 1, "rows": [{**row, "test_top1": None, "ema_top1": None}]}, 2, 80)


def test_a_folder_that_another_process_holds_fails_alone(folder, monkeypatch, capfd):
    runs, jobs = runs_of(folder, monkeypatch, LEAVES.format(2))
    jobs[0].folder.mkdir(parents=True)
    with run_folder.locked(jobs[0].folder):
        assert runs.go(jobs, lambda job: None) == 2
    assert [job.record["finished"] for job in jobs] == [False, True]
    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith("tiny, seed 42: ") and "is training in this folder; wait for its end" in line


HELD = """
import sys
from pathlib import Path
from cct import recipes
from cct.cli import main
recipes.FOLDER = Path("recipes")
sys.exit(main(["reproduce", "2", "--row", "CCT-7/3x1, 1500", "--set", "epochs=100000"]))
"""


@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM] * 2], ids=["killed", "terminated twice"])
def test_a_run_does_not_outlive_the_command(numbers, folder):
    """However that ends."""
    process = subprocess.Popen([sys.executable, "-c", HELD], stdout=subprocess.DEVNULL)
    run = folder / "runs" / "reproduce" / "tiny-epochs=100000" / "seed-42"
    await_that(lambda: (run / "metrics.csv").exists())
    child = int((run / run_folder.LOCK).read_text().split()[1])
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.1)  # else two become one
    assert process.wait() in (-numbers[0], 128 + numbers[0])

    def ended():
        state = Path(f"/proc/{child}/stat")
        return not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"

    await_that(ended)
    assert len(numbers) > 1 or not (run / run_folder.LOCK).exists()  # with a second signal it may not have saved


def await_that(condition):
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_a_run_leaves_that_never_saved_is_in_nobodys_way(folder, monkeypatch):
    runs, jobs = runs_of(folder, monkeypatch, "import os, sys\nif len(os.listdir(sys.argv[1])): sys.exit(3)" + LEAVES.format(2))
    jobs[0].folder.mkdir(parents=True)
    (jobs[0].folder / "config.yaml").touch()
    assert runs._run(jobs[0], Interrupt()) == 0
    (jobs[0].folder / "config.yaml").touch()
    (jobs[0].folder / "best.safetensors").touch()
    assert runs._run(jobs[0], Interrupt()) == 1  # two files are still there


def test_lists_and_dry_run(folder, capsys):
    assert main(["reproduce"]) == 0
    assert "Small data sets, trained from scratch" in capsys.readouterr().out
    assert main(["reproduce", "Table 2", "--dry-run", "--seeds", "2", "--set", "scale=0.5,1", "flip=no"]) == 0
    out = capsys.readouterr().out
    commands = [line.strip() for line in out.splitlines() if "cct train" in line]
    assert commands == [  # in the order of the table, every row before the second seed
        f"cct train -c {name} --seed {seed} --no-flip --scale 0.5 1" for seed in (42, 43) for name in ("another", "tiny")
    ]
    assert "not begun" in out and not (folder / "runs").exists() and not (folder / "results").exists()


def test_mistakes(folder, capsys):
    (folder / "file").touch()
    for words, message in [
        (["5"], "unknown table '5' (there are 1, 2, "),
        (["9"], "table 9 holds dropout rates and no accuracy; the recipes of Tables 7 and 8 train with them"),
        (["3"], "Table 3: no recipe gives one of its numbers"),
        (["2", "--row", "CCT-7/3x1, 30 epochs"], "Table 2 has no 'CCT-7/3x1, 30 epochs' with a recipe; did you mean"),
        (["2", "--dataset", "cifar10"], "--dataset: Table 2 has no 'cifar10' with a recipe (there are digits)"),
        (["2", "--seeds", 0], "--seeds: got 0, expected at least 1"),
        (["2", "--budget", 0], "--budget: got 0, expected minutes, more than 0"),
        (["2", "--set", "epochs"], "--set: got 'epochs', expected KEY=VALUE"),
        (["2", "--set", "epocs=1"], "--set: unknown key 'epocs'; did you mean 'epochs'?"),
        (["2", "--set", "epochs=many"], "epochs: got 'many', expected a whole number"),
        (["2", "--set", "model=zzz", "--dry-run"], "unknown model 'zzz'"),
        (["2", "--set", "model=text_cct_2", "--dry-run"], "text_cct_2 reads text; expected an image model"),
        (["2", "--set", "seed=1"], "--set: seed cannot be set here; see --seeds"),
        (["2", "--results", "file"], "--results file: cannot make this folder"),
        (["2", "--runs", "file"], "--runs file: cannot be written"),
    ]:
        assert message in fails(capsys, *words), words
    (folder / "results" / "runs" / "tiny").mkdir(parents=True)
    (folder / "results" / "runs" / "tiny" / "seed-42.json").write_text("{")
    (folder / "runs" / "reproduce" / "tiny").mkdir(parents=True)
    (folder / "runs" / "reproduce" / "tiny" / "seed-42.json").write_text("[]")
    assert "seed-42.json: is no record of a run; remove it" in fails(capsys, "2", "--dry-run")
    (folder / "results" / "table2.csv").write_text("row,value\n")
    assert "table2.csv: lacks the columns" in fails(capsys)
