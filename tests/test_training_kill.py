"""A process killed with SIGKILL at random moments, resumed each time, ends in the same bits as one that was left alone."""

import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from test_training_loop import assert_same_run

from cct.cli import main
from cct.reports.curves import read_metrics
from cct.training import run_folder

EPOCHS, KILLS = 40, 2
FLAGS = ["--img-size", "8", "--epochs", str(EPOCHS), "--batch-size", "4", "--lr", "3e-3", "--threads", "1", "--device", "cpu"]
FLAGS += ["--model-kwargs", "embedding_dim=32", "num_layers=1", "num_heads=1", "n_conv_layers=1"]
FLAGS += ["--save-seconds", "0", "--model-ema", "--clip-grad", "1"]


@pytest.fixture
def photos(tmp_path):
    """An image folder: two classes, 12 training and 4 test images of noise."""
    random_pixels = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 2)):
        for kind in ("a", "b"):
            for i in range(count):
                path = tmp_path / "photos" / split / kind / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(random_pixels.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return tmp_path / "photos"


def start(*words):
    return subprocess.Popen([sys.executable, "-m", "cct", "train", *map(str, words)], stderr=subprocess.PIPE, text=True)


def await_change(path, before, process):
    """Wait until the file is there and another one than `before`: until training goes on, or had nothing left to do."""
    deadline = time.monotonic() + 120
    while not path.exists() or path.stat().st_mtime_ns == before:
        if process.poll() is not None:
            assert process.returncode == 0, process.stderr.read()
            return
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_kill_9_and_resume(tmp_path, photos):
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(["train", str(photos), *FLAGS, "--output", str(whole)]) == 0
    state, before, saves, codes = run / run_folder.STATE, None, [], []
    for kill in range(KILLS):
        process = start(photos, *FLAGS, "--output", run) if kill == 0 else start("--resume", run)
        saves.append(random.randint(1, 15))  # of 120: the run goes on while this process may be kept waiting
        for _ in range(saves[-1]):
            await_change(state, before, process)
            before = state.stat().st_mtime_ns
        time.sleep(random.uniform(0, 0.01))  # about a step: not only just after a save
        process.send_signal(signal.SIGKILL)
        codes.append(process.wait())
        process.stderr.close()
        before = state.stat().st_mtime_ns
    assert codes[0] == -signal.SIGKILL and set(codes) <= {-signal.SIGKILL, 0}, saves
    assert main(["train", "--resume", str(run)]) == 0, saves
    assert [row["epoch"] for row in read_metrics(run / "metrics.csv")] == list(range(1, EPOCHS + 1)), saves
    assert_same_run(run, whole)
    assert not list(run.glob(".*.tmp")), saves


def test_sigterm_ends_with_143_and_says_how_to_go_on(tmp_path, photos):
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "cct", "train", photos, *FLAGS, "--epochs", "5000", "--output", run],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    await_change(run / "metrics.csv", None, process)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert out.splitlines()[-1].startswith("stopped by SIGTERM in epoch ")
    assert out.splitlines()[-1].endswith(f"everything is saved. Go on with: cct train --resume {run}")
