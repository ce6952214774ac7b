"""The peers of the GPU benchmarks: the published code in eager PyTorch with each attention backend, and torch.compile.

Every builder takes a model of cct.models with fused=False. Ours runs as it is meant to: inference and training steps as CUDA
graphs; "ours eager" launches the same kernels one by one.
"""

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from cct.training.graph import GraphedStep
from cct_kernels import graphed

from .peers import autocast, ours
from .published import Published

BACKENDS = {
    "sdpa flash": SDPBackend.FLASH_ATTENTION,
    "sdpa cudnn": SDPBackend.CUDNN_ATTENTION,
    "sdpa efficient": SDPBackend.EFFICIENT_ATTENTION,
}
COMPILE = {"compile": None, "reduce-overhead": "reduce-overhead"}
AUTOTUNE = {"max-autotune": "max-autotune"}
EAGER = ("published", *BACKENDS)


def attention_backend(name, function):
    """`function`, with one backend of scaled_dot_product_attention allowed."""

    def call(*args):
        with sdpa_kernel(BACKENDS[name]):
            return function(*args)

    return call


def module(name, model):
    """The peer `name` on the parameters of `model`: (what to call, the module that holds the parameters)."""
    if name.startswith("ours"):
        fused = ours(model).to(next(model.parameters()).dtype)
        return fused, fused
    plain = Published(model, sdpa=name != "published")
    if name in BACKENDS:
        return attention_backend(name, plain), plain
    if name in COMPILE | AUTOTUNE:
        return torch.compile(plain, dynamic=False, mode=(COMPILE | AUTOTUNE)[name]), plain
    return plain, plain


def inference(name, model, x):
    """function() -> logits of x, in the dtype that model and x have."""
    function, holder = module(name, model)
    if name == "ours" and x.is_cuda:
        graph = graphed(holder, x)

        def replay():
            graph.inputs[0].copy_(x)
            graph.replay()
            return graph.output

        return replay

    @torch.inference_mode()
    def call():
        return function(x)

    return call


class Training:
    """One optimizer step of a peer under autocast: forward, backward, fused AdamW, at a learning rate that changes nothing."""

    def __init__(self, name, model, x, labels, dtype):
        self.function, holder = module(name, model)
        self.x, self.labels, self.dtype, self.loss = x, labels, dtype, None
        self.optimizer = torch.optim.AdamW(holder.parameters(), lr=1e-9, weight_decay=0.0, fused=True)
        self.graph = None
        if name == "ours" and x.is_cuda:
            self.graph = GraphedStep(self._gradients, self.optimizer.step, self.optimizer, x.device)

    def _gradients(self, x, labels):
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(x.device.type, self.dtype):
            loss = F.cross_entropy(self.function(x).float(), labels, label_smoothing=0.1)
        loss.backward()
        return loss.detach()

    def __call__(self):
        if self.graph is None:
            self.loss = self._gradients(self.x, self.labels)
            self.optimizer.step()
        else:
            self.loss = self.graph.gradients(self.x, self.labels)
            self.graph.update()
        return self.loss
