"""The GPU benchmarks without a GPU: the script runs, rows come out with checked results, the summary says what was reached."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # bench/ is not installed

from bench import gpu_peers, gpu_profile, gpu_rows, gpu_summary, gpu_timing, record, roof, table


@pytest.fixture
def quick(tmp_path, monkeypatch):
    monkeypatch.setattr(roof, "measure", lambda *_: roof.Roof(1e12, "none", 1e11))
    monkeypatch.setenv("CCT_MACHINE", "here")
    record.machine.cache_clear()
    yield tmp_path
    record.machine.cache_clear()


def run(folder, *stages):
    code = gpu_rows.main([*stages, "--device", "cpu", "--tiny", "--out", str(folder)])
    return code, [json.loads(line) for line in (folder / "here.jsonl").read_text().splitlines()]


def test_rows_on_the_cpu(quick):
    code, rows = run(quick, "ops", "inference", "latency", "training")
    assert code == 0
    ops = {(row["what"].split()[0], row["direction"]) for row in rows if row["kind"] == "op"}
    names = ("conv_tokenizer", "encoder", "layernorm_attention", "layernorm_mlp", "seqpool")
    assert ops == {(op, direction) for op in names for direction in ("forward", "forward+backward")}
    for kind, batch in (("inference", 4), ("latency", 1), ("training", 4)):
        (row,) = (row for row in rows if row["kind"] == kind)
        assert row["batch"] == batch and list(row["peers"]) == ["ours", "ours eager", "published"] and not row["missing"]
    assert [row["batch"] for row in rows if row["kind"] == "augmentation"] == [32]


def test_needs_no_package_beside_pytorch_and_pytest():
    """The machine with the GPU may have nothing else: the benchmarks and the tests that bench/gpu.sh runs there import."""
    blocked = "rich numpy yaml safetensors PIL sklearn scipy threadpoolctl onnx onnxruntime openvino matplotlib hypothesis"
    modules = "bench.gpu_rows bench.gpu_profile bench.gpu_summary bench.gpu_small test_gpu test_graphed test_warmup"
    modules += " test_training_graph test_seqpool test_device_guard"
    root = Path(__file__).resolve().parents[1]
    code = f"import importlib, sys; sys.path[:0] = {[str(root), str(root / 'tests')]!r}\n"
    code += f"sys.modules |= dict.fromkeys({(blocked + ' pytest_benchmark').split()!r})\n"
    code += f"for name in {modules.split()!r}: importlib.import_module(name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_wrong_result_is_not_timed(quick, monkeypatch):
    right = gpu_peers.module

    def module(name, model):
        function, holder = right(name, model)
        return (lambda x: function(x) + 1, holder) if name == "ours" else (function, holder)

    monkeypatch.setattr(gpu_peers, "module", module)
    assert gpu_rows.main(["latency", "--device", "cpu", "--tiny", "--out", str(quick)]) == 1
    assert not list(quick.glob("*.jsonl"))


def test_without_a_gpu_the_message_says_so(quick, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit):
        gpu_rows.main(["ops"])
    assert "no CUDA GPU" in capsys.readouterr().err


def make_row(kind, stage, ours, more=None, **peers):
    times = {
        name: {"median": m, "p20": m, "p80": m, "rounds": 1} for name, m in {"ours": ours, **(more or {}), **peers}.items()
    }
    key = {"kind": kind, "what": "CCT-7/3x1", "device": "cuda", "dtype": "bfloat16", "batch": 1024, "stage": stage}
    return record.make(key, times, {}, unit="bytes" if kind == "memory" else "s")


def test_summary_beside_the_targets(quick, monkeypatch, capsys):
    record.append(make_row("inference", "inference", 0.01, {"sdpa flash": 0.035, "sdpa cudnn": 0.031}, published=0.09), quick)
    record.append(make_row("inference", "autotune", 0.01, {"max-autotune": 0.012}), quick)
    record.append(make_row("memory", "training", 1e9, compile=1.5e9), quick)
    monkeypatch.setattr(sys, "argv", ["gpu_summary", "--results", str(quick)])
    gpu_summary.main()
    lines = capsys.readouterr().out.splitlines()
    (published,) = (line for line in lines if "inference against published" in line)
    assert published.endswith("| 9.00x | 5x | 8x | aim |") and "102400 img/s" in published
    (sdpa,) = (line for line in lines if line.startswith("| inference against sdpa"))
    assert "| sdpa cudnn 33032 img/s | 3.10x |" in sdpa and sdpa.endswith("| at least |")
    assert any("against max-autotune" in line and line.endswith("| BELOW |") for line in lines)
    assert any(line.startswith("| memory against compile") and "| 1.50x |" in line for line in lines)
    assert any(line.startswith("| latency against published") and "not measured" in line for line in lines)
    assert len(table.load(quick)["here"]) == 3  # a stage is part of what makes a row


def test_profile(capsys):
    gpu_profile.main(["--device", "cpu", "--tiny"])
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if "the roofline allows" in line]
    assert len(heads) == 2 and heads[0].startswith("inference CCT-2/3x2 batch 4: ") and heads[1].startswith("training ")
    spent = [float(line.split()[0]) for line in lines if line.startswith("  ")]
    assert any("layernorm_mlp_backward" in line for line in lines) and all(value >= 0 for value in spent)
    first = spent[: lines.index(heads[1]) - 1]
    assert sum(first) == pytest.approx(1e3 * float(heads[0].split(": ")[1].split()[0]), rel=0.01)


def test_times_are_interleaved():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = gpu_timing.latency(calls, rounds=1, min_time=0.0, device="cpu")
    assert order[: 2 * gpu_timing.WARM] == list("aaabbb") and order[6:10] == list("abba") and times["a"].rounds == 10


def test_the_script(tmp_path):
    """Its own logic: the stages asked for, the log, the report and the exit code."""
    environment = os.environ | {"OUT": str(tmp_path), "PYTHON": sys.executable}

    def script(*arguments, **more):
        command = ["bash", str(record.ROOT / "bench" / "gpu.sh"), *arguments]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, timeout=900)

    done = script("--self-test", "self_test", SELF_TEST="400")  # a busy machine imports PyTorch for long
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self_test: ok" in done.stdout and "cases" in (tmp_path / "gpu.log").read_text()
    failed = script("latency", PYTHON="false")
    assert failed.returncode == 1 and "latency: FAILED (exit 1)" in failed.stdout
    assert "latency: left out, no time" in script("latency", TOTAL="2", PYTHON="true").stdout
    (tmp_path / "sleep").write_text('#!/bin/sh\ncase "$*" in *gpu_rows*) sleep 60;; esac\n')
    (tmp_path / "sleep").chmod(0o755)
    assert "latency: out of time" in script("latency", LATENCY="3", PYTHON=str(tmp_path / "sleep")).stdout
    unknown = script("lattency")
    assert unknown.returncode == 2 and "unknown stage lattency; there are: build:" in unknown.stderr
