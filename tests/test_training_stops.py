"""When a run evaluates, when it ends, and that only one process at a time is in it."""

import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch
from test_training_loop import Quiet, assert_same_run, configure, digits, few_images, interrupted  # noqa: F401 (fixtures)

from cct.cli import main
from cct.reports.curves import read_metrics
from cct.training import run_folder
from cct.training.config import ConfigError
from cct.training.elapsed import clock, process_seconds
from cct.training.evaluate import evaluate
from cct.training.loop import resume, train
from cct.training.metrics import summary


def test_evaluation_every_few_epochs(tmp_path, monkeypatch):
    saved, real = [], run_folder.save_state
    monkeypatch.setattr(run_folder, "save_state", lambda folder, state: (saved.append(state["epoch"]), real(folder, state)))
    log = Quiet()
    result = train(configure(tmp_path / "run", epochs=5, eval_every=2, model_ema=True), log=log)
    assert [row["test_top1"] is not None for row in result.rows] == [False, True, False, True, True]
    assert [row["ema_top1"] is not None for row in result.rows] == [False, True, False, True, True]
    assert all(row["train_loss"] > 0 and row["train_top1"] >= 0 for row in result.rows)
    assert saved == [0, 2, 4, 5]  # and not a file more after the other epochs
    assert ["test_top1" in row for row in read_metrics(tmp_path / "run" / "metrics.csv")] == [False, True, False, True, True]
    assert re.match(r"digits test top-1 .* \(epoch 5, best .* at epoch [245], moving average", result.sentence)
    again = interrupted(configure(tmp_path / "again", epochs=5, eval_every=2, model_ema=True), 8)  # in epoch 3
    resume(again.folder, log=Quiet())
    assert_same_run(again.folder, result.folder)


def test_a_run_ends_at_its_target(tmp_path):
    flags = {"epochs": 30, "lr": 1e-2, "target_top1": 25}
    result = train(configure(tmp_path / "run", **flags), log=Quiet())
    *before, last = result.rows
    assert len(result.rows) < 30 and all(row["test_top1"] < 0.25 for row in before) and last["test_top1"] >= 0.25
    top1, epoch = f"{100 * last['test_top1']:.2f}", last["epoch"]
    pattern = rf"{top1} % test top-1 after \d+:\d\d(:\d\d)? from process start \(digits, epoch {epoch}\)"
    assert re.fullmatch(pattern, result.sentence) and result.exit_code == 0
    log = Quiet()
    assert resume(result.folder, log=log).sentence == result.sentence and log.steps == 0
    missed = train(configure(tmp_path / "missed", target_top1=100), log=Quiet())
    assert len(missed.rows) == 3 and missed.sentence.endswith("; the target of 100 % was not reached")


def test_the_moving_average_may_reach_the_target():
    row = {"epoch": 7, "test_top1": 0.79, "ema_top1": 0.8012, "seconds_from_start": 221.4}
    sentence = "80.12 % test top-1 of the moving average after 3:41 from process start (cifar10, epoch 7)"
    assert summary([row], "cifar10", "test", 80) == sentence
    assert summary([row], "cifar10", "test", 80.2).endswith("the target of 80.2 % was not reached")
    assert [clock(s) for s in (3.6, 59.7, 3725)] == ["0:04", "1:00", "1:02:05"]


def test_seconds_count_from_process_start_and_through_resumes(tmp_path):
    code = "import time; time.sleep(0.5); from cct.training.elapsed import process_seconds as p; print(p())"
    alone = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 0.5 <= alone < 60
    before = process_seconds()
    folder = interrupted(configure(tmp_path / "run"), 4).folder  # in epoch 2, some time after the first one ended
    at_stop = process_seconds()
    first, second, third = (row["seconds_from_start"] for row in resume(folder, log=Quiet()).rows)
    assert before <= first <= at_stop and first + before <= second < third <= at_stop + process_seconds()


def test_the_result_says_that_mirror_images_counted(tmp_path, capsys):
    result = train(configure(tmp_path / "run", epochs=1, tta="flip", lr=1e-2), log=Quiet())
    assert result.sentence.endswith("; each image evaluated with its mirror image")
    printed = {}
    for tta in ("none", "flip"):
        assert main(["eval", str(result.folder), "--tta", tta, "--device", "cpu"]) == 0
        printed[tta] = capsys.readouterr().out
    assert f"loss {result.rows[0]['test_loss']:.4f} (40 images, each with its mirror image)" in printed["flip"]
    assert f"loss {result.rows[0]['test_loss']:.4f}" not in printed["none"]


def test_mirror_images_at_evaluation(digits):  # noqa: F811
    split = digits.test

    class Left(torch.nn.Module):
        """The class depends on the left half: a mirrored image has another one."""

        def forward(self, images):
            left = images[:, 0, :, :4].flatten(1)
            return left @ torch.linspace(-1, 1, 10 * left.shape[1]).view(-1, 10)

    kinds = {"mean": digits.mean, "std": digits.std}
    plain = evaluate(Left(), split, **kinds)
    both = evaluate(Left(), split, **kinds, tta="flip")
    mirrored = type(split)(split.images.flip(3), split.labels)
    assert both != plain and both == pytest.approx(evaluate(Left(), mirrored, **kinds, tta="flip"))


def test_one_process_at_a_time(tmp_path):
    folder = interrupted(configure(tmp_path / "run"), 2).folder
    assert not (folder / run_folder.LOCK).exists()
    code = "import sys; from cct.training.run_folder import locked\nwith locked(sys.argv[1]): print(flush=True); input()"
    other = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    other.stdout.readline()
    owner = f"process {other.pid} on {socket.gethostname()}"
    with pytest.raises(ConfigError, match=f"{re.escape(owner)} is training in this folder; wait for its end, or stop it"):
        resume(folder, log=Quiet())
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (folder / run_folder.LOCK).exists()  # left behind, and nobody's
    assert len(resume(folder, log=Quiet()).rows) == 3
    assert not (folder / run_folder.LOCK).exists()


def test_a_lock_file_that_is_taken_away_in_between(tmp_path, monkeypatch):
    """Another process ends, and takes its file away, just when we have opened it."""
    real, path = fcntl.flock, tmp_path / run_folder.LOCK

    def flock(file, how):
        monkeypatch.setattr(fcntl, "flock", real)
        path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with run_folder.locked(tmp_path):
        assert path.read_text() == f"process {os.getpid()} on {socket.gethostname()}"
    assert not path.exists()


def test_the_command_says_that_a_run_is_taken(tmp_path, capsys):
    folder = interrupted(configure(tmp_path / "run"), 2).folder
    with run_folder.locked(folder):
        assert main(["train", "--resume", str(folder)]) == 2
    assert "is training in this folder" in capsys.readouterr().err
