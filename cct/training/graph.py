"""Training from CUDA graphs: one carries out the augmentation, one makes the gradients, one moves the weights.

Graph or not, a step gives the same bits. What is replayed reads and writes the memory of its capture, so a function that is
captured may depend on nothing but the tensors it is given, hashable settings that choose among graphs, and PyTorch's generator.
"""

import contextlib
import os

import torch

from cct_kernels.graphed import WARMUP, capture, copy_of, on_side_stream

MOST = 4  # graphs of one function, each with activations of its own in memory: the usual batch, and the last of an epoch


def wanted(device):
    """Whether training on this device runs from graphs: on a GPU, unless CCT_CUDA_GRAPH=0."""
    return device.type == "cuda" and os.environ.get("CCT_CUDA_GRAPH") != "0"


class _Graph:
    """The captured form of a function for one kind of arguments."""

    def __init__(self):
        self.calls, self.graph, self.inputs, self.result, self.update = 0, None, (), None, None


class GraphedFunction:
    """function(*settings, *tensors) -> tensors, replayed from a CUDA graph for each kind of settings, shapes and dtypes.

    settings are hashable; None may stand for a tensor. The first WARMUP calls of a kind run the function as it is, as do all
    calls of the kinds after the first MOST. What is returned may be overwritten by the next call.
    """

    def __init__(self, function, device, prepare=lambda: None):
        """prepare: called before a capture."""
        self.function, self.device, self.prepare = function, device, prepare
        self.forget()

    def forget(self):
        """Begin anew: the next calls run the function as it is, and are then captured again."""
        self.kinds, self.current = {}, None

    def __call__(self, *arguments):
        tensors = [a for a in arguments if isinstance(a, torch.Tensor)]
        key = tuple((a.shape, a.dtype) if isinstance(a, torch.Tensor) else a for a in arguments)
        kind = self.current = self.kinds.setdefault(key, _Graph())
        kind.calls += 1
        if kind.graph is None:
            if kind.calls <= WARMUP or sum(other.graph is not None for other in self.kinds.values()) == MOST:
                return on_side_stream(lambda: self.function(*arguments), self.device)
            self.prepare()
            kind.inputs = [t.clone() for t in tensors]
            static = iter(kind.inputs)
            again = [next(static) if isinstance(a, torch.Tensor) else a for a in arguments]
            kind.graph, kind.result = capture(lambda: self.function(*again), self.device)
        for static, given in zip(kind.inputs, tensors, strict=True):
            static.copy_(given)
        kind.graph.replay()
        return kind.result


class GraphedStep:
    """`gradients` and `update`, two functions that are always called in turn, from CUDA graphs.

    gradients(*tensors) clears the gradients, runs forward and backward, and returns tensors; update() moves the weights by
    the gradients. Numbers that change from step to step belong into the tensors, and `torch.manual_seed` is called before a
    step, not in it. The learning rate of each group of the optimizer, a fused one of PyTorch or `Muon`, is read at every update
    and lives on the GPU. The first steps are real ones, which make the state of the optimizer too. After anything that puts
    other tensors in the place of parameters or optimizer state, such as `load_state_dict` of the optimizer, call `forget`.
    """

    def __init__(self, gradients, update, optimizer, device):
        # The gradients shall lie in the memory of the graph.
        self._gradients = GraphedFunction(gradients, device, prepare=lambda: optimizer.zero_grad(set_to_none=True))
        self._update, self.optimizer, self.device = update, optimizer, device
        self._rates = [torch.zeros((), device=device) for _ in optimizer.param_groups]
        self._filled = [None] * len(self._rates)

    def forget(self):
        """Begin anew, as `GraphedFunction.forget`."""
        self._gradients.forget()

    def gradients(self, *tensors):
        """What the function `gradients` returns for these tensors, in memory of its own."""
        return copy_of(self._gradients(*tensors))

    def update(self):
        """The function `update`, on the gradients of the call before."""
        kind = self._gradients.current
        with self._learning_rates():
            if kind.graph is None:
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
