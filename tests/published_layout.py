"""Models laid out as those of the official repository and of vit-pytorch, written from their description: the test subjects of
`cct_kernels.fuse`. `style` chooses where the two differ."""

import itertools

import torch
from torch import nn
from torch.nn import functional as F


class DropPath(nn.Module):
    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        if not self.drop_prob or not self.training:
            return x
        keep = 1 - self.drop_prob
        return x / keep * (torch.rand(len(x), 1, 1, device=x.device) < keep)


class Attention(nn.Module):
    def __init__(self, dim, num_heads, attention_dropout, dropout, style):
        super().__init__()
        setattr(self, "num_heads" if style == "official" else "heads", num_heads)
        self.count = num_heads
        self.qkv, self.attn_drop = nn.Linear(dim, 3 * dim, bias=False), nn.Dropout(attention_dropout)
        self.proj, self.proj_drop = nn.Linear(dim, dim), nn.Dropout(dropout)

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = (t.unflatten(-1, (self.count, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        weights = self.attn_drop((q @ k.mT * (C // self.count) ** -0.5).softmax(-1))
        return self.proj_drop(self.proj((weights @ v).transpose(1, 2).reshape(B, N, C)))


class EncoderLayer(nn.Module):
    def __init__(self, dim, num_heads, hidden, dropout, attention_dropout, drop_path, style):
        super().__init__()
        self.pre_norm, self.self_attn = nn.LayerNorm(dim), Attention(dim, num_heads, attention_dropout, dropout, style)
        self.linear1, self.dropout1, self.norm1 = nn.Linear(dim, hidden), nn.Dropout(dropout), nn.LayerNorm(dim)
        self.linear2, self.dropout2 = nn.Linear(hidden, dim), nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path) if drop_path or style != "official" else nn.Identity()
        self.activation = F.gelu

    def forward(self, src, *args, **kwargs):
        src = self.norm1(src + self.drop_path(self.self_attn(self.pre_norm(src))))
        return src + self.drop_path(self.dropout2(self.linear2(self.dropout1(self.activation(self.linear1(src))))))


class Tokenizer(nn.Module):
    def __init__(self, in_chans, dim, kernel, stride, padding, convs, conv_token):
        super().__init__()
        channels = [in_chans, *[64] * (convs - 1), dim]
        self.conv_layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(a, b, kernel, stride, padding, bias=not conv_token),
                    nn.ReLU() if conv_token else nn.Identity(),
                    nn.MaxPool2d(3, 2, 1) if conv_token else nn.Identity(),
                )
                for a, b in itertools.pairwise(channels)
            )
        )

    def forward(self, x):
        return self.conv_layers(x).flatten(2).transpose(1, 2)


class Classifier(nn.Module):
    def __init__(self, length, dim, layers, heads, ratio, classes, rates, seq_pool, embedding, style):
        super().__init__()
        dropout, attention_dropout, stochastic_depth = rates
        self.seq_pool, self.sequence_length = seq_pool, length
        if seq_pool:
            self.attention_pool = nn.Linear(dim, 1)
        else:
            self.class_emb = nn.Parameter(torch.randn(1, 1, dim))
        self.positional_emb = nn.Parameter(torch.randn(1, length + (not seq_pool), dim)) if embedding else None
        self.dropout = nn.Dropout(dropout)
        depths = torch.linspace(0, stochastic_depth, layers).tolist()
        self.blocks = nn.ModuleList(
            EncoderLayer(dim, heads, int(dim * ratio), dropout, attention_dropout, depth, style) for depth in depths
        )
        self.norm, self.fc = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, x):
        if self.positional_emb is None and x.shape[1] < self.sequence_length:
            raise AttributeError("n_channels")  # the official code stops like this
        if not self.seq_pool:
            x = torch.cat([self.class_emb.expand(len(x), -1, -1), x], 1)
        if self.positional_emb is not None:
            x = x + self.positional_emb
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return self.fc((self.attention_pool(x).softmax(1).mT @ x).squeeze(1) if self.seq_pool else x[:, 0])


class Published(nn.Module):
    """family: cct (kernel, convs), cvt or vit (patch side `kernel`)."""

    def __init__(self, family="cct", *, kernel=3, convs=1, dim=128, layers=2, heads=2, ratio=1, size=16, classes=10,
                 rates=(0.0, 0.1, 0.1), embedding=True, style="official"):  # fmt: skip
        super().__init__()
        conv = family == "cct"
        stride, padding = (max(1, kernel // 2 - 1), max(1, kernel // 2)) if conv else (kernel, 0)
        self.tokenizer = Tokenizer(3, dim, kernel, stride, padding, convs, conv)
        length = self.tokenizer(torch.zeros(1, 3, size, size)).shape[1]
        self.classifier = Classifier(length, dim, layers, heads, ratio, classes, rates, family != "vit", embedding, style)

    def forward(self, x):
        return self.classifier(self.tokenizer(x))
