"""Exporting: torch.export and ONNX take the plain path by themselves, whatever `fused` says."""

import warnings

import pytest
import torch

from cct.models import create_model

SMALL = {"num_classes": 3, "num_layers": 2, "num_heads": 2, "mlp_ratio": 1, "embedding_dim": 16}
NAMES = {
    "cct_7_3x1": {"img_size": (8, 12)} | SMALL,
    "cvt_7_4": {"img_size": 8} | SMALL,
    "vit_7_4": {"img_size": 8} | SMALL,
    "text_cct_2": {"vocab_size": 30, "seq_len": 8, "word_embedding_dim": 6},
    "text_transformer_2": {"vocab_size": 30, "seq_len": 8, "word_embedding_dim": 6},
}


def model_and_inputs(name, fused):
    torch.manual_seed(0)
    model = create_model(name, fused=fused, **NAMES[name]).eval()
    if name.startswith("text"):
        return model, lambda batch: (torch.randint(0, 30, (batch, 8)), torch.arange(8).expand(batch, 8) < 5)
    return model, lambda batch: (torch.randn(batch, 3, *model.img_size),)


@pytest.mark.parametrize("fused", [True, False, "strict"])
@pytest.mark.parametrize("name", NAMES)
def test_torch_export(name, fused):
    model, inputs = model_and_inputs(name, fused)
    batch = torch.export.Dim("batch", min=1, max=64)
    first = inputs(3)
    program = torch.export.export(model, first, dynamic_shapes=tuple({0: batch} for _ in first))
    targets = {node.target.namespace for node in program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
    assert targets == {"aten"}
    plain, _ = model_and_inputs(name, False)
    for other in (first, inputs(5)):
        torch.testing.assert_close(program.module()(*other), plain(*other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_onnx_export(name, tmp_path):
    onnx = pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    model, inputs = model_and_inputs(name, True)
    given, path = inputs(2), tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, given, path, dynamo=True, verbose=False)
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded)
    assert {node.domain for node in loaded.graph.node} <= {"", "ai.onnx"}
    try:
        import onnxruntime
    except ImportError:
        return
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {i.name: t.numpy() for i, t in zip(session.get_inputs(), given, strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), model(*given), rtol=1e-4, atol=1e-5)


def test_torchscript_tracing_takes_the_plain_path_too():
    model, inputs = model_and_inputs("cct_7_3x1", True)
    (x,) = inputs(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, x)
    assert "cct_kernels::" not in str(traced.inlined_graph)
    torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)
