"""One optimizer step: the gradient of a batch that is worked on in pieces, clipping, update, moving average."""

import contextlib
import functools
import hashlib

import torch

from cct.data import batches

from . import graph
from .evaluate import autocast
from .optim import clip_gradients, make_ema, make_optimizer, set_learning_rate


class Step:
    """Model, optimizer and moving average of a run. `gradients`, then `update`.

    A batch of n images is cut into workers x accumulate_steps pieces, see `batches.places`; a worker takes accumulate_steps
    neighbouring ones, one after the other. The gradient is that of the mean loss over all n images, however they are cut.
    Dropout and stochastic depth are a function of (seed, epoch, step, piece), so two workers do what one process does with
    twice the accumulate_steps, up to the order of a sum.

    One process on a GPU that takes its batches whole replays them from CUDA graphs.
    """

    def __init__(self, model, objective, config, device, workers):
        self.model, self.objective, self.config, self.device, self.workers = model, objective, config, device, workers
        self.optimizer = make_optimizer(model, config)
        self.ema = make_ema(model, config.model_ema_decay, config.model_ema_warmup) if config.model_ema else None
        self.pieces = workers.count * config.accumulate_steps
        self.own = range(workers.rank * config.accumulate_steps, (workers.rank + 1) * config.accumulate_steps)
        self._parts = functools.cache(self._cut)
        self.parallel = workers.parallel(model, device)
        self.graph = None
        self.carry = graph.GraphedFunction(batches.carry_out, device) if graph.wanted(device) else None
        if graph.wanted(device) and self.pieces == 1:
            self.graph = graph.GraphedStep(self._gradients, self._move, self.optimizer, device)

    def gradients(self, images, targets, n, epoch, step):
        """Leave the gradients of a batch in the parameters; returns its means, float64 (len(objective.names),).

        images, targets: our pieces of the batch, in its order, at least one image; n: images in the whole of it.
        """
        epoch_tensor = torch.full((), float(epoch), device=self.device)
        if self.pieces == 1:
            torch.manual_seed(_seed(self.config.seed, epoch, step, 0))
            gradients = self._gradients if self.graph is None else self.graph.gradients
            return gradients(images, targets, epoch_tensor)
        self.optimizer.zero_grad(set_to_none=True)
        means = torch.zeros(len(self.objective.names), dtype=torch.float64, device=self.device)
        for number, (part, share) in zip(self.own, self._parts(n), strict=True):
            torch.manual_seed(_seed(self.config.seed, epoch, step, number))
            with self._averaging(last=number == self.own[-1]):
                # The workers' gradients are averaged, not summed.
                values = self._backward(images[part], targets[part], epoch_tensor, share * self.workers.count)
            means += share * values
        return self.workers.sum_(means)

    def _gradients(self, images, targets, epoch):
        """`gradients` of a batch in one piece, as a function of tensors alone."""
        self.optimizer.zero_grad(set_to_none=True)
        return self._backward(images, targets, epoch, 1.0)

    def _cut(self, n):
        """For each of our pieces of a batch of n: its places among our images, and its share of the batch."""
        ours, parts = batches.places(n, self.own, self.pieces), []
        for number in self.own:
            places = batches.places(n, range(number, number + 1), self.pieces)
            # Without images any one, with weight 0: all workers must take part.
            part = torch.searchsorted(ours, places) if len(places) else torch.zeros(1, dtype=torch.int64)
            parts.append((part.to(self.device), len(places) / n))
        return parts

    def _backward(self, images, targets, epoch, weight):
        """Add the gradient of weight x loss to the parameters; returns the values of the objective."""
        with autocast(self.device, self.config.amp):
            values = self.objective(self.parallel, images, targets, epoch)
        (values[0] * weight).backward()
        return torch.stack([value.detach().double() for value in values])

    def update(self, lr):
        """Clip the gradients, move the weights at this learning rate, average them."""
        set_learning_rate(self.optimizer, lr)
        (self.graph.update if self.graph is not None else self._move)()
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    def _move(self):
        if self.config.clip_grad is not None:
            clip_gradients(self.model, self.config.clip_grad, self.config.clip_mode)
        self.optimizer.step()

    def state_dict(self):
        """Everything that later steps depend on."""
        parts = {"model": self.model, "optimizer": self.optimizer, "ema": self.ema}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state):
        """Become what `state_dict` described."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.forget_graphs()

    def forget_graphs(self):
        """Capture anew: parameters or the size of the images have changed."""
        for graphed in (self.graph, self.carry):
            if graphed is not None:
                graphed.forget()

    def _averaging(self, last):
        """Gradients travel between the workers with the last piece only."""
        return contextlib.nullcontext() if last or self.workers.count == 1 else self.parallel.no_sync()


def _seed(*position):
    """A 64-bit seed from some integers."""
    return int.from_bytes(hashlib.blake2b(repr(position).encode(), digest_size=8).digest(), "little")
