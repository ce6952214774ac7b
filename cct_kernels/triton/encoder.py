"""All blocks of the encoder in Triton: LN and qkv of the first, then two kernels a layer, attention core and row segment.

Between a layer's kernels only the stream (x and mid), qkv, o and the row statistics exist; training keeps them. Backward runs
the same chain from the end, two kernels a layer beside the products that make the weight gradients. These sum the gradients of
the biases; those of a LayerNorm are summed where its rows are in registers anyway, which reads nothing twice. Where
the row segment has no configuration (float32, wide rows, few rows, dropout in backward) layernorm_attention and layernorm_mlp
take turns and give the same tensors.
"""

from typing import NamedTuple

import torch

from ..encoder import Block
from . import launch, layernorm_attention, layernorm_mlp, row_segment
from .attention import attention_backward, attention_forward
from .linear import Branch, Norm, dense, layernorm_backward, linear, weight_gradient

_ARGUMENTS = (
    "Tensor x, Tensor[] parameters, int num_heads, Tensor? mask, float attn_dropout, float dropout, "
    "Tensor? drop_path_scales, Tensor? seed, float eps, ScalarType compute"
)


class Saved(NamedTuple):
    """What backward needs of a layer, besides its input."""

    mean: torch.Tensor  # (B, N), of the first LN
    rstd: torch.Tensor
    qkv: torch.Tensor  # (B * N, 3C)
    o: torch.Tensor  # (B * N, C)
    lse: torch.Tensor  # (B, nh, N)
    mid: torch.Tensor  # (B, N, C)
    mean1: torch.Tensor  # (B, N), of LN1
    rstd1: torch.Tensor


class Randomness(NamedTuple):
    """Dropout probabilities, and for each layer the drop-path scales and seeds of (attention, MLP)."""

    attn_dropout: float
    dropout: float
    scales: list
    seeds: list


def _randomness(L, attn_dropout, dropout, drop_path_scales, seed):
    none = [(None, None)] * L
    scales = none if drop_path_scales is None else [layer.unbind() for layer in drop_path_scales.contiguous()]
    if seed is None:
        return Randomness(attn_dropout, dropout, scales, none)
    steps = torch.stack([torch.zeros(2 * L, dtype=seed.dtype, device=seed.device), torch.arange(2 * L, device=seed.device)], 1)
    return Randomness(attn_dropout, dropout, scales, [pair.unbind() for pair in (seed + steps).view(L, 2, 2)])


def _split(parameters):
    width = len(Block._fields)
    return [Block(*parameters[i : i + width]) for i in range(0, len(parameters), width)]


def _prepared(parameters, compute):
    """The blocks with every tensor dense and the matrices in the dtype of the products: one cast for all that differ."""
    ready, casts = [], []
    for tensor in parameters:
        if tensor.dim() == 2 and tensor.dtype != compute:
            casts.append((tensor.new_empty(tensor.shape, dtype=compute), tensor))
            tensor = casts[-1][0]
        ready.append(tensor.contiguous())
    if casts:
        torch._foreach_copy_(*map(list, zip(*casts, strict=True)))
    return _split(ready)


def _fake_forward(x, parameters, num_heads, *rest):
    (B, N, C), L, (compute, keep) = x.shape, len(parameters) // len(Block._fields), rest[-2:]
    out, saved = x.new_empty(B, N, C), []
    for _ in range(L if keep else 0):
        stats = [x.new_empty(B, N, dtype=torch.float32) for _ in range(4)]
        qkv, o = (x.new_empty(B * N, width, dtype=compute) for width in (3 * C, C))
        lse = x.new_empty(B, num_heads, N, dtype=torch.float32)
        saved += Saved(*stats[:2], qkv, o, lse, torch.empty_like(out), *stats[2:])
    return out, saved + [torch.empty_like(out) for _ in range(L - 1 if keep else 0)]


@launch.operator(f"encoder_forward({_ARGUMENTS}, bool keep) -> (Tensor out, Tensor[] saved)", _fake_forward)
def forward(
    x, parameters, num_heads, mask, attn_dropout, dropout, drop_path_scales, seed, eps, compute, keep
):  # fmt: skip
    """saved: the eight of Saved for each layer, then the streams between the layers."""
    random = _randomness(len(parameters) // len(Block._fields), attn_dropout, dropout, drop_path_scales, seed)
    config = row_segment.config("forward", x, compute, dropout)
    chain = _forward_by_ops if config is None else _forward_by_segments
    out, streams, saved = chain(config, x.contiguous(), parameters, num_heads, dense(mask), random, eps, compute, keep)
    return (out, [t for layer in saved for t in layer] + streams) if keep else (out, [])


def _forward_by_segments(config, x, parameters, num_heads, mask, random, eps, compute, keep):
    (B, N, C), blocks = x.shape, _prepared(parameters, compute)
    mean, rstd = (x.new_empty(B, N, dtype=torch.float32) for _ in range(2))
    first = blocks[0]
    qkv = linear(
        x.view(B * N, C), first.qkv_weight, x.new_empty(B * N, 3 * C, dtype=compute),
        norm_input=Norm(mean, rstd, first.norm_weight, first.norm_bias, eps),
    )  # fmt: skip
    streams, saved = [], []
    for block, following, scales, seeds in zip(blocks, [*blocks[1:], None], random.scales, random.seeds, strict=True):
        o, lse = attention_forward(qkv, B, N, num_heads, mask, random.attn_dropout, seeds[0])
        mid, mean1, rstd1, x, *statistics, qkv_next = row_segment.forward(
            config, o, x, block, following, random.dropout, scales, seeds, eps, keep
        )
        if keep:
            saved.append(Saved(mean, rstd, qkv, o, lse, mid, mean1, rstd1))
            streams.append(x)
        (mean, rstd), qkv = statistics, qkv_next
    return x, streams[:-1], saved


def _forward_by_ops(_, x, parameters, num_heads, mask, random, eps, compute, keep):
    streams, saved = [], []
    for block, scales, seeds in zip(_split(parameters), random.scales, random.seeds, strict=True):
        mid, *attention, _, _ = layernorm_attention.forward(
            x, *block[:5], num_heads, None, mask, random.attn_dropout, random.dropout, scales[0], seeds[0], eps, compute, keep
        )
        x, *mlp, _, _ = layernorm_mlp.forward(mid, *block[5:], random.dropout, scales[1], seeds[1], eps, compute, keep)
        if keep:
            saved.append(Saved(*attention, mid, *mlp))
            streams.append(x)
    return x, streams[:-1], saved


def _fake_backward(dout, x, parameters, *rest):
    return x.new_empty(x.shape), [t.new_empty(t.shape) for t in parameters] if rest[-1] else []


@launch.operator(
    f"encoder_backward(Tensor dout, {_ARGUMENTS}, Tensor[] saved, bool need_weights) -> (Tensor dx, Tensor[] dparameters)",
    _fake_backward,
)
def backward(
    dout, x, parameters, num_heads, mask, attn_dropout, dropout, drop_path_scales, seed, eps, compute, saved, need_weights
):  # fmt: skip
    """dparameters in the order of parameters; empty without need_weights."""
    L = len(parameters) // len(Block._fields)
    streams, width = [x.contiguous(), *saved[len(Saved._fields) * L :]], len(Saved._fields)
    layers = [Saved(*saved[width * i : width * (i + 1)]) for i in range(L)]
    random = _randomness(L, attn_dropout, dropout, drop_path_scales, seed)
    config = row_segment.config("backward", x, compute, dropout)
    chain = _backward_by_ops if config is None else _backward_by_segments
    dx, gradients = chain(
        config, dout.contiguous(), streams, parameters, num_heads, dense(mask), random, eps, compute, layers, need_weights
    )
    return dx, [g.to(t.dtype) for block in gradients for g, t in zip(block, parameters, strict=False)] if need_weights else []


def _backward_by_segments(config, dout, streams, parameters, num_heads, mask, random, eps, compute, layers, need_weights):
    (B, N, C), blocks, dtype = dout.shape, _prepared(parameters, compute), parameters[0].dtype
    gradients = [{} for _ in blocks]

    def weights(layer, name, g, a, **options):
        if need_weights:
            dweight, dbias = weight_gradient(g.view(B * N, -1), a.view(B * N, -1), dtype, compute, tokens=N, **options)
            gradients[layer][f"{name}_weight"] = dweight
            if options.get("bias", True):
                gradients[layer][f"{name}_bias"] = dbias

    def norms(layer, name, of_weight, of_bias):
        gradients[layer] |= {f"{name}_weight": of_weight, f"{name}_bias": of_bias}

    dqkv, dnext, norm, following = None, dout, None, None
    for i in reversed(range(len(blocks))):
        block, s, scales, seeds = blocks[i], layers[i], random.scales[i], random.seeds[i]
        norm1 = Norm(s.mean1, s.rstd1, block.norm1_weight, block.norm1_bias, eps)
        behind = streams[i + 1] if i + 1 < len(streams) else None
        dnext, h, da, dmid, do, dnorm, dnorm1 = row_segment.backward(
            config, dqkv, dnext, behind, norm, following, s.mid, norm1, block, scales
        )
        weights(i, "fc2", dnext, h, branch_in=Branch(scales[1]))
        weights(i, "fc1", da, s.mid, norm=norm1)
        weights(i, "proj", dmid, s.o, branch_in=Branch(scales[0]))
        norms(i, "norm1", *dnorm1)
        if dqkv is not None:
            norms(i + 1, "norm", *dnorm)
        dqkv = attention_backward(do, s.qkv, B, N, num_heads, mask, random.attn_dropout, seeds[0], s.o, s.lse)
        norm, following, dnext = Norm(s.mean, s.rstd, block.norm_weight, block.norm_bias, eps), block, dmid
        weights(i, "qkv", dqkv, streams[i], norm=norm, bias=False)
    dy = linear(dqkv, following.qkv_weight.T, dnext.new_empty(B * N, C, dtype=compute))
    dx, *dnorm = layernorm_backward(dy, streams[0].view(B * N, C), norm, residual=dnext)
    norms(0, "norm", *dnorm)
    return dx.view(B, N, C), [[g.get(name) for name in Block._fields] for g in gradients]


def _backward_by_ops(_, dout, streams, parameters, num_heads, mask, random, eps, compute, layers, need_weights):
    gradients, blocks = [], _split(parameters)
    for block, x, s, scales, seeds in reversed(list(zip(blocks, streams, layers, random.scales, random.seeds, strict=True))):
        dout, *mlp = layernorm_mlp.backward(
            dout, s.mid, *block[5:], random.dropout, scales[1], seeds[1], eps, compute, s.mean1, s.rstd1, None,
            [need_weights] * 2,
        )  # fmt: skip
        dout, dnorm_weight, dnorm_bias, *attention, _ = layernorm_attention.backward(
            dout, x, *block[:5], num_heads, None, mask, random.attn_dropout, random.dropout, scales[0], seeds[0], eps, compute,
            s.mean, s.rstd, s.qkv, s.o, s.lse, None, [need_weights] * 2,
        )  # fmt: skip
        gradients.append(Block(dnorm_weight, dnorm_bias, *attention, *mlp))
    return dout, gradients[::-1]
