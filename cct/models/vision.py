"""Vision families: ViT-Lite, CVT and CCT ("Escaping the Big Data Paradigm with Compact Transformers", section 3)."""

from typing import ClassVar

import torch
from torch import nn

from cct_kernels import compact_transformer
from cct_kernels.checks import pair, shape_text

from .arguments import keyword_arguments
from .base import CompactTransformer
from .encoder import EncoderBlock, TransformerClassifier, weight_and_bias
from .positional import resize, sine_table
from .special import any_special
from .tokenizers import ConvTokenizer, PatchTokenizer

EPS = 1e-5  # of every LayerNorm


class VisionModel(CompactTransformer):
    """Images (B, in_chans, h, w) to logits. `img_size`: (h, w); `grid_size`: tokens (down, across)."""

    aliases: ClassVar = {**CompactTransformer.aliases, "in_chans": "n_input_channels"}

    def __init__(self, tokenizer, fused):
        img_size = pair(self.config["name"], "img_size", self.config["kwargs"]["img_size"], 1)
        grid = tokenizer.sizes(img_size)[-1][1]
        super().__init__(fused, grid[0] * grid[1], tokenizer=tokenizer)
        self.in_chans = self.config["kwargs"]["n_input_channels"]
        self._set_size(img_size, grid)

    def _set_size(self, img_size, grid):
        self.img_size, self.grid_size = img_size, grid
        self.other_sizes, self.classifier.other_lengths = set(), {}
        self.config["kwargs"]["img_size"] = list(img_size)

    def _input_size(self):
        return (self.in_chans, *self.img_size)

    def set_input_size(self, img_size):
        """Change `img_size`; a learnable embedding is resized (bilinear), a sine one recomputed for the new length."""
        img_size = pair(self.config["name"], "img_size", img_size, 1)
        grid, classifier = self.tokenizer.sizes(img_size)[-1][1], self.classifier
        if (old := classifier.positional_emb) is not None and grid != self.grid_size:
            cls = int(not classifier.seq_pool)
            if classifier.positional_embedding == "sine":
                table = sine_table(grid[0] * grid[1] + cls, self.num_features)
            else:
                table = resize(old.detach(), self.grid_size, grid, cls)
            classifier.positional_emb = nn.Parameter(table.to(old), requires_grad=old.requires_grad)
        self._set_size(img_size, grid)

    def forward(self, x, mask=None):
        """Logits (B, num_classes) of images (B, in_chans, h, w)."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing() or not self._is_plain(x):
            return super().forward(x, mask)
        self._check_input(x, mask)
        tokenizer, classifier = self._modules["tokenizer"], self._modules["classifier"]
        parts = classifier._modules
        blocks = list(parts["blocks"]._modules.values())
        pool = weight_and_bias(parts["attention_pool"]) if classifier.seq_pool else (None, None)
        head = weight_and_bias(parts["fc"]) if classifier.num_classes else (None, None)
        return compact_transformer(
            x, [(*weight_and_bias(conv), conv.stride, conv.padding) for conv in tokenizer.convs],
            [block.tensors() for block in blocks], *weight_and_bias(parts["norm"]), num_heads=blocks[0].num_heads,
            relu=tokenizer.relu, pool=tokenizer.pool, class_token=classifier.class_emb, positional=classifier.positional_emb,
            pool_weight=pool[0], pool_bias=pool[1], head_weight=head[0], head_bias=head[1], backend=self._backend(),
        )  # fmt: skip

    def _is_plain(self, x):
        """Whether calling the modules in turn computes the network in evaluation mode, seen by nobody on the way."""
        own = self._modules  # no searches of nn.Module: for a small network they take as long as the arithmetic
        tokenizer, classifier = own["tokenizer"], own["classifier"]
        parts = classifier._modules
        blocks, pooled = tuple(parts["blocks"]._modules.values()), classifier.seq_pool
        called = (tokenizer, classifier, parts["norm"], parts["fc"], *((parts["attention_pool"],) if pooled else ()), *blocks)
        head = nn.Linear if classifier.num_classes else nn.Identity
        kinds = (type(tokenizer), TransformerClassifier, nn.LayerNorm, head, *((nn.Linear,) if pooled else ()))
        return not (
            self.training
            or classifier.training
            or type(tokenizer) not in (ConvTokenizer, PatchTokenizer)
            or any_special(called, kinds + (EncoderBlock,) * len(blocks))
            or tokenizer.has_special_parts()
            or parts["norm"].eps != EPS
            or any(block.training or block.has_special_parts() for block in blocks)
            or type(self).tokens is not VisionModel.tokens
            or not isinstance(x, torch.Tensor)
            or not (classifier.positional_emb is None or x.shape[2:] == self.img_size)
        )

    def accept_size(self, img_size):
        """Take smaller images, of this size, too: for training that begins with them (progressive resizing).

        Their positional embedding is made from the one of `img_size` in every forward pass, as `set_input_size` would once:
        parameters, optimizer state and checkpoints stay those of `img_size`.
        """
        img_size = pair(self.config["name"], "img_size", img_size, 1)
        if img_size[0] > self.img_size[0] or img_size[1] > self.img_size[1]:
            raise ValueError(
                f"{self.config['name']}: accept_size got {img_size[0]} x {img_size[1]}; expected at most img_size "
                f"{self.img_size[0]} x {self.img_size[1]}"
            )
        grid, classifier = self.tokenizer.sizes(img_size)[-1][1], self.classifier
        if classifier.positional_embedding == "learnable" and grid != self.grid_size:
            cls = int(not classifier.seq_pool)
            rows = torch.eye(classifier.positional_emb.shape[1], device=classifier.positional_emb.device)[None]
            matrix = resize(rows, self.grid_size, grid, cls)
            if not torch.equal(classifier.other_lengths.setdefault(matrix.shape[1], matrix), matrix):
                raise ValueError(f"{self.config['name']}: two sizes that give {matrix.shape[1]} tokens cannot be told apart")
        self.other_sizes.add(img_size)

    def tokens(self, x, mask=None, backend=None):
        self._check_input(x, mask)
        return self.tokenizer(x, backend), None

    def _check_input(self, x, mask):
        name = self.config["name"]
        if mask is not None:
            raise ValueError(f"{name}: mask is given; expected none, only text models take one")
        if x.dim() != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"{name}: input has shape {shape_text(x.shape)}; expected (batch, {self.in_chans}, {self.img_size[0]}, "
                f"{self.img_size[1]}); for another number of channels build the model with in_chans="
            )
        size = (x.shape[2], x.shape[3])
        kind = self.classifier.positional_embedding
        if kind == "none":
            self.tokenizer.sizes(size)  # raises for a size that leaves no token or cuts a patch
        elif size != self.img_size and size not in self.other_sizes:
            raise ValueError(
                f"{name}: input is {size[0]} x {size[1]}; expected img_size {self.img_size[0]} x {self.img_size[1]}, the size "
                f"of the {kind} positional embedding. Resize the images, build the model with img_size=({size[0]}, {size[1]}) "
                f"(weights load with the embedding resized), call model.set_input_size(({size[0]}, {size[1]})), or build it "
                f"with positional_embedding='none', which takes any size"
            )


class CCT(VisionModel):
    """Compact Convolutional Transformer: n_conv_layers x [conv -> ReLU -> max-pool], encoder, SeqPool.

    Args:
        img_size: int or (height, width), pixels.
        embedding_dim: C; num_heads divides it. mlp_ratio: hidden width of the MLP is int(C * mlp_ratio).
        n_input_channels: of the image (timm: in_chans).
        kernel_size, stride, padding: of each convolution; None gives stride max(1, k//2 - 1), padding max(1, k//2).
        pooling_kernel_size, pooling_stride, pooling_padding: of the max-pooling.
        dropout: probability after the embedding, the attention projection, GELU and the MLP; attention_dropout: on the
            attention weights; stochastic_depth: of the last block, growing linearly from 0 (timm: drop_path_rate).
        num_classes: 0 leaves the head out.
        positional_embedding: "learnable", "sine" or "none" (any input size).
        fused: True, False or "strict", see `CompactTransformer`.

    Raises: TypeError for an unknown argument; ValueError for a wrong value, naming it.
    Source: paper, sections 3.3 and 3.4, and the official code, whose defaults these are.
    """

    @keyword_arguments
    def __init__(
        self, img_size=224, embedding_dim=768, n_input_channels=3, n_conv_layers=1, kernel_size=7, stride=None, padding=None,
        pooling_kernel_size=3, pooling_stride=2, pooling_padding=1, dropout=0.0, attention_dropout=0.1, stochastic_depth=0.1,
        num_layers=14, num_heads=6, mlp_ratio=4.0, num_classes=1000, positional_embedding="learnable", fused=True,
    ):  # fmt: skip
        tokenizer = ConvTokenizer(
            n_input_channels, embedding_dim, kernel_size, stride, padding, n_conv_layers,
            (pooling_kernel_size, pooling_stride, pooling_padding),
        )  # fmt: skip
        super().__init__(tokenizer, fused)


class CCTClassToken(CCT):
    """CCT with a class token in place of SeqPool: the rows "noSeqPool" of the paper's Table 7. Arguments as `CCT`."""

    seq_pool = False


class PatchModel(VisionModel):
    """Patches of kernel_size x kernel_size pixels (also: patch_size) through one linear layer."""

    aliases: ClassVar = {**VisionModel.aliases, "patch_size": "kernel_size"}

    @keyword_arguments
    def __init__(
        self, img_size=224, embedding_dim=768, n_input_channels=3, kernel_size=16, dropout=0.0, attention_dropout=0.1,
        stochastic_depth=0.1, num_layers=14, num_heads=6, mlp_ratio=4.0, num_classes=1000, positional_embedding="learnable",
        fused=True,
    ):  # fmt: skip
        super().__init__(PatchTokenizer(n_input_channels, embedding_dim, kernel_size), fused)


class CVT(PatchModel):
    """Compact Vision Transformer: patches, encoder, SeqPool. Arguments as `CCT`; kernel_size is the side of a patch."""


class ViTLite(PatchModel):
    """ViT-Lite: patches, class token, encoder, the class token read out. Arguments as `CCT`; kernel_size: side of a patch."""

    seq_pool = False
