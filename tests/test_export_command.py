"""`cct export`: the file runs elsewhere, says how to prepare images, and is not there when it is wrong."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cct.cli import main
from cct.commands import export
from cct.commands.checkpoint import open_checkpoint


def fails(capsys, *words, code=2):
    try:
        assert main(["export", *map(str, words)]) == code
    except SystemExit as stop:
        assert stop.code == code
    text = capsys.readouterr().err
    assert "Traceback" not in text and 1 <= len(text.splitlines()) <= 2, text
    return text


def facts_of(metadata):
    assert set(metadata) == {"model", "preprocessing", "classes"}
    facts = {key: json.loads(value) for key, value in metadata.items()}
    assert facts["preprocessing"]["mean"] == [0.5] * 3 and facts["classes"] == ["ant", "bee", "cow"]
    assert facts["model"]["name"] == "cct_7_3x1"


def test_torch_export(checkpoint, tmp_path, capsys):
    weights, x = checkpoint(), torch.randn(3, 3, 8, 8)
    model, _ = open_checkpoint(weights)
    assert main(["export", str(weights), "--to", "torch-export"]) == 0
    out = capsys.readouterr().out
    assert "cct_7_3x1.pt2: cct_7_3x1, batches of 1, images 3x8x8" in out and "max error 0.0e+00" in out
    extra = {"cct.json": ""}
    program = torch.export.load(tmp_path / "cct_7_3x1.pt2", extra_files=extra)
    facts_of({key: json.dumps(value) for key, value in json.loads(extra["cct.json"]).items()})
    torch.testing.assert_close(program.module()(x[:1]), model(x[:1]))
    target = tmp_path / "new" / "any.pt2"
    assert main(["export", str(weights), "--to", "torch-export", "--dynamic-batch", "--output", str(target)]) == 0
    torch.testing.assert_close(torch.export.load(target).module()(x), model(x))
    assert [path.name for path in target.parent.iterdir()] == ["any.pt2"]


def test_onnx(checkpoint, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    runtime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    weights, x, file = checkpoint(), torch.randn(3, 3, 8, 8), tmp_path / "any.onnx"
    assert main(["export", str(weights), "--to", "onnx", "--dynamic-batch", "--output", str(file)]) == 0
    facts_of({entry.key: entry.value for entry in onnx.load(file).metadata_props})
    logits = runtime.InferenceSession(file).run(["logits"], {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(logits), open_checkpoint(weights)[0](x), rtol=1e-4, atol=1e-5)


def test_openvino(checkpoint, tmp_path):
    openvino = pytest.importorskip("openvino", reason="openvino is not installed")
    weights, x, file = checkpoint(), torch.randn(3, 3, 8, 8), tmp_path / "any.xml"
    assert main(["export", str(weights), "--to", "openvino", "--dynamic-batch", "--output", str(file)]) == 0
    graph = openvino.Core().read_model(file)
    facts_of({key: value for key, value in graph.get_rt_info(["cct"]).value.items()})
    call = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    torch.testing.assert_close(
        torch.from_numpy(call(x.numpy())["logits"]), open_checkpoint(weights)[0](x), rtol=1e-4, atol=1e-5
    )
    assert sorted(path.name for path in tmp_path.glob("any*")) == ["any.bin", "any.xml"]


@pytest.mark.parametrize("wrong", [lambda y: y + 1e-3 * y.abs().max() + 1e-3, lambda y: y * float("nan"), lambda y: y[:, :2]])
def test_a_file_that_disagrees_is_deleted(wrong, checkpoint, tmp_path, capsys, monkeypatch):
    weights, target = checkpoint(), tmp_path / "m.pt2"
    suffix, packages, _, _ = export.FORMATS["torch-export"]

    def write(model, example, file, *_):
        torch.save(model.state_dict(), file)

    def read(file):
        return lambda x: wrong(open_checkpoint(weights)[0](x).detach())

    monkeypatch.setitem(export.FORMATS, "torch-export", (suffix, packages, write, read))
    target.write_text("an older file")
    message = fails(capsys, weights, "--to", "torch-export", "--output", target, code=1)
    assert "differs from the model by" in message and target.read_text() == "an older file"
    assert {path.name for path in tmp_path.iterdir()} == {"m.pt2", "cct_7_3x1.json", "cct_7_3x1.safetensors"}


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a.b.safetensors", "a.b.onnx"),
        ("x/a.pth.zip", "x/a.onnx"),
        ("a.pth", "a.onnx"),
        (".", "best.onnx"),
        ("model", "model.onnx"),
    ],
)
def test_where_the_file_goes(source, target):
    args = SimpleNamespace(checkpoint=source, output=None, to="onnx")
    assert export._target(args, ".onnx") == Path(target)


def test_mistakes(checkpoint, tmp_path, capsys, monkeypatch):
    weights = checkpoint()
    assert "nowhere: does not exist" in fails(capsys, "nowhere", "--to", "torch-export")
    assert "the following arguments are required: --to" in fails(capsys, weights)
    assert "unknown --to 'onxx'; did you mean 'onnx'?" in fails(capsys, weights, "--to", "onxx")
    assert "expected a file name that ends in .pt2" in fails(capsys, weights, "--to", "torch-export", "--output", "m.onnx")
    inside = weights / "m.pt2"
    assert "--output" in fails(capsys, weights, "--to", "torch-export", "--output", inside)
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        message = "--to openvino needs openvino; install: pip install openvino"
        assert message in fails(capsys, weights, "--to", "openvino")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.export.save", full)
    assert "the disk is full" in fails(capsys, weights, "--to", "torch-export", code=1)
    assert not list(tmp_path.glob("*.pt2")) and not list(tmp_path.glob(".export*"))
