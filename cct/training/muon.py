"""Muon: steps along the nearest orthogonal matrix of the momentum, for the weights that multiply tokens or pixels."""

import itertools

import torch

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of an iteration, chosen by Jordan for its slope at zero
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For a weight W, as a matrix of its first dimension times the rest (m, n), with gradient G:

        M <- 0.95 M + 0.05 G    U = orthogonal(0.95 M + 0.05 G)    W <- (1 - lr wd) W - 0.2 sqrt(max(m, n)) lr U

    So that a step is as large as one of AdamW, whose learning rate and weight decay serve. Weights of one shape are worked on
    together. Nothing is read on the host, so that it may be captured in a CUDA graph.
    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; the factor of U: Liu et al., "Muon
    is Scalable for LLM Training", 2025.
    """

    def __init__(self, params, lr, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """Move the weights that have a gradient."""
        for group in self.param_groups:
            lr, shapes = group["lr"], {}
            if not isinstance(lr, torch.Tensor):  # as in a CUDA graph, for the same roundings
                lr = torch.full((), lr, device=group["params"][0].device)
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                direction = weight.grad.lerp(state["momentum"], MOMENTUM).flatten(1)
                tall = direction.shape[0] > direction.shape[1]
                direction = direction.mT if tall else direction
                shapes.setdefault(direction.shape, []).append((weight, direction, tall))
            for (_, width), some in shapes.items():
                scale = 0.2 * width**0.5 * lr
                for (weight, _, tall), step in zip(some, orthogonal(torch.stack([d for _, d, _ in some])), strict=True):
                    weight.mul_(1 - lr * group["weight_decay"])
                    weight.sub_((step.mT if tall else step).reshape(weight.shape) * scale)


def orthogonal(matrices):
    """(k, m, n), m <= n, each with singular values between 0.6 and 1.3 instead of its own, but where these are below a
    thousandth of the norm: about U V^T of its decomposition U S V^T.

    By five steps of a Newton-Schulz iteration, in float32 on a CPU and in bfloat16 on a GPU.
    """
    a, b, c = COEFFICIENTS
    X = matrices.to(torch.bfloat16 if matrices.is_cuda else torch.float32)
    X = X / torch.linalg.matrix_norm(X, keepdim=True).clamp_(min=1e-7)
    for _ in range(ITERATIONS):
        gram = X @ X.mT
        X = torch.baddbmm(X, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
    return X.to(matrices.dtype)


class Together:
    """Optimizers of different parameters as one."""

    def __init__(self, *optimizers):
        self.optimizers = optimizers

    @property
    def param_groups(self):
        return list(itertools.chain(*(optimizer.param_groups for optimizer in self.optimizers)))

    def zero_grad(self, set_to_none=True):
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self):
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self):
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state):
        for optimizer, part in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(part)
