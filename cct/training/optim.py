"""Optimizer, weight-decay groups and the moving average of the weights."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


def parameter_groups(model, weight_decay, decay_all=False):
    """Trainable parameters in two groups: one-dimensional ones and those named `.bias` without decay, the rest with it.

    So the learnable positional embedding and the class token decay, as in the official recipes. decay_all: everything decays.
    """
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            plain = decay_all or (parameter.ndim > 1 and not name.endswith(".bias"))
            (decay if plain else no_decay).append(parameter)
    groups = [{"params": decay, "weight_decay": weight_decay}, {"params": no_decay, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(model, config):
    """AdamW (beta 0.9, 0.999, eps 1e-8) or SGD with Nesterov momentum, in PyTorch's fused form where it runs."""
    groups = parameter_groups(model, config.weight_decay, config.decay_all)
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for group in groups for p in group["params"])
    if config.opt == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.momentum > 0, fused=fused)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.999), eps=1e-8, fused=fused)


def set_learning_rate(optimizer, lr):
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def make_ema(model, decay):
    """A copy of the model whose weights are e <- decay e + (1 - decay) w after each `update_parameters`, buffers included."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
