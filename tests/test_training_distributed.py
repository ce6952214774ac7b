"""Several processes under torchrun do what one process does; one that is lost ends the others, and the run goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_training_loop import assert_same_run, weights

from cct.cli import main
from cct.reports.curves import read_metrics
from cct.training.distributed import Workers
from cct.training.interrupt import Interrupt

# 1,438 images in batches of 479: the two workers share 240 + 239 of them, and 0 + 1 in the last batch of each epoch.
FLAGS = ["--img-size", "8", "--batch-size", "479", "--lr", "3e-3", "--threads", "1", "--device", "cpu", "--clip-grad", "1"]
TINY = ["--model-kwargs", "embedding_dim=32", "num_layers=2", "num_heads=1", "n_conv_layers=1"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
# `cct train`, then the names of the threads that are left.
TRAIN_AND_LIST = """
import contextlib, sys, time
from pathlib import Path
from cct.cli import main
code = main(["train", *sys.argv[1:]])
def names():
    for name in Path("/proc/self/task").glob("*/comm"):
        with contextlib.suppress(OSError):  # it ended just now
            yield name.read_text().strip()
deadline = time.monotonic() + 2
while "gloo" in " ".join(left := [*names()]) and time.monotonic() < deadline:
    time.sleep(0.01)
print("threads left:", *left)
sys.exit(code)
"""


def torchrun(*words, program=("-m", "cct", "train")):
    words = [*TORCHRUN, *program, *words]
    return subprocess.Popen([*map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out, err


def worker(process, rank):
    """Process id of a worker of torchrun, or None while it is not there."""
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
            return int(child)
    return None


def assert_same_to_rounding(one, other):
    rows = [read_metrics(Path(folder) / "metrics.csv") for folder in (one, other)]
    assert len(rows[0]) == len(rows[1]) > 0
    for a, b in zip(*rows, strict=True):
        assert a.keys() == b.keys()
        for key in a:
            if "second" not in key:
                close = {"abs": 3 / 359} if key.endswith(("top1", "top5")) else {"rel": 2e-4}  # 3 of the test images
                assert a[key] == pytest.approx(b[key], **close), key
    a, b = weights(one), weights(other)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=1e-4)


def test_two_workers_give_the_losses_of_one_process(tmp_path):
    still = [*TINY, "dropout=0.0", "attention_dropout=0.0", "stochastic_depth=0.0", "--fused=strict"]
    program = tmp_path / "program.py"
    program.write_text(TRAIN_AND_LIST)
    out, err = finished(torchrun(*FLAGS, "--epochs", 3, *still, "--output", tmp_path / "two", program=[program]))
    assert main(["train", *FLAGS, "--epochs", "3", *still, "--output", str(tmp_path / "one")]) == 0
    assert_same_to_rounding(tmp_path / "one", tmp_path / "two")
    assert "effective batch 479 (2 x 1 pieces)" in out and "2 processes, 2 of them here" in out
    assert out.count("epoch 3/3") == out.count("run folder:") == 1
    assert out.count("threads left:") == 2 and "gloo" not in out.partition("threads left:")[2]  # one could abort the end
    assert err.count("fused=") <= 1  # a line about plain PyTorch, where there is no kernel


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="no /proc here to find the workers by")
def test_a_lost_worker_ends_the_others_and_the_run_goes_on(tmp_path, capsys):
    run, flags = tmp_path / "run", [*FLAGS, "--epochs", "16", *TINY, "dropout=0.1", "--model-ema", "--save-seconds", "0"]
    flags += ["--mixup", "0.8", "--cutmix", "1.0", "--mixup-off-epoch", "15"]
    process = torchrun(*flags, "--output", run)
    deadline = time.monotonic() + 200
    while not (run / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    os.kill(worker(process, rank=1), signal.SIGKILL)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "cct train: lost another of the 2 workers: it was killed or failed" in err
    assert f"Go on with: cct train --resume {run} (the last save is whole)" in err
    assert 1 <= len(read_metrics(run / "metrics.csv")) < 16
    finished(torchrun("--resume", run))
    assert main(["train", *flags, "--output", str(tmp_path / "one"), "--accumulate-steps", "2"]) == 0
    assert_same_to_rounding(tmp_path / "one", run)


def test_two_workers_that_are_stopped_go_on_to_the_same_bits(tmp_path):
    flags = [*FLAGS, "--epochs", "24", *TINY, "dropout=0.1", "--mixup", "0.8", "--model-ema", "--save-seconds", "0"]
    finished(torchrun(*flags, "--output", tmp_path / "whole"))
    process, run = torchrun(*flags, "--output", tmp_path / "parts"), tmp_path / "parts"
    deadline = time.monotonic() + 200
    while not (run / "metrics.csv").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=100)
    assert 1 <= len(read_metrics(run / "metrics.csv")) < 24
    finished(torchrun("--resume", run))
    assert_same_run(run, tmp_path / "whole")


def test_torchrun_does_not_end_one_of_several_before_it_says_what_it_lost():
    before = signal.getsignal(signal.SIGTERM)
    try:
        for patience, left in ((0.0, before), (3.0, signal.SIG_IGN)):
            with pytest.raises(RuntimeError), Interrupt(patience):
                raise RuntimeError
            assert signal.getsignal(signal.SIGTERM) == left
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_parts_of_the_workers_cover_everything_once():
    for n, count in ((0, 3), (2, 3), (10, 4), (479, 2)):
        parts = [range(n)[Workers(rank, count).span(n)] for rank in range(count)]
        assert [i for part in parts for i in part] == list(range(n))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_happens():
    alone = Workers()
    model, values = torch.nn.Linear(2, 1), torch.ones(3)
    assert alone.first and alone.parallel(model, torch.device("cpu")) is model
    assert alone.sum_(values) is values and alone.greatest(3, 0) == (3, 0) and alone.share("x") == "x"
    with pytest.raises(RuntimeError, match="gloo"), alone.watch(""), alone.together():
        raise RuntimeError("gloo")
