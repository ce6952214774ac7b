"""Weights into a model that may have another input size or other classes."""

import math

import torch
import torch.nn.functional as F

from .positional import resize, sine_table

PATCH_BIAS = "tokenizer.conv_layers.0.0.bias"
EMBEDDING = "classifier.positional_emb"
HEAD = ("classifier.fc.weight", "classifier.fc.bias")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be read or does not fit; the message names the cause and the fix."""


def model_kwargs(config):
    """The model arguments that the configuration of a checkpoint records, or {}."""
    model = (config or {}).get("model") or {}
    return model.get("kwargs") or {}


def load_weights(model, state_dict, config=None):
    """Load `state_dict` into `model`; returns one line for each thing that was fitted, an empty list when all fits as it is.

    Fitted: the positional embedding to another grid (bilinear) or sentence length; the head to another number of classes
    (the model's fresh one stays); a missing patch-convolution bias (zeros: files of June 2021 lack it).
    config: of the checkpoint, if it has one: its img_size tells the grid of the stored embedding. Without one an embedding
    of the model's length is taken as it is, any other as a square grid, or else as a grid of the model's aspect ratio.
    Raises CheckpointError when anything else is missing, left over or of another shape; the model is then unchanged.
    """
    weights, own, lines = dict(state_dict), model.state_dict(), []
    if PATCH_BIAS in own and PATCH_BIAS not in weights:
        weights[PATCH_BIAS] = torch.zeros_like(own[PATCH_BIAS])
        lines.append("the bias of the patch convolution is missing, zeros are taken")
    stored, wanted = weights.get(EMBEDDING), own.get(EMBEDDING)
    if stored is not None and wanted is not None and stored.dim() == 3 and stored.shape[::2] == wanted.shape[::2]:
        fit = _fit_rows if model.classifier.leading_row else _fit_grid
        weights[EMBEDDING], line = fit(model, stored, wanted, config)
        lines += line
    lines += _fit_head(weights, own)
    _check_all(weights, own)
    model.load_state_dict(weights)
    return lines


def _fit_grid(model, stored, wanted, config):
    """The embedding of images: rows are the class token, if there is one, then the grid."""
    cls = int(not model.classifier.seq_pool)
    old, new = _stored_grid(model, stored.shape[1] - cls, config), model.grid_size
    if old == new:
        return stored, []
    sizes = f"from {old[0]} x {old[1]} to {new[0]} x {new[1]} tokens"
    if model.classifier.positional_embedding == "sine" and torch.allclose(
        stored.float(), sine_table(*stored.shape[1:]), rtol=0, atol=1e-4
    ):
        return wanted, [f"sine positional embedding recomputed {sizes}"]
    return resize(stored.to(wanted), old, new, cls), [f"positional embedding resized {sizes}"]


def _stored_grid(model, count, config):
    h, w = model.grid_size
    if (size := model_kwargs(config).get("img_size")) is not None:
        grid = model.tokenizer.sizes(tuple(size))[-1][1]
        if math.prod(grid) == count:
            return grid
    if count == h * w:
        return h, w
    if (side := math.isqrt(max(count, 0))) ** 2 == count and side:
        return side, side
    height = math.isqrt(max(count, 0) * h // w)
    if height and count % height == 0 and height * w == count // height * h:
        return height, count // height
    raise CheckpointError(
        f"{EMBEDDING} has {count} grid rows, neither a square nor {h} : {w} as this model's grid; load it with its "
        f"configuration, or build the model with the img_size it was trained at and call set_input_size afterwards"
    )


def _fit_rows(model, stored, wanted, config):
    """The embedding of words: an unused row, the class token if there is one, then positions; files may lack the unused row."""
    have, need = stored.shape[1], wanted.shape[1]
    if have == need:
        return stored, []
    if have == need - 1:
        return F.pad(stored, (0, 0, 1, 0)), []
    if have > need:  # positions keep their meaning, so the first ones are the right ones
        return stored[:, :need], [f"positional embedding cut from {have} to {need} rows"]
    if model.classifier.positional_embedding == "sine":
        return wanted, [f"sine positional embedding recomputed from {have} to {need} rows"]
    raise CheckpointError(f"{EMBEDDING} has {have} rows, the model {need}; build it with a smaller seq_len")


def _fit_head(weights, own):
    heads = weights.get(HEAD[0]), own.get(HEAD[0])
    if any(head is not None and head.dim() != 2 for head in heads):
        return []  # no head at all: _check_all refuses it
    stored, wanted = (None if head is None else len(head) for head in heads)
    if stored == wanted:
        return []
    for name in HEAD:
        weights.pop(name, None)
        if name in own:
            weights[name] = own[name]
    if wanted is None:
        return [f"the head for {stored} classes is dropped, the model has none"]
    had = "no head" if stored is None else f"a head for {stored} classes"
    return [f"the checkpoint has {had}: the head for {wanted} classes is new and untrained"]


def _check_all(weights, own):
    wrong = [
        f"{name} has shape {tuple(weights[name].shape)}, the model {tuple(own[name].shape)}"
        for name in own
        if name in weights and weights[name].shape != own[name].shape
    ]
    problems = [
        ("missing", [name for name in own if name not in weights]),
        ("left over", [name for name in weights if name not in own]),
        ("of another shape", wrong),
    ]
    text = "; ".join(
        f"{len(names)} {kind}: {', '.join(names[:3])}{', ...' * (len(names) > 3)}" for kind, names in problems if names
    )
    if text:
        embedding = " and positional_embedding" if (EMBEDDING in weights) != (EMBEDDING in own) else ""
        raise CheckpointError(
            f"the weights are of another model ({text}); create the model they were trained as: its name{embedding}"
        )
