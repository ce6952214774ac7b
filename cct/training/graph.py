"""A training step as two CUDA graphs: one for the gradients, one for the update of the weights."""

import contextlib
import os
from dataclasses import dataclass

import torch

from cct_kernels.graphed import WARMUP, capture, copy_of, on_side_stream

MOST = (
    4  # kinds of batches that get graphs, each with activations of its own in memory: the usual one, and the last of an epoch
)


def wanted(device):
    """Whether steps on this device run as graphs: on a GPU, unless CCT_CUDA_GRAPH=0."""
    return device.type == "cuda" and os.environ.get("CCT_CUDA_GRAPH") != "0"


@dataclass
class _Kind:
    """The graphs for batches of one shape."""

    calls: int = 0
    inputs: tuple = ()
    gradients: object = None
    result: object = None
    update: object = None


class GraphedStep:
    """Replays two functions that are always called in turn, from CUDA graphs; the first calls run them as they are.

    gradients(*tensors) clears the gradients, runs forward and backward, and returns tensors; update() moves the weights by
    the gradients. Neither may wait for the GPU or depend on anything but tensors and PyTorch's generator: numbers that change
    from step to step belong into the tensors, and `torch.manual_seed` is called before a step, not in it. The learning rate of
    each group of the optimizer, which must be a fused one of PyTorch, is read at every update and lives on the GPU.

    The first WARMUP steps of each shape of the tensors are real steps, launched one kernel at a time: they compile and
    choose kernels and make the state of the optimizer. Graph or not, a step gives the same bits. After anything that puts
    other tensors in the place of parameters or optimizer state, such as `load_state_dict` of the optimizer, call `forget`.
    """

    def __init__(self, gradients, update, optimizer, device):
        self._gradients, self._update, self.optimizer, self.device = gradients, update, optimizer, device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._filled = [None] * len(self._rates)
        self.forget()

    def forget(self):
        """Begin anew: the next steps are launched one kernel at a time, and then captured again."""
        self._kinds, self._current = {}, None

    def gradients(self, *tensors):
        """What the function `gradients` returns for these tensors, in memory of its own."""
        key = tuple((t.shape, t.dtype) for t in tensors)
        kind = self._current = self._kinds.setdefault(key, _Kind())
        kind.calls += 1
        if kind.gradients is None:
            if kind.calls <= WARMUP or sum(other.gradients is not None for other in self._kinds.values()) == MOST:
                return on_side_stream(lambda: self._gradients(*tensors), self.device)
            self.optimizer.zero_grad(set_to_none=True)  # the gradients shall lie in the memory of the graph
            kind.inputs = tuple(t.clone() for t in tensors)
            kind.gradients, kind.result = capture(lambda: self._gradients(*kind.inputs), self.device)
        for static, given in zip(kind.inputs, tensors, strict=True):
            static.copy_(given)
        kind.gradients.replay()
        return copy_of(kind.result)

    def update(self):
        """The function `update`, on the gradients of the call before."""
        kind = self._current
        with self._learning_rates():
            if kind.gradients is None:
                on_side_stream(self._update, self.device)
                return
            if kind.update is None:
                with self._capturable():
                    kind.update, _ = capture(self._update, self.device)
            kind.update.replay()

    @contextlib.contextmanager
    def _learning_rates(self):
        """The learning rates of the optimizer as tensors; as numbers again afterwards, so that its state dict is as ever."""
        groups = self.optimizer.param_groups
        rates = [group["lr"] for group in groups]
        for i, (group, tensor, rate) in enumerate(zip(groups, self._rates, rates, strict=True)):
            if rate != self._filled[i]:
                self._filled[i] = rate
                tensor.fill_(rate)
            group["lr"] = tensor
        try:
            yield
        finally:
            for group, rate in zip(groups, rates, strict=True):
                group["lr"] = rate

    @contextlib.contextmanager
    def _capturable(self):
        """PyTorch's word for an optimizer that may be captured; fused ones compute the same with it and without."""
        groups = [group for group in self.optimizer.param_groups if "capturable" in group]
        for group in groups:
            group["capturable"] = True
        try:
            yield
        finally:
            for group in groups:
                group["capturable"] = False
