"""The transformer behind every tokenizer: encoder blocks, pooling, head. Modules hold parameters, the ops compute.

Attribute names and their order make the state-dict keys of the published checkpoints: do not rename or reorder.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from cct_kernels import encoder, seqpool
from cct_kernels.calls import draw_drop_path
from cct_kernels.checks import expect_int, expect_probability

from .positional import KINDS, sine_table
from .special import any_special, expect_plain_allowed, is_special


class SelfAttention(nn.Module):
    """Parameters of the attention: qkv (3C, C) without bias, proj (C, C) with bias."""

    def __init__(self, dim):
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)


PARTS = (nn.LayerNorm, SelfAttention, nn.Linear, nn.LayerNorm, nn.Linear, nn.Linear, nn.Linear)  # of a block, in their order


class EncoderBlock(nn.Module):
    """x <- x + s Attention(LN(x));  y = LN(x);  out = y + s MLP(y): the normalised tensor replaces the residual stream.

    drop_path: probability that a sample skips a branch in training (s = 0), else s = 1 / (1 - drop_path); the two branches
    draw independently.
    """

    def __init__(self, dim, num_heads, hidden, dropout, attention_dropout, drop_path):
        super().__init__()
        self.num_heads, self.dropout, self.attention_dropout, self.drop_path = num_heads, dropout, attention_dropout, drop_path
        self.pre_norm = nn.LayerNorm(dim)
        self.self_attn = SelfAttention(dim)
        self.linear1 = nn.Linear(dim, hidden)
        self.norm1 = nn.LayerNorm(dim)
        self.linear2 = nn.Linear(hidden, dim)

    def forward(self, x, mask=None, backend=None):
        """x (B, N, C); mask (B, N) bool, True for a valid token, or None."""
        if not self.has_special_parts():
            return run_blocks([self], x, mask, backend)
        expect_plain_allowed(backend, "EncoderBlock")
        return self._by_modules(x, mask)

    def has_special_parts(self):
        modules = self._modules
        return any_special((*modules.values(), *modules["self_attn"]._modules.values()), PARTS)

    def tensors(self):
        """The parameters in the order of `cct_kernels.encoder.Block`."""
        modules = self._modules
        attention = modules["self_attn"]._modules
        return (
            *weight_and_bias(modules["pre_norm"]), weight_and_bias(attention["qkv"])[0], *weight_and_bias(attention["proj"]),
            *weight_and_bias(modules["norm1"]), *weight_and_bias(modules["linear1"]), *weight_and_bias(modules["linear2"]),
        )  # fmt: skip

    def attention_map(self, x, mask=None):
        """softmax(q k^T / sqrt(hd)) of this block on its input x: (B, nh, N, N), in plain PyTorch."""
        return self._map_and_values(x, mask)[0]

    def _map_and_values(self, x, mask):
        B, N, C = x.shape
        qkv = self.self_attn.qkv(self.pre_norm(x)).view(B, N, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * (C // self.num_heads) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(~(mask[:, None, :, None] & mask[:, None, None, :]), -torch.finfo(scores.dtype).max)
        return scores.softmax(-1), v

    def _by_modules(self, x, mask):
        """The block by calls of its modules in turn."""
        scales = 1.0, 1.0
        if self.training and self.drop_path:
            scales = draw_drop_path(x, [self.drop_path])[0].unsqueeze(-1).unsqueeze(-1)
        weights, v = self._map_and_values(x, mask)
        heads = F.dropout(weights, self.attention_dropout, self.training).to(v.dtype) @ v
        x = x + scales[0] * self._drop(self.self_attn.proj(heads.transpose(1, 2).flatten(2)))
        y = self.norm1(x)
        return y + scales[1] * self._drop(self.linear2(self._drop(F.gelu(self.linear1(y)))))

    def _drop(self, x):
        return F.dropout(x, self.dropout, self.training)


def run_blocks(blocks, x, mask=None, backend=None):
    """x (B, N, C) through `EncoderBlock`s of one model, which share everything but their weights and their drop_path."""
    first, rates = blocks[0], [block.drop_path for block in blocks]
    attn_dropout, dropout = (first.attention_dropout, first.dropout) if first.training else (0.0, 0.0)
    return encoder(
        x, [block.tensors() for block in blocks], num_heads=first.num_heads, mask=mask, attn_dropout=attn_dropout,
        dropout=dropout, drop_path_scales=draw_drop_path(x, rates) if first.training and any(rates) else None, backend=backend,
    )  # fmt: skip


class TransformerClassifier(nn.Module):
    """[class token,] + positional embedding, L blocks, final LayerNorm, SeqPool or class token, linear head.

    sequence_length: tokens n from the tokenizer. seq_pool: pool with SeqPool; False puts a class token in front.
    leading_row: the embedding has an unused first row (text models), so that released checkpoints load.
    `forward` folds the final LayerNorm into the pooling; whoever normalises the tokens first pools with `normalised=True`.
    """

    def __init__(
        self, *, sequence_length, embedding_dim, num_layers, num_heads, mlp_ratio, num_classes, dropout, attention_dropout,
        stochastic_depth, positional_embedding, seq_pool, leading_row=False,
    ):  # fmt: skip
        super().__init__()
        _check(embedding_dim, num_layers, num_heads, mlp_ratio, num_classes, positional_embedding)
        rates = {"dropout": dropout, "attention_dropout": attention_dropout, "stochastic_depth": stochastic_depth}
        for name, value in rates.items():
            expect_probability("model", name, value)
        self.embedding_dim, self.num_classes, self.seq_pool, self.dropout = embedding_dim, num_classes, seq_pool, dropout
        self.positional_embedding, self.leading_row = positional_embedding, leading_row
        self.grad_checkpointing = False
        self.class_emb = None if seq_pool else nn.Parameter(torch.zeros(1, 1, embedding_dim))
        self.positional_emb = self._positional(sequence_length + (not seq_pool))
        self.other_lengths = {}  # tokens -> (rows, rows of the table): what makes the embedding of another grid
        if seq_pool:
            self.attention_pool = nn.Linear(embedding_dim, 1)
        # On the CPU in float32, whatever the default device: the published rates are these rounded values.
        drop_paths = torch.linspace(0, stochastic_depth, num_layers, device="cpu", dtype=torch.float32).tolist()
        hidden = int(embedding_dim * mlp_ratio)
        self.blocks = nn.ModuleList(
            EncoderBlock(embedding_dim, num_heads, hidden, dropout, attention_dropout, drop_path) for drop_path in drop_paths
        )
        self.norm = nn.LayerNorm(embedding_dim)
        self.fc = self._head(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _init_linear(module)

    def _positional(self, length):
        lead = int(self.leading_row)
        if self.positional_embedding == "none":
            return None
        if self.positional_embedding == "sine":
            return nn.Parameter(F.pad(sine_table(length, self.embedding_dim), (0, 0, lead, 0)), requires_grad=False)
        table = nn.Parameter(torch.empty(1, length + lead, self.embedding_dim))
        return nn.init.trunc_normal_(table, std=0.2)

    def _head(self, num_classes):
        return nn.Linear(self.embedding_dim, num_classes) if num_classes else nn.Identity()

    def reset_head(self, num_classes):
        expect_int("model", "num_classes", num_classes, 0)
        self.num_classes, self.fc = num_classes, self._head(num_classes).to(self.norm.weight)
        if num_classes:
            _init_linear(self.fc)

    def embed(self, x, mask=None):
        """Tokens (B, n, C) and their mask -> input of the first block (B, N, C) and its mask (B, N)."""
        if self.class_emb is not None:
            x = torch.cat([self.class_emb.to(x.dtype).expand(x.shape[0], -1, -1), x], 1)
            mask = mask if mask is None else F.pad(mask, (1, 0), value=True)
        if self.positional_emb is not None:
            x = x + self._rows(x.shape[1]).to(x.dtype)
        return F.dropout(x, self.dropout, self.training), mask

    def _rows(self, length):
        """The positional embedding of that many tokens, (1, length, C)."""
        if length in self.other_lengths:
            with torch.autocast(self.positional_emb.device.type, enabled=False):
                return self._matrix(length) @ self.positional_emb
        lead = int(self.leading_row)
        return self.positional_emb[:, lead : lead + length]

    def _matrix(self, length):
        """other_lengths[length] in the dtype and on the device of the embedding, copied once: no copy in a CUDA graph."""
        table, matrix = self.positional_emb, self.other_lengths[length]
        if matrix.dtype != table.dtype or matrix.device != table.device:
            self.other_lengths[length] = matrix = matrix.to(table)
        return matrix

    def encode(self, x, mask=None, backend=None):
        """Tokens (B, n, C) -> output of the last block (B, N, C), before the final LayerNorm."""
        x, mask = self.embed(x, mask)
        checkpointed = self.grad_checkpointing and torch.is_grad_enabled()
        if checkpointed or any(is_special_block(block) or block.training != self.training for block in self.blocks):
            for block in self.blocks:
                x = checkpoint(block, x, mask, backend, use_reentrant=False) if checkpointed else block(x, mask, backend)
            return x
        return run_blocks(self.blocks, x, mask, backend)

    def pool(self, x, backend=None, *, normalised):
        """(B, N, C) -> (B, C); the final LayerNorm is applied on the way unless x is `normalised` already."""
        if not self.seq_pool:
            return x[:, 0] if normalised else self.norm(x[:, 0])
        special = is_special(self.attention_pool, nn.Linear)
        if not normalised and (special or is_special(self.norm, nn.LayerNorm)):
            x, normalised = self.norm(x), True
        if special:
            expect_plain_allowed(backend, "attention_pool")
            return (self.attention_pool(x).softmax(1).transpose(1, 2) @ x)[:, 0]
        norm = {} if normalised else {"norm_weight": self.norm.weight, "norm_bias": self.norm.bias, "eps": self.norm.eps}
        return seqpool(x, self.attention_pool.weight, self.attention_pool.bias, **norm, backend=backend)

    def forward(self, x, mask=None, backend=None):
        return self.fc(self.pool(self.encode(x, mask, backend), backend, normalised=False))


def weight_and_bias(module):
    """module.weight, module.bias; where they are plain parameters without the search of nn.Module, a microsecond for each."""
    own = module._parameters
    return (own["weight"], own["bias"]) if "weight" in own and "bias" in own else (module.weight, module.bias)


def is_special_block(block):
    """Whether a block must be called for itself: it, or a module that it is made of, is special."""
    return is_special(block, EncoderBlock) or block.has_special_parts()


def _init_linear(module):
    nn.init.trunc_normal_(module.weight, std=0.02)
    if module.bias is not None:
        nn.init.zeros_(module.bias)


def _check(embedding_dim, num_layers, num_heads, mlp_ratio, num_classes, positional_embedding):
    for name, value, least in (
        ("embedding_dim", embedding_dim, 1), ("num_layers", num_layers, 1), ("num_heads", num_heads, 1),
        ("num_classes", num_classes, 0),
    ):  # fmt: skip
        expect_int("model", name, value, least)
    if embedding_dim % num_heads:
        raise ValueError(f"model: num_heads is {num_heads}; expected a divisor of embedding_dim={embedding_dim}")
    if not isinstance(mlp_ratio, (int, float)) or not 1 <= embedding_dim * mlp_ratio < 2**31:
        raise ValueError(f"model: mlp_ratio is {mlp_ratio!r}; expected a number that gives 1 to 2^31 hidden channels")
    if positional_embedding not in KINDS:
        raise ValueError(f"model: positional_embedding is {positional_embedding!r}; expected one of {', '.join(KINDS)}")
