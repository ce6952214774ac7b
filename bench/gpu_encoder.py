"""Calls of the whole encoder, as tensors by name and a function of them, for the benchmarks, the search and the sanitizer."""

import torch

from cct_kernels import testing
from cct_kernels.encoder import Block, encoder

SIZES = {"CCT-7/3x1": (256, 256, 512, 4, 7), "CCT-2/3x2": (64, 128, 128, 2, 2)}  # N, C, F, nh, layers


def call(sizes, batch, device, *, dtype=torch.bfloat16, drop_path=False, **options):
    """({"x": ..., "0_norm_weight": ..., ...}, function(function=encoder, **tensors)). drop_path: with factors, all of them 1.

    options: of the op, such as attn_dropout.
    """
    N, C, F, heads, layers = sizes
    shapes = [(C,), (C,), (3 * C, C), (C, C), (C,), (C,), (C,), (F, C), (F,), (C, F), (C,)]
    named = {f"{i}_{n}": shape for i in range(layers) for n, shape in zip(Block._fields, shapes, strict=True)}
    tensors = testing.make_inputs(testing.Case("encoder", "", "", {"x": (batch, N, C), **named}, {}), dtype, device)
    tensors |= {n: 1 + t / 15 for n, t in tensors.items() if n.endswith(("norm_weight", "norm1_weight"))}
    options |= {"num_heads": heads, "seed": torch.tensor([1, 2], device=device)}
    if drop_path:
        options["drop_path_scales"] = torch.ones(layers, 2, batch, dtype=dtype, device=device)

    def function(x, function=encoder, **parameters):
        blocks = [Block(*(parameters[f"{i}_{n}"] for n in Block._fields)) for i in range(layers)]
        return function(x, blocks, **options)

    return tensors, function
