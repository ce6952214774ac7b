"""The published form of the vision models: the official code's forward pass, operation by operation, in eager PyTorch.

It holds the parameters of a `cct.models` model and writes out what the official modules do with them, so that the benchmark
has the code people run today as a peer. `attention` may be replaced by PyTorch's scaled_dot_product_attention.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Published(nn.Module):
    """Source: the official repository, transformers.py, tokenizer.py and stochastic_depth.py."""

    def __init__(self, model, sdpa=False):
        super().__init__()
        self.model, self.sdpa, self.training = model, sdpa, model.training

    def forward(self, x):
        classifier = self.model.classifier
        x = self._tokens(x)
        if not classifier.seq_pool:
            x = torch.cat((classifier.class_emb.expand(x.shape[0], -1, -1), x), dim=1)
        if classifier.positional_emb is not None:
            x = x + classifier.positional_emb
        x = F.dropout(x, classifier.dropout, self.training)
        for block in classifier.blocks:
            x = self._block(block, x)
        x = classifier.norm(x)
        if classifier.seq_pool:
            x = torch.matmul(F.softmax(classifier.attention_pool(x), dim=1).transpose(-1, -2), x).squeeze(-2)
        else:
            x = x[:, 0]
        return classifier.fc(x)

    def _tokens(self, x):
        tokenizer = self.model.tokenizer
        for conv in tokenizer.convs:
            x = conv(x)
            x = F.relu(x) if tokenizer.relu else x
            x = F.max_pool2d(x, *tokenizer.pool) if tokenizer.pool is not None else x
        return torch.flatten(x, 2, 3).transpose(-2, -1)

    def _block(self, block, x):
        x = x + self._drop_path(self._attention(block, block.pre_norm(x)), block.drop_path)
        x = block.norm1(x)
        h = F.dropout(F.gelu(block.linear1(x)), block.dropout, self.training)
        return x + self._drop_path(F.dropout(block.linear2(h), block.dropout, self.training), block.drop_path)

    def _attention(self, block, x):
        B, N, C = x.shape
        scale, p = (C // block.num_heads) ** -0.5, block.attention_dropout
        qkv = block.self_attn.qkv(x).reshape(B, N, 3, block.num_heads, C // block.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        if self.sdpa:
            x = F.scaled_dot_product_attention(q, k, v, dropout_p=p if self.training else 0.0)
        else:
            x = F.dropout(((q @ k.transpose(-2, -1)) * scale).softmax(dim=-1), p, self.training) @ v
        x = block.self_attn.proj(x.transpose(1, 2).reshape(B, N, C))
        return F.dropout(x, block.dropout, self.training)

    def _drop_path(self, x, p):
        if p == 0.0 or not self.training:
            return x
        keep = 1 - p
        mask = keep + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device)
        return x.div(keep) * mask.floor_()
