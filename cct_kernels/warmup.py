"""Pays the first-call costs of a model before they matter."""

import contextlib
import time

import torch

from .checks import expect_int


def warmup(model, batch_sizes, *, train=False, example=None):
    """Runs `model` once for each batch size, so that later calls of these sizes find everything ready.

    The first call of a kind loads the native library, packs weights, compiles Triton kernels (some seconds each) and lets
    cuBLAS and cuDNN choose. Which kernels that are depends on batch size, dtype and autocast: call this under the autocast of
    the calls to come. The runs are real and the model's forward hooks see them; parameters, buffers, gradients, training
    flags and the state of the random number generators stay as they are.

    Args:
        model: one of cct.models, or any module when `example` is given.
        batch_sizes: an int or several, each at least 1.
        train: also the forward pass in training mode and the backward pass.
        example: a tensor, or tuple of tensors, whose first dimension is the batch, for models that do not know their input.

    Returns: the seconds it took.
    Raises: ValueError for a batch size below 1, or a model that does not say its input size.
    """
    sizes = [batch_sizes] if isinstance(batch_sizes, int) else list(batch_sizes)
    for size in sizes:
        expect_int("warmup", "batch_sizes", size, 1)
    device = next(iter(model.parameters())).device
    inputs = _example(model, device) if example is None else example
    inputs = (inputs,) if isinstance(inputs, torch.Tensor) else tuple(inputs)
    began = time.perf_counter()
    with _unchanged(model, device):
        for size in sizes:
            batch = [t[:1].expand(size, *t.shape[1:]).contiguous() for t in inputs]
            model.eval()
            with torch.no_grad():
                model(*batch)
            if train:
                model.train()
                _backward(model, batch)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return time.perf_counter() - began


def _backward(model, batch):
    wanted = [p for p in model.parameters() if p.requires_grad]
    with torch.enable_grad():
        out = model(*batch)
    if wanted and out.requires_grad:
        torch.autograd.grad(out.float().sum(), wanted, allow_unused=True)  # unlike backward(), touches no .grad


def _example(model, device):
    """One input of a model of cct.models: an image, or a sentence of words 0."""
    config = getattr(model, "default_cfg", None)
    if not isinstance(config, dict) or "input_size" not in config:
        raise ValueError(
            f"warmup: {type(model).__name__} does not say its input size (default_cfg['input_size']); give one as example=, "
            "such as torch.zeros(1, 3, 32, 32)"
        )
    size = config["input_size"]
    dtype = torch.int64 if len(size) == 1 else next(p.dtype for p in model.parameters() if p.is_floating_point())
    return torch.zeros(1, *size, dtype=dtype, device=device)


@contextlib.contextmanager
def _unchanged(model, device):
    """Puts back what runs of a model may change: training flags, buffers, generators of random numbers."""
    flags = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in flags:
            module.training = training
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
