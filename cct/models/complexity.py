"""Parameters and multiply-accumulates (MACs), counted in the ways the paper and its repository count them."""

import math
from dataclasses import dataclass

from cct_kernels.checks import pair

from .text import TextModel


@dataclass(frozen=True)
class Parameters:
    """total, trainable; positional: entries of the positional table, trainable or not; words: of the word table."""

    total: int
    trainable: int
    positional: int
    words: int

    @property
    def without_positional(self):
        return self.total - self.positional


@dataclass(frozen=True)
class Macs:
    """MACs of one forward pass of one input, by component, and elements seen by the layers that have no MACs.

    conv: sum of k_h k_w c_in c_out h w (before pooling). linear: L N (4 C^2 + 2 C F), SeqPool score N C, head C K.
    attention: q k^T and its product with v, 2 L N^2 C. seqpool: the weighted sum, N C.
    relu_pool: outputs of ReLU plus inputs of max-pooling. layernorm: (2 L + 1) N C elements.
    """

    conv: int
    linear: int
    attention: int
    seqpool: int
    relu_pool: int
    layernorm: int

    @property
    def layers_only(self):
        """Counting B: convolutions and linear layers; products between activations left out."""
        return self.conv + self.linear

    @property
    def full(self):
        """Counting A: B plus the attention products and the SeqPool sum."""
        return self.layers_only + self.attention + self.seqpool

    @property
    def paper(self):
        """The MACs column of the paper (version 4): A plus 5 operations for each LayerNorm element."""
        return self.full + 5 * self.layernorm

    @property
    def first_release(self):
        """The numbers of the first repository: B plus one operation for each ReLU output and max-pool input."""
        return self.layers_only + self.relu_pool


def count_parameters(model):
    """Parameters of a model of this package; a sine embedding counts in `total` but not in `trainable`."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    return Parameters(
        total=sum(sizes.values()),
        trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        positional=sizes.get("classifier.positional_emb", 0),
        words=sizes.get("embedder.embeddings.weight", 0),
    )


def count_macs(model, input_size=None):
    """MACs of one input of a model of this package. input_size: pixels, int or (h, w), or words; None for the model's own."""
    if isinstance(model, TextModel):
        size = (model.seq_len if input_size is None else input_size, model.embedder.embeddings.embedding_dim)
    else:
        size = pair("count_macs", "input_size", model.img_size if input_size is None else input_size, 1)
    conv = relu_pool = 0
    grid = (size[0], 1)  # without a tokenizer words are tokens
    if (tokenizer := model.tokenizer) is not None:
        for layer, (after_conv, grid) in zip(tokenizer.convs, tokenizer.sizes(size), strict=True):  # noqa: B007
            outputs = layer.out_channels * math.prod(after_conv)
            conv += outputs * layer.weight[0].numel()
            relu_pool += outputs * (tokenizer.relu + (tokenizer.pool is not None))
    classifier, C = model.classifier, model.num_features
    pools = int(classifier.seq_pool)
    L, N, F = len(classifier.blocks), math.prod(grid) + 1 - pools, classifier.blocks[0].linear1.out_features
    return Macs(
        conv=conv,
        linear=L * N * (4 * C * C + 2 * C * F) + pools * N * C + C * model.num_classes,
        attention=2 * L * N * N * C,
        seqpool=pools * N * C,
        relu_pool=relu_pool,
        layernorm=(2 * L + 1) * N * C,
    )
