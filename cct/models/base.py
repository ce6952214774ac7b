"""What every Compact Transformer shares: the forward pass, timm's method names, `fused`."""

from typing import ClassVar

import torch
from torch import nn

from . import fused as fusion
from .encoder import TransformerClassifier

ENCODER = (
    "embedding_dim", "num_layers", "num_heads", "mlp_ratio", "num_classes", "dropout", "attention_dropout", "stochastic_depth",
    "positional_embedding",
)  # fmt: skip


class CompactTransformer(nn.Module):
    """`tokenizer`, then `classifier` (encoder.TransformerClassifier). Subclasses give `tokens(x, mask, backend)`.

    fused: True runs each op on the fastest backend there is, plain PyTorch included; False in plain PyTorch; "strict" raises
    `cct_kernels.BackendError` rather than run an op in plain PyTorch. The parameters are the same for all three.
    """

    aliases: ClassVar = {"drop_path_rate": "stochastic_depth"}
    seq_pool = True  # False: a class token in front, read out
    leading_row = False  # True: the positional table has an unused first row
    preprocessing: ClassVar = {}  # of the released weights, when the model has a registered name that has some

    def __init__(self, fused, sequence_length, **modules):
        """modules: in state-dict order, in front of the classifier, whose arguments are those recorded in `config`."""
        super().__init__()
        self.fused = fused
        for name, module in modules.items():
            setattr(self, name, module)
        given = {"embedding_dim": self.config["kwargs"].get("word_embedding_dim"), **self.config["kwargs"]}
        self.classifier = TransformerClassifier(
            sequence_length=sequence_length, seq_pool=self.seq_pool, leading_row=self.leading_row,
            **{name: given[name] for name in ENCODER},
        )  # fmt: skip

    @property
    def fused(self):
        return self._fused

    @fused.setter
    def fused(self, value):
        self._fused = fusion.check(value)

    @property
    def num_classes(self):
        return self.classifier.num_classes

    @property
    def num_features(self):
        return self.classifier.embedding_dim

    @property
    def default_cfg(self):
        """timm's description of a model: architecture, num_classes, input_size, and mean, std, ... of released weights."""
        return {
            "architecture": self.config["name"],
            "num_classes": self.num_classes,
            "input_size": self._input_size(),
            **self.preprocessing,
        }

    def forward(self, x, mask=None):
        """Logits (B, num_classes) of images (B, in_chans, h, w), or of word ids (B, S) with an optional mask (B, S)."""
        tokens, mask, backend = self._enter(x, mask)
        return self.classifier(tokens, mask, backend)

    def forward_features(self, x, mask=None):
        """Tokens after the final LayerNorm: (B, N, C), the class token first where there is one."""
        tokens, mask, backend = self._enter(x, mask)
        return self.classifier.norm(self.classifier.encode(tokens, mask, backend))

    def forward_head(self, x, pre_logits=False):
        """(B, N, C) of `forward_features` -> logits, or (B, C) before the linear head with `pre_logits`."""
        pooled = self.classifier.pool(x, self._backend(), normalised=True)
        return pooled if pre_logits else self.classifier.fc(pooled)

    def seqpool_weights(self, x, mask=None):
        """How much each token counts in SeqPool: (B, N), rows sum to 1; tokens are in row-major order of `grid_size`."""
        if not self.classifier.seq_pool:
            raise ValueError(f"{self.config['name']} pools with a class token, not with SeqPool; see attention_maps")
        return self.classifier.attention_pool(self.forward_features(x, mask)).squeeze(-1).softmax(1)

    def attention_maps(self, x, mask=None):
        """The attention weights of every block, in plain PyTorch: a list of (B, nh, N, N)."""
        x, mask, backend = self._enter(x, mask)
        x, mask = self.classifier.embed(x, mask)
        maps = []
        for block in self.classifier.blocks:
            maps.append(block.attention_map(x, mask))
            x = block(x, mask, backend)
        return maps

    def get_classifier(self):
        return self.classifier.fc

    def reset_classifier(self, num_classes):
        """A fresh head for `num_classes` classes; 0 removes it, so that the model gives pooled features."""
        self.classifier.reset_head(num_classes)
        self.config["kwargs"]["num_classes"] = num_classes

    def set_grad_checkpointing(self, enable=True):
        """Recompute each block in the backward pass instead of storing it: less memory, about a third more time."""
        self.classifier.grad_checkpointing = bool(enable)

    def fused_report(self):
        """Text, op by op: what runs it on this model's device and dtype, and why each other backend does not."""
        weight = self.classifier.norm.weight
        return fusion.report(self.fused, weight.device.type, weight.dtype)

    def _backend(self):
        weight = self.classifier.norm.weight
        return fusion.backend(self.fused, weight.device.type, weight.dtype)

    def _enter(self, x, mask):
        if not isinstance(x, torch.Tensor):
            raise ValueError(f"{self.config['name']}: input is {type(x).__name__}; expected a tensor")
        backend = self._backend()
        return *self.tokens(x, mask, backend), backend
