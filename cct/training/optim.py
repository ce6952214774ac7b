"""Optimizer, weight-decay groups, gradient clipping and the moving average of the weights."""

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .config import ConfigError
from .muon import Muon, Together


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
    """AdamW (betas 0.9, 0.999, eps 1e-8 if not given) or SGD with momentum, Nesterov's for "sgd"; fused where it runs.

    "muon": `Muon` for the weights of the tokenizer and the blocks, AdamW for all others.
    """
    groups = parameter_groups(model, config.weight_decay, config.decay_all)
    if config.opt == "muon":
        return _muon(model, groups, config)
    if config.opt == "adamw":
        return _adamw(groups, config)
    nesterov = config.opt == "sgd" and config.momentum > 0
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov, fused=_fused(groups))


def _muon(model, groups, config):
    matrices = _matrices(model)
    if not matrices:
        raise ConfigError("opt: muon has no trainable weight of a tokenizer or a block to move here; choose adamw")
    rest = [{**group, "params": [p for p in group["params"] if id(p) not in matrices]} for group in groups]
    rest = [group for group in rest if group["params"]]
    muon = Muon(matrices.values(), config.lr, config.weight_decay)
    return Together(muon, _adamw(rest, config)) if rest else Together(muon)


def _adamw(groups, config):
    betas, eps = config.opt_betas or (0.9, 0.999), config.opt_eps or 1e-8
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, eps=eps, fused=_fused(groups))


def _fused(groups):
    return all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for group in groups for p in group["params"])


def _matrices(model):
    """{id: weight} of what multiplies tokens in the blocks and pixels in the tokenizer."""
    parts = (".blocks.", ".tokenizer.")
    wanted = (p for name, p in model.named_parameters() if any(part in f".{name}" for part in parts))
    return {id(p): p for p in wanted if p.requires_grad and p.ndim > 1}


def set_learning_rate(optimizer, lr):
    """The same learning rate for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(model, limit, mode):
    """Clip the gradients of `model` in place.

    norm: g <- g min(1, limit / ||all g||). value: each element into [-limit, limit]. agc: for each row i of each parameter
    (its first dimension; the whole of a one-dimensional one), g_i <- g_i min(1, limit max(||w_i||, 1e-3) / ||g_i||), the
    head left as it is: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization", section 4.1.
    """
    if mode == "norm":
        torch.nn.utils.clip_grad_norm_(model.parameters(), limit)
    elif mode == "value":
        torch.nn.utils.clip_grad_value_(model.parameters(), limit)
    else:
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        for parameter in model.parameters():
            if parameter.grad is not None and id(parameter) not in head:
                allowed = limit * _row_norms(parameter.detach()).clamp_(min=1e-3)
                parameter.grad.mul_((allowed / _row_norms(parameter.grad).clamp_(min=1e-6)).clamp_(max=1.0))


def _row_norms(tensor):
    """L2 norm of each row, with the dimensions kept; of a vector as a whole."""
    dims = tuple(range(1, tensor.ndim)) if tensor.ndim > 1 else None
    return torch.linalg.vector_norm(tensor, dim=dims, keepdim=True)


def make_ema(model, decay, warmup=False):
    """A copy of the model whose weights are e <- d e + (1 - d) w after each `update_parameters`, buffers included.

    d = decay; with warmup min(decay, (1 + t) / (10 + t)) at update t = 1, 2, ...; update 0 copies the weights.
    """

    def average(averaged, current, _):
        t = int(ema.n_averaged)  # on the host; what is passed here is a copy on the device, and to read it is to wait
        d = min(decay, (1 + t) / (10 + t)) if warmup else decay
        get_ema_multi_avg_fn(d)(averaged, current, t)

    ema = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
    return ema
