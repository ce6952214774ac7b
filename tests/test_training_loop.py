"""The training loop on a handful of real digits: files, resuming to the same bits, and everything that can stop a run."""

import dataclasses
import errno
import gc
import io
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import cct.data
from cct.data import DataError
from cct.models import create_model
from cct.models.checkpoints import load_checkpoint
from cct.reports.curves import read_metrics
from cct.training import objective, run_folder, sessions
from cct.training import run as run_module
from cct.training.config import Config, ConfigError, resolve
from cct.training.loop import resume, train
from cct.training.metrics import best_row, summary
from cct.training.progress import Log
from cct.training.run_folder import RunError
from cct.training.schedules import learning_rate

TINY = {"embedding_dim": 32, "num_layers": 1, "num_heads": 1, "n_conv_layers": 1}
STEPS = 3  # in an epoch of 48 images


@pytest.fixture(scope="module")
def digits():
    whole = cct.data.load("digits", img_size=8)
    return dataclasses.replace(whole, train=whole.train.subset(slice(0, 48)), test=whole.test.subset(slice(0, 40)))


@pytest.fixture(autouse=True)
def few_images(monkeypatch, digits):
    def load(name, data_dir, *, val_split=None, **others):
        val = digits.test.subset(slice(0, 20)) if val_split else None
        return dataclasses.replace(digits, val=val)

    monkeypatch.setattr(cct.data, "load", load)


class Quiet(Log):
    """Collects the lines; `at` maps a number of steps to a function called after that many."""

    def __init__(self, at=None):
        super().__init__(Console(file=io.StringIO()))
        self.lines, self.at, self.steps = [], at or {}, 0

    def line(self, text):
        self.lines.append(text)

    def step(self, epoch, epochs):
        self.steps += 1
        self.at.get(self.steps, lambda: None)()


def configure(folder, **flags):
    given = {
        "epochs": 3,
        "batch_size": 16,
        "threads": 1,
        "lr": 3e-3,
        "model_kwargs": TINY,
        "output": str(folder),
        "device": "cpu",
    }
    return resolve({**given, **flags})


def weights(folder, name="last"):
    return load_checkpoint(Path(folder) / f"{name}.safetensors")[0]


def assert_same_run(one, other):
    """Bitwise equal weights and equal metrics, the times apart."""
    names = sorted(path.name for path in Path(one).glob("*.safetensors"))
    assert names == sorted(path.name for path in Path(other).glob("*.safetensors"))
    for name in names:
        a, b = (weights(folder, name.removesuffix(".safetensors")) for folder in (one, other))
        assert list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a), name
    timeless = [
        [{k: v for k, v in row.items() if "second" not in k} for row in read_metrics(Path(folder) / "metrics.csv")]
        for folder in (one, other)
    ]
    assert timeless[0] == timeless[1] and len(timeless[0]) > 0


def interrupted(config, step, number=signal.SIGTERM):
    return train(config, log=Quiet({step: lambda: os.kill(os.getpid(), number)}))


def test_run_folder(tmp_path):
    log = Quiet()
    config = configure(tmp_path / "run", model_ema=True)
    result = train(config, log=log)
    files = {path.name for path in result.folder.iterdir()}
    names = {f"{name}.{end}" for name in ("best", "last", "ema") for end in ("safetensors", "json")}
    assert files == names | {"config.yaml", "metrics.csv", "metrics.jsonl", "curve.png", "resume.pt", "resume.previous.pt"}
    assert (result.folder / "curve.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    rows = read_metrics(result.folder / "metrics.csv")
    assert rows == [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()] == result.rows
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["lr"] for row in rows] == [
        learning_rate(resolve({}, result.folder / "config.yaml"), e + 2 / 3) for e in range(3)
    ]
    best = json.loads((result.folder / "best.json").read_text())
    assert best["metrics"]["test_top1"] == max(row["test_top1"] for row in rows)
    model = create_model(best["model"]["name"], **best["model"]["kwargs"])
    model.load_state_dict(weights(result.folder, "best"))
    sentence = r"digits test top-1 \d+\.\d\d % \(epoch 3, best \d+\.\d\d % at epoch [123], moving average \d+\.\d\d %\)"
    assert re.fullmatch(sentence, result.sentence) and result.sentence in log.lines
    assert any("effective batch 16" in line and "3 epochs of 3 steps, 9 steps in all" in line for line in log.lines)
    assert any(line.startswith("kernels") and "seqpool" in line for line in log.lines)
    again = resolve({"output": str(tmp_path / "again")}, result.folder / "config.yaml")
    assert_same_run(result.folder, train(again, log=Quiet()).folder)


@pytest.fixture(scope="module")
def extras():
    return {"model_ema": True, "clip_grad": 0.5, "amp": "bf16", "crop_padding": 1, "save_seconds": 3600}


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory, digits, extras):
    """A run with everything on that nothing stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cct.data, "load", lambda *args, **kwargs: digits)
        return train(configure(tmp_path_factory.mktemp("whole") / "run", **extras), log=Quiet()).folder


@pytest.mark.parametrize("step", range(1, 3 * STEPS + 1))
def test_a_signal_at_any_step_then_resume_is_bit_exact(tmp_path, whole_run, extras, step):
    number = (signal.SIGTERM, signal.SIGINT)[step % 2]
    before = signal.getsignal(number)
    result = interrupted(configure(tmp_path / "run", **extras), step, number)
    assert signal.getsignal(number) is before
    if step < 3 * STEPS:
        assert result.exit_code == {signal.SIGTERM: 143, signal.SIGINT: 130}[number]
        expected = f"stopped by {number.name} in epoch {(step - 1) // STEPS + 1} after step {(step - 1) % STEPS + 1} of 3"
        state, _ = run_folder.load_state(result.folder)
        assert (state["epoch"], state["step"]) == ((step - 1) // STEPS, (step - 1) % STEPS + 1)
        assert result.sentence.startswith(expected) and f"cct train --resume {tmp_path / 'run'}" in result.sentence
    final = resume(tmp_path / "run", log=Quiet())
    assert final.exit_code == 0 and len(final.rows) == 3
    assert_same_run(tmp_path / "run", whole_run)


def test_signals_work_as_before_after_a_run(tmp_path):
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    train(configure(tmp_path / "run", epochs=1), log=Quiet())
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers


def test_a_second_signal_does_not_wait(tmp_path):
    def twice():  # to this thread: two signals to the process can arrive as one
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(configure(tmp_path / "run"), log=Quiet({2: twice}))
    finally:
        signal.signal(signal.SIGINT, before)


def test_best_is_the_first_of_the_highest():
    rows = [{"epoch": e, "test_top1": top1} for e, top1 in ((1, 0.5), (2, 0.75), (3, 0.75), (4, 0.25))]
    assert best_row(rows, "test") is rows[1] and best_row([], "test") is None
    assert summary(rows, "digits", "test") == "digits test top-1 25.00 % (epoch 4, best 75.00 % at epoch 2)"


def test_gradient_clipping(tmp_path):
    """With SGD the way of three steps is at most lr * clip each."""
    flags = {"opt": "sgd", "momentum": 0, "lr": 1, "sched": "constant", "warmup_epochs": 0, "weight_decay": 0, "epochs": 1}
    folder = train(configure(tmp_path / "run", clip_grad=1e-3, **flags), log=Quiet()).folder
    still = train(configure(tmp_path / "still", **flags | {"lr": 1e-12}), log=Quiet()).folder
    moved = sum((a - b).square().sum() for a, b in zip(weights(folder).values(), weights(still).values(), strict=True)).sqrt()
    assert 0 < moved <= 3.01e-3


def test_resuming_a_finished_run_says_its_result_again(whole_run, tmp_path):
    folder = shutil.copytree(whole_run, tmp_path / "copy")
    log = Quiet()
    assert resume(folder, log=log).sentence in log.lines and log.steps == 0
    assert_same_run(folder, whole_run)


def test_a_damaged_state_falls_back_to_the_one_before(tmp_path, whole_run, extras):
    folder = interrupted(configure(tmp_path / "run", **extras), 5).folder
    state = folder / run_folder.STATE
    state.write_bytes(state.read_bytes()[:1000])
    (folder / ".best.safetensors.123.tmp").write_bytes(b"left by a kill")
    log = Quiet()
    resume(folder, log=log)
    reason = f"{state} is damaged (not a whole file that torch.save wrote); going on from {folder / run_folder.PREVIOUS}"
    assert reason in log.lines
    assert not list(folder.glob(".*.tmp"))
    assert_same_run(folder, whole_run)
    for name in (run_folder.STATE, run_folder.PREVIOUS):
        (folder / name).write_bytes(b"nothing")
    with pytest.raises(
        ConfigError, match=r"resume\.pt is damaged .*; .*resume\.previous\.pt is damaged .*--pretrained .*last\.safet"
    ):
        resume(folder, log=Quiet())


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_kill_after_a_damaged_state_leaves_a_whole_one(tmp_path, monkeypatch, moment):
    """While the first new state is written, before it is in its place."""
    folder = interrupted(configure(tmp_path / "run"), 5).folder
    (folder / run_folder.STATE).write_bytes(b"damage")

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        resume(folder, log=Quiet({1: lambda: (patch.setattr(os, moment, killed), os.kill(os.getpid(), signal.SIGTERM))}))
    assert (folder / run_folder.DAMAGED).read_bytes() == b"damage"
    assert resume(folder, log=Quiet()).exit_code == 0
    assert run_folder.load_state(folder)[1] is None


def test_a_state_of_another_version_is_refused(tmp_path):
    torch.save({"format": 99}, tmp_path / run_folder.STATE)
    with pytest.raises(ConfigError, match="has format 99"):
        resume(tmp_path)


def test_saving_by_time_inside_an_epoch(tmp_path, monkeypatch):
    saved = []
    real = run_folder.save_state
    monkeypatch.setattr(run_folder, "save_state", lambda folder, state: (saved.append(state["step"]), real(folder, state)))
    train(configure(tmp_path / "run", epochs=1, save_seconds=0), log=Quiet())
    assert saved == [0, 1, 2, 3, 0]


def test_a_run_that_goes_on_elsewhere_says_what_changed(tmp_path, monkeypatch):
    folder = interrupted(configure(tmp_path / "run", data_dir=str(tmp_path)), 1).folder
    moved, log = Path(shutil.move(folder, tmp_path / "moved")), Quiet({1: lambda: os.kill(os.getpid(), signal.SIGTERM)})
    monkeypatch.setattr(sessions.machine, "machine", lambda: {"cpu": "another", "cores": 64})
    resume(moved, {"data_dir": str(tmp_path / "data")}, log=log)
    state, _ = run_folder.load_state(moved)
    first, second = state["sessions"]
    assert second["machine"] == "another, 64 cores, 1 thread" and first["machine"].endswith(" cores, 1 thread")
    assert [line for line in log.lines if line.startswith("changed")] == [
        f"changed  machine: {first['machine']} -> {second['machine']}",
        f"changed  data_dir: {tmp_path} -> {tmp_path / 'data'}",
    ]
    assert any("the same up to rounding" in line for line in log.lines)
    assert sessions.changes(sessions.NOT_RECORDED, first) == []
    again = Quiet()
    resume(moved, log=again)
    assert not any(line.startswith("changed") for line in again.lines)
    state, _ = run_folder.load_state(moved)
    assert state["sessions"][:1] == [first] and state["sessions"][1]["machine"] == state["sessions"][2]["machine"]
    assert [session["epochs"] for session in state["sessions"]] == [0, 0, 3]
    assert sum(session["seconds"] for session in state["sessions"]) == pytest.approx(state["seconds_from_start"], abs=2)


def test_a_run_of_a_larger_machine_says_that_it_has_too_many_threads(tmp_path, monkeypatch):
    folder = interrupted(configure(tmp_path / "run", threads=3), 1).folder
    for cores, said in ((2, ["threads  3, as before, on 2 cores: faster with --resume ... --threads 2"]), (3, [])):
        monkeypatch.setattr(sessions.machine, "machine", lambda cores=cores: {"cpu": "another", "cores": cores})
        log = Quiet()
        resume(folder, log=log)
        assert [line for line in log.lines if line.startswith("threads")] == said


def test_a_picture_that_does_not_decode_leaves_a_run_that_goes_on(tmp_path, monkeypatch):
    whole = run_module.batches.epoch

    def broken(*args, epoch, **kwargs):
        yield from whole(*args, epoch=epoch, **kwargs)
        if epoch == 1:
            raise DataError("cat.png: cannot be read as an image; replace or remove it")

    monkeypatch.setattr(run_module.batches, "epoch", broken)
    with pytest.raises(
        DataError, match=r"^cat\.png: cannot .* it\. Go on with: cct train --resume .*run \(the last save is whole\)$"
    ):
        train(configure(tmp_path / "run"), log=Quiet())
    assert run_folder.load_state(tmp_path / "run")[0]["epoch"] == 1


def test_what_a_resume_may_change(tmp_path, monkeypatch, digits):
    folder = interrupted(configure(tmp_path / "run"), 1).folder
    with pytest.raises(ConfigError, match=r"epochs, lr cannot change.*--pretrained .*last\.safetensors"):
        resume(folder, {"lr": 1, "epochs": 5})
    assert resume(folder, {"threads": 1, "save_seconds": 5}, log=Quiet()).exit_code == 0
    monkeypatch.setattr(cct.data, "load", lambda *args, **kwargs: dataclasses.replace(digits, train=digits.test))
    with pytest.raises(ConfigError, match=r"it began with 48 training images of 10 classes, but .* has 40 of 10"):
        resume(folder, log=Quiet())
    with pytest.raises(ConfigError, match="no such folder"):
        resume(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"no resume\.pt in it"):
        resume(tmp_path)


def test_never_overwrites(tmp_path, monkeypatch):
    folder = train(configure(tmp_path / "run", epochs=1), log=Quiet()).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match=r"not empty; continue it with --resume .*, or choose another --output"):
        train(configure(folder), log=Quiet())
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError, match="not empty; choose another"):
        run_folder.create(Config(output=str(tmp_path), model="m"))
    with pytest.raises(ConfigError, match=r"cannot make this folder \(Not a directory\)"):
        run_folder.create(Config(output=str(folder / "config.yaml" / "x"), model="m"))
    monkeypatch.chdir(tmp_path)
    made = [run_folder.create(Config(model="m")) for _ in range(3)]
    assert [re.fullmatch(r"digits-m-\d{4}-\d\d-\d\d-(\d)", path.name)[1] for path in made] == ["1", "2", "3"]


def poison(step, value):
    """cross_entropy that gives `value` at one step of the run."""
    calls, real = [], objective.cross_entropy

    def poisoned(logits, *args):
        calls.append(None)
        return real(logits, *args) * (value if len(calls) == step else 1)

    return poisoned


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops(tmp_path, monkeypatch, value):
    monkeypatch.setattr(objective, "cross_entropy", poison(STEPS + 2, value))
    with pytest.raises(RunError) as error:
        train(configure(tmp_path / "run", save_seconds=0), log=Quiet())
    text = str(error.value)
    assert f"the loss is {value} at step 2 of 3 in epoch 2, learning rate" in text
    assert "--lr 1.0e-03" in text and "--clip-grad" in text and "Nothing was overwritten" in text
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    state, _ = run_folder.load_state(tmp_path / "run")
    assert (state["epoch"], state["step"]) == (1, 1) and len(read_metrics(tmp_path / "run" / "metrics.csv")) == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    def spoil():
        with torch.no_grad():
            next(run.model.parameters()).fill_(float("nan"))

    config = configure(tmp_path / "run", epochs=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module.Run, "go", lambda self: self)
        run = train(config)
    run.log = Quiet({2 * STEPS: spoil})
    with pytest.raises(RunError, match="the test loss is not finite at step 3 of 3 in epoch 2"):
        run.go()
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path / "run").values())
    with pytest.raises(RunError, match="a weight is not finite"):
        run.save()
    assert all(torch.isfinite(t).all() for t in run_folder.load_state(tmp_path / "run")[0]["model"].values())


@pytest.mark.parametrize(
    ("error", "who"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "the GPU"),
        (RuntimeError("CUDA error: out of memory"), "the GPU"),
        (RuntimeError("cct_kernels: out of memory for 5 bytes"), "this machine"),
        (MemoryError(), "this machine"),
        (None, "this machine"),
    ],
)
def test_memory_that_runs_out_ends_a_run_that_can_go_on(tmp_path, error, who):
    def full():
        if error is not None:
            raise error
        torch.empty(2**62, dtype=torch.uint8)

    folder = tmp_path / "run"
    advice = f"Go on with less of it for a step: cct train --resume {folder} --accumulate-steps 4 (the last save is whole)"
    with pytest.raises(RunError, match=re.escape(f"{who} has no memory left. {advice}")):
        train(configure(folder, epochs=1, accumulate_steps=2), log=Quiet({2: full}))
    assert len(resume(folder, {"accumulate_steps": 4}, log=Quiet()).rows) == 1


def test_evaluation_fits_where_a_step_of_training_does(tmp_path, monkeypatch):
    """It takes fewer images with less memory for a step; so its running out is mended by --accumulate-steps too."""
    sizes, real = [], run_module.evaluate

    def noting(*args, **kwargs):
        sizes.append(kwargs["batch_size"])
        return real(*args, **kwargs)

    monkeypatch.setattr(run_module, "evaluate", noting)
    for batch_size, pieces in ((512, 1), (64, 1), (64, 4), (1, 1)):
        folder = tmp_path / f"{batch_size}-{pieces}"
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Run, "go", lambda self: self)
            run = train(configure(folder, epochs=1, batch_size=batch_size, accumulate_steps=pieces), log=Quiet())
        run.evaluate(run.model)
    assert sizes == [256, 128, 32, 2]


def test_another_error_of_the_runtime_is_ours(tmp_path):
    def fail():
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match") as raised:
        train(configure(tmp_path / "run", epochs=1), log=Quiet({2: fail}))
    assert not isinstance(raised.value, RunError)


def test_a_full_disk_leaves_the_last_save_whole(tmp_path, monkeypatch, whole_run, extras):
    real = Path.write_bytes

    def full(path, data):
        real(path, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Quiet({5: lambda: monkeypatch.setattr(Path, "write_bytes", full)})
    with pytest.raises(RunError) as error:
        train(configure(tmp_path / "run", **extras), log=log)
    folder = tmp_path / "run"
    advice = f"go on with: cct train --resume {folder} (the last save is whole)"
    assert str(error.value) == f"cannot save to {folder}: the disk is full. Mend that, then {advice}"
    assert not list((tmp_path / "run").glob(".*"))
    monkeypatch.setattr(Path, "write_bytes", real)
    resume(tmp_path / "run", log=Quiet())
    assert_same_run(tmp_path / "run", whole_run)


def test_a_run_that_could_not_save_once_starts_again(tmp_path, monkeypatch):
    real = Path.write_bytes

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    config = configure(tmp_path / "run", epochs=1)
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RunError, match=r"the disk is full\. Mend that, then start it again"):
        train(config, log=Quiet())
    monkeypatch.setattr(Path, "write_bytes", real)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.yaml"]
    with pytest.raises(ConfigError, match="the folder is not empty; choose another --output"):
        train(configure(tmp_path / "run", epochs=2), log=Quiet())  # another run: that file could be anybody's
    (tmp_path / "run" / ".resume.pt.123.tmp").write_bytes(b"left by a kill")
    assert train(config, log=Quiet()).exit_code == 0
    assert not list((tmp_path / "run").glob(".*"))


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if made.returncode:
        pytest.skip("may not mount a small disk here (not root)")
    yield folder
    gc.collect()  # a file that an error still holds open keeps the disk busy
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("room", [20_000, 120_000, 200_000, 400_000])
def test_a_really_full_disk(small_disk, room, whole_run, extras):
    """Room for nothing, for the state, for some of the weights: each time the message is one line and a resume goes on."""

    def fill():
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(max(0, free - room)))

    log = Quiet({1: fill})
    with pytest.raises(RunError, match=r"cannot save to .*: the disk is full\. Mend that, then go on with: cct train --resume"):
        train(configure(small_disk / "run", **extras), log=log)
    (small_disk / "filler").unlink()
    resume(small_disk / "run", log=Quiet())
    assert_same_run(small_disk / "run", whole_run)


def test_validation_split(tmp_path):
    result = train(configure(tmp_path / "run", val_split=0.5), log=Quiet())
    assert "val_top1" in result.rows[0] and "test_top1" not in result.rows[0]
    assert re.fullmatch(r"digits val top-1 .* at epoch [123]\); its test top-1 \d+\.\d\d %", result.sentence)
    state, _ = run_folder.load_state(result.folder)
    assert result.sentence.endswith(f"its test top-1 {100 * state['tested']:.2f} %")
    for name, tensor in weights(result.folder).items():  # the state has the last weights, as ever
        assert torch.equal(state["model"][name], tensor)
    assert resume(result.folder, log=Quiet()).sentence == result.sentence


def test_images_that_would_fill_a_gpu_stay_where_they_are(monkeypatch, digits):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2 * digits.train.images.nbytes - 1, 0))
    run = SimpleNamespace(device=torch.device("cuda", 0))
    assert run_module.Run._near(run, digits.train) is digits.train
    run.device = torch.device("cpu")
    assert run_module.Run._near(run, digits.train).device.type == "cpu"


@pytest.mark.parametrize("content", [[1, 2], 3.0, None])
def test_a_state_that_is_none_is_damaged(tmp_path, whole_run, content):
    folder = tmp_path / "run"
    shutil.copytree(whole_run, folder)
    torch.save(content, folder / "resume.pt")
    state, note = run_folder.load_state(folder)
    assert "resume.pt is damaged (holds a" in note and state["epoch"] >= 1


def test_starting_from_weights(tmp_path):
    source = train(configure(tmp_path / "a", epochs=1), log=Quiet()).folder
    config = configure(
        tmp_path / "b", epochs=1, pretrained=str(source / "last.safetensors"), lr=1e-12, warmup_epochs=0, min_lr=0
    )
    tuned = train(config, log=Quiet()).folder
    torch.testing.assert_close(weights(tuned), weights(source), rtol=0, atol=1e-6)
