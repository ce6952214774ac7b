"""`cct export`."""

import contextlib
import json
import logging
import os
import re
import tempfile
import warnings
from pathlib import Path

from cct.training.config import ConfigError

from .parser import add_command

EPILOG = """
examples:
  cct export runs/cifar10-cct_2_3x2-2026-01-31-1 --to onnx      writes best.onnx into the run folder
  cct export best.safetensors --to openvino --output cct.xml --dynamic-batch
  cct export official.pth --model cct_7_3x1_32 --to torch-export

The file takes normalised images (batch, channels, height, width) in float32 and gives logits. Its metadata "model",
"preprocessing" and "classes" are JSON: how to prepare images, and the names of the outputs (ONNX: metadata_props; OpenVINO:
rt_info under "cct"; torch-export: extra file "cct.json"). It is run on random input before it takes its place; a file whose
output is not that of the model is deleted.
"""

TOLERANCE = 1e-4  # of the largest logit, at least of 1: float32 sums in another order


def add(subparsers):
    """Declare the sub-command."""
    parser = add_command(subparsers, "export", run, "write a model for other programs, and check the file", EPILOG)
    parser.add_argument("checkpoint", metavar="CKPT", help="a .safetensors or .pth file, or a run folder (its best weights)")
    parser.add_argument("--to", choices=tuple(FORMATS), required=True, metavar="|".join(FORMATS), help="what to write")
    parser.add_argument("--output", metavar="FILE", help="the file; beside the checkpoint if not given")
    parser.add_argument("--dynamic-batch", action="store_true", help="any number of images at once, not only one")
    parser.add_argument("--model", metavar="NAME", help="model name, for files that do not say it")


def run(args):
    """Export, check, put into place."""
    import torch

    from cct.training.run_folder import RunError

    from .checkpoint import as_released, is_released, open_checkpoint
    from .output import writing_to

    suffix, packages, write, read = FORMATS[args.to]
    _require(args.to, packages)
    target = _target(args, suffix)
    model, config = open_checkpoint(args.checkpoint, args.model)
    model.fused = False
    if is_released(Path(args.checkpoint), model):
        config = {**as_released(model), **config}
    facts = {"model": model.config, **{key: config[key] for key in ("preprocessing", "classes") if config.get(key)}}
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in facts.items()}
    shape = (model.in_chans, *model.img_size)
    with writing_to(target.parent) as folder, tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as temporary:
        file = Path(temporary) / target.name
        with _quiet(), torch.no_grad():
            write(model, torch.randn(2 if args.dynamic_batch else 1, *shape), file, metadata, args.dynamic_batch)
            batches = (1, 2, 5) if args.dynamic_batch else (1,)
            error, largest = _compare(model, read(file), [torch.randn(batch, *shape) for batch in batches])
        if not error <= TOLERANCE * max(largest, 1.0):
            raise RunError(
                f"the exported file differs from the model by {error:.2g} (largest output {largest:.2g}); deleted it"
            )
        for written in sorted(Path(temporary).iterdir()):
            os.replace(written, target.with_name(written.name))
    batch = "any batch" if args.dynamic_batch else "batches of 1"
    print(f"{target}: {config.get('model', {}).get('name', args.model)}, {batch}, images {'x'.join(map(str, shape))}")
    print(f"checked on random input: max error {error:.1e}, largest output {largest:.2g}")
    if "preprocessing" not in facts:
        print("the checkpoint does not say how to prepare images, so neither does this file")


@contextlib.contextmanager
def _quiet():
    """Without what the exporters say about what they do inside."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _target(args, suffix):
    """Where the file goes; ConfigError for a name with another suffix or of a folder."""
    if args.output is None:
        source = Path(args.checkpoint)
        name = "best" if source.is_dir() else re.sub(r"\.(safetensors|pth|pth\.zip|pt)$", "", source.name)
        return (source if source.is_dir() else source.parent) / (name + suffix)
    target = Path(args.output)
    if target.suffix != suffix or target.is_dir():
        raise ConfigError(f"--output {target}: expected a file name that ends in {suffix}, for --to {args.to}")
    return target


def _require(to, packages):
    import importlib.util

    if missing := [package for package in packages if importlib.util.find_spec(package) is None]:
        raise ConfigError(f"--to {to} needs {' and '.join(missing)}; install: pip install {' '.join(missing)}")


def _compare(model, call, inputs):
    """(largest difference, largest logit of the model) over `inputs`; NaN when an output is not finite or of another shape."""
    error = largest = 0.0
    for x in inputs:
        expected, got = model(x), call(x)
        error = max(error, (got - expected).abs().max().item() if got.shape == expected.shape else float("nan"), key=_nan_last)
        largest = max(largest, expected.abs().max().item())
    return error, largest


def _nan_last(value):
    return (value != value, value)


# The formats: each writes the file and gives a function that runs it.


def _write_onnx(model, example, file, metadata, dynamic):
    import onnx
    import torch

    torch.onnx.export(
        model, (example,), file, dynamo=True, verbose=False, external_data=False, input_names=["images"],
        output_names=["logits"], dynamic_shapes=_dynamic(dynamic),
    )  # fmt: skip
    graph = onnx.load(file)
    onnx.helper.set_model_props(graph, metadata)
    onnx.checker.check_model(graph)
    onnx.save(graph, file)


def _read_onnx(file):
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _write_torch(model, example, file, metadata, dynamic):
    import torch

    program = torch.export.export(model, (example,), dynamic_shapes=_dynamic(dynamic))
    facts = json.dumps({key: json.loads(value) for key, value in metadata.items()}, ensure_ascii=False)
    torch.export.save(program, file, extra_files={"cct.json": facts})


def _read_torch(file):
    import torch

    return torch.export.load(file).module()


def _write_openvino(model, example, file, metadata, dynamic):
    import openvino
    import torch

    program = torch.export.export(model, (example,), dynamic_shapes=_dynamic(dynamic))
    graph = openvino.convert_model(program)
    graph.inputs[0].set_names({"images"})
    graph.outputs[0].set_names({"logits"})
    for key, value in metadata.items():
        graph.set_rt_info(value, ["cct", key])
    openvino.save_model(graph, file, compress_to_fp16=False)


def _read_openvino(file):
    import openvino
    import torch

    # In float32, whatever the processor would rather use.
    compiled = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda x: torch.from_numpy(compiled(x.numpy())[0])


def _dynamic(dynamic):
    import torch

    return ({0: torch.export.Dim("batch", min=1, max=65535)},) if dynamic else None


# {name: (suffix, packages beside torch, write, read)}
FORMATS = {
    "onnx": (".onnx", ("onnx", "onnxscript", "onnxruntime"), _write_onnx, _read_onnx),
    "torch-export": (".pt2", (), _write_torch, _read_torch),
    "openvino": (".xml", ("openvino",), _write_openvino, _read_openvino),
}
