"""Inference as one CUDA graph: the launches of a whole forward pass cost one launch."""

import functools

import torch

from .checks import shape_text

DEVICE = "cuda"  # the type of device that graphs exist on
WARMUP = 3  # runs before a capture: libraries load, kernels compile and choose their algorithms


def graphed(model, example):
    """A callable that gives `model(*inputs)` for inputs of the shapes of `example`, replayed from one CUDA graph.

    Args:
        model: a module on one GPU, in evaluation mode.
        example: the tensor, or tuple of tensors, that the model is called with; only shapes, dtypes and device matter. A
            graph serves these shapes alone: make one for each batch size.

    The graph runs under the autocast of this call, and without gradients. It reads the parameters where they lie, so changes
    in place (an optimizer, `load_state_dict`) are seen by the next call; parameters that have moved are an error. A model
    that draws random numbers takes fresh ones from PyTorch's generator at each call.

    Returns: `Graphed`.
    Raises: ValueError for a model on the CPU, in training mode or on several devices, and for an example that is not tensors
        on the model's device; RuntimeError for a forward pass that cannot be captured, because it waits for the GPU.
    """
    inputs = (example,) if isinstance(example, torch.Tensor) else example
    _check(model, inputs)
    return Graphed(model, tuple(t.detach().clone() for t in inputs))


class Graphed:
    """What `graphed` makes. A call copies its arguments to `inputs`, replays, and returns a copy of `output`.

    For the least latency fill `inputs` in place, call `replay()` and read `output`: the same tensors each time, and no checks.
    """

    def __init__(self, model, inputs):
        self.model, self.inputs = model, inputs
        device = inputs[0].device
        slots = [(m._parameters, name) for m in model.modules() for name in m._parameters]
        slots += [(m._buffers, name) for m in model.modules() for name in m._buffers]
        self._slots = [(tensors, name, tensors[name].data_ptr()) for tensors, name in slots if tensors[name] is not None]
        # Without autocast's cache: weights it had cast before would be read from there, and changes to them not seen.
        kind, dtype, enabled = DEVICE, torch.get_autocast_dtype(DEVICE), torch.is_autocast_enabled(DEVICE)
        with torch.no_grad(), torch.autocast(kind, dtype, enabled, cache_enabled=False):
            on_side_stream(lambda: [model(*inputs) for _ in range(WARMUP)], device)
            self._graph, self.output = capture(lambda: model(*inputs), device)
        self.replay = self._graph.replay

    def __call__(self, *inputs):
        self._check_call(inputs)
        for static, given in zip(self.inputs, inputs, strict=True):
            static.copy_(given)
        self.replay()
        return copy_of(self.output)

    def _check_call(self, inputs):
        if len(inputs) != len(self.inputs):
            raise ValueError(f"graphed: got {len(inputs)} inputs; expected {len(self.inputs)}, as in the example")
        for i, (static, given) in enumerate(zip(self.inputs, inputs, strict=True)):
            if not isinstance(given, torch.Tensor):
                raise ValueError(f"graphed: input {i} is {type(given).__name__}; expected a tensor")
            if given.shape != static.shape:
                raise ValueError(
                    f"graphed: input {i} has shape {shape_text(given.shape)}; expected {shape_text(static.shape)}, that of the "
                    "example: a graph serves one shape, so make another with graphed(model, example) or call the model itself"
                )
            if given.dtype != static.dtype:
                raise ValueError(f"graphed: input {i} has dtype {given.dtype}; expected {static.dtype}, that of the example")
            if given.device != static.device:
                raise ValueError(f"graphed: input {i} is on {given.device}; expected {static.device}, where the graph runs")
        if self.model.training:
            raise ValueError("graphed: the model is in training mode now; call model.eval(), as the graph was made in it")
        for tensors, name, address in self._slots:
            if tensors[name].data_ptr() != address:
                raise ValueError(
                    f"graphed: {name} of the model has moved to other memory since the graph was made; make it again with "
                    "graphed(model, example). Changes in place are seen without that"
                )


def capture(function, device):
    """(graph, what `function` returned): `graph.replay()` runs the kernels that `function` launched, into the same memory."""
    graph = torch.cuda.CUDAGraph()
    # thread_local: calls of other threads do not spoil the capture, such as those of the one that watches NCCL.
    captured = torch.cuda.graph(graph, stream=side_stream(device), capture_error_mode="thread_local")
    try:
        with torch.cuda.device(device), captured:
            result = function()
    except RuntimeError as error:
        raise RuntimeError(
            f"a CUDA graph could not be captured ({str(error).splitlines()[0]}); such a function must not wait for the GPU, as "
            ".item(), printing a tensor, a branch on its values, or a copy from ordinary CPU memory does"
        ) from error
    return graph, result


@functools.cache
def side_stream(device):
    """The stream of warm-ups and captures: PyTorch captures on no default stream."""
    return torch.cuda.Stream(device)


def on_side_stream(function, device):
    """The result of `function`, run on the stream of captures, after what the current stream has to do and before the rest."""
    if device.type != "cuda":
        return function()
    side, current = side_stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        result = function()
    current.wait_stream(side)
    return result


def copy_of(output):
    """A tensor, or tuple or list of tensors, in memory of its own."""
    return output.clone() if isinstance(output, torch.Tensor) else type(output)(copy_of(part) for part in output)


def _check(model, inputs):
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"graphed: model is {type(model).__name__}; expected a torch.nn.Module")
    devices = {t.device for t in (*model.parameters(), *model.buffers())}
    if len(devices) != 1:
        found = ", ".join(sorted(map(str, devices))) or "no device: it has no parameters"
        raise ValueError(f"graphed: the model is on {found}; expected one GPU")
    (device,) = devices
    if device.type != DEVICE:
        raise ValueError(
            f"graphed: the model is on {device}; expected a CUDA device, as only GPUs have graphs. There call the model itself "
            "under torch.inference_mode(): its launches cost nothing"
        )
    if model.training:
        raise ValueError("graphed: the model is in training mode; expected evaluation mode, call model.eval() first")
    if not isinstance(inputs, (tuple, list)) or not inputs or not all(isinstance(t, torch.Tensor) for t in inputs):
        raise ValueError(f"graphed: example is {type(inputs).__name__}; expected a tensor or a tuple of tensors")
    for i, t in enumerate(inputs):
        if t.device != device:
            raise ValueError(f"graphed: input {i} of the example is on {t.device}; expected {device}, the device of the model")
