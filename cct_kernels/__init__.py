"""Fused kernels for Compact Transformers, with plain PyTorch as their specification.

    from cct_kernels import seqpool
    pooled = seqpool(x, weight, bias)                       # the fastest backend that runs here
    pooled = seqpool(x, weight, bias, backend="reference")  # plain PyTorch

`python -m cct_kernels` prints which backend runs each op on this machine and why the others do not.
"""

from .compact_transformer import compact_transformer
from .constant_weights import constant_weights
from .conv_tokenizer import conv_tokenizer
from .dispatch import BackendError
from .encoder import encoder
from .fuse import fuse, unfuse
from .graphed import graphed
from .layernorm_attention import layernorm_attention
from .layernorm_mlp import layernorm_mlp
from .seqpool import seqpool
from .warmup import warmup

__all__ = [
    "BackendError",
    "compact_transformer",
    "constant_weights",
    "conv_tokenizer",
    "encoder",
    "fuse",
    "graphed",
    "layernorm_attention",
    "layernorm_mlp",
    "seqpool",
    "unfuse",
    "warmup",
]
