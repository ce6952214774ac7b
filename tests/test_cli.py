"""The `cct` command as a user types it: what it prints, and one or two plain lines for every mistake."""

import contextlib
import ctypes
import datetime
import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import cct.data
from cct.cli import main
from cct.data import published
from cct.disk import told
from cct.models import create_model, pretrained
from cct.models.checkpoints import load_checkpoint
from cct.training import run_folder

TINY = ["--model-kwargs", "embedding_dim=32", "num_layers=1", "num_heads=1"]
FAST = ["--img-size", "8", "--epochs", "2", "--batch-size", "8", "--threads", "1", "--device", "cpu", *TINY]


def draw(path, kind, seed):
    """A noisy picture, dark in its upper half for "sky" and in its lower half for "sea"."""
    pixels = np.random.default_rng(seed).integers(100, 256, (8, 8, 3), dtype=np.uint8)
    pixels[:4] //= 4 if kind == "sky" else 1
    pixels[4:] //= 4 if kind == "sea" else 1
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An image folder of two classes, 16 training and 6 test pictures."""
    root = tmp_path_factory.mktemp("photos")
    for kind in ("sky", "sea"):
        for i in range(11):
            draw(root / ("train" if i < 8 else "test") / kind / f"{i}.png", kind, 2 * i + (kind == "sea"))
    return root


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    """A short run on that folder."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", str(photos), *FAST, "--lr", "3e-3", "--output", str(folder)]) == 0
    return folder


def fails(capsys, *words):
    """The message on stderr of a command that must fail with exit code 2 and no traceback."""
    try:
        code = main(list(map(str, words)))
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().err
    assert code == 2 and "Traceback" not in text and 1 <= len(text.splitlines()) <= 2, text
    return text


def test_help_teaches(capsys):
    assert main([]) == 0
    assert "examples:" in capsys.readouterr().out
    for command in ("train", "eval", "predict", "explain", "export", "reproduce", "report", "info", "data"):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        assert stop.value.code == 0 and "examples:\n  cct " in capsys.readouterr().out
    assert main(["data"]) == 0 and "cct data check" in capsys.readouterr().out


def test_help_and_wrong_flags_do_not_wait_for_torch():
    code = """
import sys
from cct.cli import main
try:
    main(["train", "--lrr", "1"])
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["2", "False"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], r"unknown command 'trian'; did you mean 'train'\?"),
        (["train", "--lrr", "1"], r"cct train: unknown flag '--lrr'; did you mean '--lr'\?\ntry: cct train --help"),
        (["train", "--learning=1"], r"unknown flag '--learning'"),
        (["train", "--learning-rate", "1"], r"unknown flag '--learning-rate'; did you mean '--lr'\?"),
        (["train", "a", "b"], r"unknown argument 'b'"),
        (["train", "--lr"], r"argument --lr: expected one argument"),
        (["train", "--lr", "fast"], r"cct train: lr: got 'fast', expected a number"),
        (["train", "--model", "cct_2_3x3"], r"unknown model 'cct_2_3x3' \(did you mean 'cct_2_3x2'\?\)"),
        (["train", "--model", "text_cct_2"], r"model: text_cct_2 reads text; expected an image model"),
        (["train", "--data", "cifar"], r"data: got 'cifar', expected one of .*; did you mean 'cifar10'\?"),
        (["train", "--model-kwargs", "dropuot=0"], r"unknown argument 'dropuot' \(did you mean 'dropout'\?\)"),
        (["train", "--model-kwargs", "dropout"], r"--model-kwargs: got 'dropout', expected key=value"),
        (["train", "--model-kwargs", "a=2026-13-01"], r"--model-kwargs: got 'a=2026-13-01': month must be in 1\.\.12"),
        (["train", "--model-kwargs", "stride=0"], r"model: stride is 0; expected an int of at least 1"),
        (["train", "--model-kwargs", "pooling_stride=0"], r"model: pooling_stride is 0; expected an int of at least 1"),
        (["train", "--model-kwargs", "padding=-1"], r"model: padding is -1; expected an int of at least 0"),
        (
            ["train", "--model-kwargs", "pooling_padding=5"],
            r"pooling_padding is 5; expected at most half of pooling_kernel_size=3",
        ),
        (["train", "--model-kwargs", "mlp_ratio=.inf"], r"model: mlp_ratio is inf; expected a number that gives 1 to 2"),
        (["train", "-c", "x" * 300], r"x: cannot be read \(File name too long\)"),
        (
            ["train", "--data", "mnist", "--data-dir", "x" * 300],
            r"x/?.*: cannot be read \(File name too long\); see --data-dir",
        ),
        (["train", "--data", "cifar10", "--data-dir", "nowhere", "--aa", "rnd"], r"aa is 'rnd'; expected autoaugment, or rand"),
        (["train", "--data", "cifar10", "--data-dir", "nowhere", "--model", "cct_2_3x3"], r"unknown model 'cct_2_3x3'"),
        (["train", "nowhere"], r"nowhere: there is no such folder"),
        (["train", "nowhere", "--data", "mnist"], r"DIR 'nowhere' means --data folder"),
        (["train", "-c", "nowhere.yaml"], r"nowhere\.yaml: no such file"),
        (["train", "--resume", "nowhere"], r"--resume nowhere: no such folder"),
        (["train", "--resume", "nowhere", "-c", "x"], r"leave out -c"),
        (["train", "--device", "tpu"], r"device: got 'tpu', expected auto, cpu, cuda or cuda:N"),
        (["train", "--device", "cuda:99"], r"device: cuda:99 is not here"),
        (["train", "--pretrained", "nowhere.pth"], r"nowhere\.pth"),
        (["eval", "nowhere"], r"nowhere: does not exist"),
        (["eval", "{run}", "--data", "digits"], r"knows 2 classes \(sea, sky, ...\), but digits has 10 \(0, 1, 2, 3, ...\)"),
        (["eval", "{run}", "--split", "val", "--data-dir", "{photos}"], r"--split val: folder has no such split"),
        (["eval", "{run}", "--img-size", "0"], r"img_size is \(0, 0\); expected numbers of pixels from 1"),
        (["predict", "nowhere", "x.png"], r"nowhere: does not exist"),
        (["predict", "{run}", "x.png"], r"x\.png: there is no such file"),
        (["predict", "{run}", "{run}/metrics.csv"], r"metrics\.csv: cannot be read as an image"),
        (["predict", "{run}", "x.png", "--top", "0"], r"--top: got 0, expected at least 1"),
        (["info", "cct_7_3x"], r"unknown model 'cct_7_3x'"),
        (["info", "cct_7_3x1", "--img-size", "big"], r"--img-size: invalid int value: 'big'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(capsys, tmp_path, monkeypatch, run, photos, words, message):
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert re.search(message, fails(capsys, *(word.format(run=run, photos=photos) for word in words)), re.DOTALL)
    assert not list(tmp_path.iterdir())  # nothing is left behind, no empty run folder either


def test_damaged_files_are_named(capsys, tmp_path, run, photos):
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes((run / "best.safetensors").read_bytes()[:5000])
    assert f"{cut}: is truncated" in fails(capsys, "eval", cut)
    copy = tmp_path / "photos"
    for kind in ("sky", "sea"):
        for i in range(3):
            draw(copy / "train" / kind / f"{i}.png", kind, i)
    (copy / "train" / "sky" / "1.png").write_bytes(b"\x89PNG broken")
    assert "1.png" in fails(capsys, "train", copy, "--output", tmp_path / "run")
    assert main(["data", "check", str(copy)]) == 2 and "1.png" in capsys.readouterr().out


WAYS_IN = [
    ["eval", "{}"],
    ["predict", "{}", "a.png"],
    ["train", "--output", "{}"],
    ["train", "--output", "{}/x"],
    ["train", "--resume", "{}"],
    ["train", "--resume", "{}/x"],
    ["train", "--data-dir", "{}", "--data", "cifar10"],
    ["reproduce", "1", "--runs", "{}", "--dry-run"],
    ["reproduce", "1", "--results", "{}"],
    ["reproduce", "--results", "{}"],
    ["report", "--results", "{}"],
    ["data", "check", "{}"],
]


@pytest.mark.parametrize("words", WAYS_IN, ids=" ".join)
def test_a_name_that_is_too_long_is_one_line(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    assert re.search(r"x{300}.*File name too long", fails(capsys, *(word.format("x" * 300) for word in words)))


@pytest.fixture
def closed(tmp_path):
    """A folder that this process may not enter; root loses its right to enter every folder for the time."""
    folder = tmp_path / "closed"
    (folder / "x").mkdir(parents=True)
    folder.chmod(0)
    header, sets, libc = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)(), ctypes.CDLL(None)
    rights = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    can = hasattr(libc, "capget") and libc.capget(header, sets) == 0
    given = sets[0]  # the effective set; what is permitted stays, and can be taken up again
    try:
        if can:
            sets[0] = given & ~rights
            libc.capset(header, sets)
        with contextlib.suppress(PermissionError):
            list(folder.iterdir())
            pytest.skip("this user may enter every folder")
        yield folder
    finally:
        if can:
            sets[0] = given
            libc.capset(header, sets)
        folder.chmod(0o700)


@pytest.mark.parametrize("words", WAYS_IN, ids=" ".join)
def test_a_folder_that_may_not_be_read_is_one_line(capsys, closed, words, monkeypatch):
    monkeypatch.chdir(closed.parent)
    words = [word.format(closed) for word in words]
    try:
        code = main([str(word) for word in words])
    except SystemExit as stop:
        code = stop.code
    text = capsys.readouterr().err
    assert code in (1, 2) and len(text.splitlines()) == 1 and str(closed) in text, text


def test_errors_of_the_system_name_the_file_and_what_to_do():
    denied = PermissionError(13, "Permission denied", "a/b")
    assert told(denied) == "a/b: Permission denied; check its permissions and those of the folders above, or name another place"
    assert told(OSError(5, "Input/output error", "a")) == "a: Input/output error; check it, or name another place"
    assert told(OSError(28, "No space", "a")) == "a cannot be written: the disk is full. Make room, then run it again"
    assert told(OSError(9, "Bad file descriptor")) is None and told(ValueError("a")) is None


FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")


@FULL
@pytest.mark.parametrize("words", [["recipes", "--table", "2"], ["recipes", "--show", "cct_2_3x2-mnist"]], ids=" ".join)
def test_output_to_a_full_disk(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "cct", *words], stdout=full, stderr=subprocess.PIPE, text=True)
        told = "cct recipes: the output cannot be written: the disk is full. Make room, then run it again\n"
        assert (done.returncode, done.stderr) == (1, told)
        assert subprocess.run([sys.executable, "-m", "cct", *words], stdout=full, stderr=full).returncode == 1


@FULL
def test_a_run_whose_log_is_on_a_full_disk_goes_on_later(photos, tmp_path):
    folder = tmp_path / "run"
    words = [sys.executable, "-m", "cct", "train", photos, *FAST, "--output", folder]
    with open("/dev/full", "w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, text=True)
    advice = f"go on with: cct train --resume {folder} (the last save is whole)"
    assert done.stderr == f"cct train: cannot write the log: the disk is full. Mend that, then {advice}\n"
    assert done.returncode == 1 and main(["train", "--resume", str(folder)]) == 0


def test_a_run_whose_log_is_closed_goes_on_without_it(photos, tmp_path):
    words = [sys.executable, "-m", "cct", "train", photos, *FAST, "--output", tmp_path / "run"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    err = process.stderr.read()
    assert (process.wait(), err) == (0, "nobody reads the output any more; going on without it\n")
    assert run_folder.load_state(tmp_path / "run")[0]["epoch"] == 2


def test_memory_that_runs_out_before_the_run_is_one_line(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_folder, "create", lambda *args: torch.empty(2**62, dtype=torch.uint8))
    assert main(["train", "--epochs", "1"]) == 1
    message = "cct train: this machine has no memory left. Smaller batches or smaller images need less"
    assert message in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr(run_folder, "create", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["train", *FAST])


def test_yaml_then_flags(tmp_path, photos, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"data: folder\ndata_dir: {photos}\nimg_size: 8\nepochs: 9\nlr: 55e-5\nbatch_size: 8\nthreads: 1\n")
    assert main(["train", "-c", str(file), "--epochs", "1", "--output", str(tmp_path / "run"), *TINY]) == 0
    out = capsys.readouterr().out
    assert "1 epoch of 2 steps, 2 steps in all, effective batch 8, learning rate 0.00055" in out
    assert re.search(r"folder test top-1 \d+\.\d\d % \(epoch 1, best ", out)
    text = (tmp_path / "run" / "config.yaml").read_text()
    assert "lr: 0.00055\n" in text and "epochs: 1\n" in text


def test_default_output_and_refusal(tmp_path, photos, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    today = SimpleNamespace(today=lambda: datetime.date(2026, 11, 30))  # no midnight between the two
    monkeypatch.setattr(run_folder, "datetime", SimpleNamespace(date=today))
    words = ["train", str(photos), *FAST, "--epochs", "1"]
    assert main(words) == main(words) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["folder-cct_2_3x2-2026-11-30-1", "folder-cct_2_3x2-2026-11-30-2"]
    capsys.readouterr()
    assert "not empty; continue it with --resume" in fails(capsys, *words, "--output", f"runs/{names[0]}")


def test_eval(run, photos, capsys):
    row = json.loads((run / "best.json").read_text())["metrics"]
    assert main(["eval", str(run)]) == 0  # the run knows where its data lie
    assert re.fullmatch(r"folder test top-1 \d+\.\d\d %, loss \d\.\d{4} \(6 images\)\n", capsys.readouterr().out)
    assert (
        main(["eval", str(run / "best.safetensors"), "--data-dir", str(photos), "--json", "--no-fused", "--threads", "1"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] == row["test_top1"] and result["top5"] is None
    assert result["loss"] == pytest.approx(row["test_loss"], rel=1e-4)


def test_eval_of_a_file_that_does_not_say_its_model(tmp_path, photos, capsys, run):
    file = tmp_path / "official.pth"
    torch.save(create_model("cct_2_3x2", num_classes=2, img_size=8).state_dict(), file)
    assert "name it with --model" in fails(capsys, "eval", file, "--data", "folder", "--data-dir", photos)
    words = ["eval", str(file), "--model", "cct_2_3x2"]
    assert "name the data with --data" in fails(capsys, *words)
    assert "does not say which model it holds" in fails(capsys, "predict", file, "x.png")
    assert "does not say how to prepare images" in fails(capsys, "predict", file, "x.png", "--model", "cct_2_3x2")
    assert main([*words, "--data", "folder", "--data-dir", str(photos)]) == 0
    assert "folder test top-1" in capsys.readouterr().out


def test_eval_of_released_weights_prepares_images_as_the_official_one(tmp_path, photos, monkeypatch):
    file, asked, real = tmp_path / "official.pth", {}, cct.data.load
    torch.save(create_model("cct_2_3x2", num_classes=2, img_size=8).state_dict(), file)
    monkeypatch.setitem(pretrained.RELEASED, "cct_2_3x2", pretrained.Released("official.pth", "folder"))
    monkeypatch.setitem(pretrained.PIXELS, "folder", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5))
    monkeypatch.setattr(cct.data, "load", lambda *args, **kwargs: asked.update(kwargs) or real(*args, **kwargs))
    assert main(["eval", str(file), "--model", "cct_2_3x2", "--data", "folder", "--data-dir", str(photos)]) == 0
    assert (asked["crop_pct"], asked["interpolation"]) == (0.5, "bicubic")


def test_released_weights_predict_and_explain(tmp_path, photos, monkeypatch, capsys):
    """Images as in the official evaluation; in the published file classes have names."""
    monkeypatch.setitem(pretrained.RELEASED, "cct_2_3x2_32", pretrained.Released("official.pth", "cifar10"))
    model = create_model("cct_2_3x2_32").eval()
    mean, std, crop = pretrained.PIXELS["cifar10"]
    image, words = str(photos / "test" / "sky" / "9.png"), ["--model", "cct_2_3x2_32", "--top", "1"]
    pixels = cct.data.images.load_image(image, {"size": (32, 32), "mean": mean, "std": std, "crop_pct": crop})
    with torch.inference_mode():
        probability, index = model(pixels[None]).softmax(1)[0].max(0)
    for name, expected in ("official.pth", published.CIFAR["cifar10"].classes[index]), ("mine.pth", str(index.item())):
        torch.save(model.state_dict(), tmp_path / name)
        assert main(["predict", str(tmp_path / name), image, *words, "--json"]) == 0
        [top] = json.loads(capsys.readouterr().out)[0]["top"]
        assert top == {"class": expected, "probability": pytest.approx(probability.item(), rel=1e-4)}
    assert main(["explain", str(tmp_path / name), image, *words, "--output", str(tmp_path / "maps")]) == 0
    assert (tmp_path / "maps" / "9-explained.png").stat().st_size > 1000


def test_predict(run, photos, capsys):
    paths = [str(photos / "test" / kind / "9.png") for kind in ("sky", "sea")]
    assert main(["predict", str(run), *paths]) == 0
    table = capsys.readouterr().out
    assert "probability" in table and table.count("sky") >= 2 and table.count(" %") == 4
    assert main(["predict", str(run), *paths, "--json", "--top", "1"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [r["image"] for r in results] == paths and all(len(r["top"]) == 1 for r in results)
    state, config = load_checkpoint(run / "best.safetensors")
    model = create_model(config["model"]["name"], **config["model"]["kwargs"]).eval()
    model.load_state_dict(state)
    spec = config["preprocessing"]
    pixels = torch.from_numpy(np.array(Image.open(paths[0]))).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(spec[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.inference_mode():
        probability, index = model((pixels - mean) / std).softmax(1)[0].max(0)
    assert results[0]["top"][0]["class"] == config["classes"][index]
    assert results[0]["top"][0]["probability"] == pytest.approx(probability.item(), rel=1e-3)


def test_info(capsys):
    assert main(["info", "cct_7_3x1"]) == 0
    out = capsys.readouterr().out
    assert "3,760,139 (3.76 M)" in out and "3,694,603 without the positional embedding" in out
    assert "1.1816 G in full; 0.9467 G" in out and "1.19 G in the paper, 0.947 G" in out
    assert "256 of 256 features" in out and "seqpool" in out
    assert main(["info", "vit_7_4_32", "--num-classes", "100"]) == 0
    assert "3,740,004" in capsys.readouterr().out
    assert main(["info"]) == 0
    out = capsys.readouterr().out
    assert "cct_7_3x1" in out and torch.__version__ in out and "kernels on cpu" in out


def test_data_check(photos, capsys):
    assert main(["data", "check", str(photos)]) == 0
    out = capsys.readouterr().out
    assert "sky" in out and "16" in out and "no problem found" in out


def test_output_into_a_closed_pipe():
    done = subprocess.run(f"{sys.executable} -m cct train --help | head -1", shell=True, capture_output=True, text=True)
    assert "usage: cct train" in done.stdout and "Traceback" not in done.stderr


def test_progress_bar_on_a_terminal(photos, tmp_path):
    """In a pseudo-terminal: a bar with rate and time left, and whole lines above it."""
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    words = [sys.executable, "-m", "cct", "train", photos, *FAST, "--epochs", "3", "--output", tmp_path / "run"]
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen(words, stdout=child, stderr=child, env=environment)
    os.close(child)
    shown = b""
    while True:
        try:
            block = os.read(parent, 65536)
        except OSError:  # the other end is closed
            break
        shown += block
        if not block:
            break
    os.close(parent)
    text = shown.decode()
    assert process.wait() == 0, text
    assert "img/s" in text and "left" in text and "epoch 3/3" in text and "\x1b[" in text
    assert "folder test top-1" in text
