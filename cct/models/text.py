"""Text families (paper, Table 10): word ids (B, S) with an optional mask to logits.

Differences from the published code, which stops with an error for most of these: the token mask is boolean (B, n), the unused
first row of the embedding table is skipped, and the word dimension is free. SeqPool sees every token, masked or not, as there.
"""

from typing import ClassVar

import torch
from torch import nn

from cct_kernels.checks import expect_int, shape_text

from .arguments import keyword_arguments
from .base import CompactTransformer
from .tokenizers import TextTokenizer


class Embedder(nn.Module):
    """Word ids -> vectors; words outside the mask become zero vectors.

    weight: (vocab, dim) pretrained vectors or None for N(0, 1) with row `padding_idx` zero and without gradient.
    """

    def __init__(self, vocab_size, dim, padding_idx, weight, freeze):
        super().__init__()
        if weight is None:
            self.embeddings = nn.Embedding(vocab_size, dim, padding_idx=padding_idx)
        else:
            self.embeddings = nn.Embedding.from_pretrained(torch.as_tensor(weight).clone(), freeze=False)
        self.embeddings.weight.requires_grad_(not freeze)

    def forward(self, ids, mask=None):
        x = self.embeddings(ids)
        return x if mask is None else x * mask[..., None]


class TextModel(CompactTransformer):
    """Word ids (B, S), mask (B, S) (nonzero = a word) or None, to logits. S may be shorter than `seq_len`.

    Args:
        seq_len: most words in a sentence. word_embedding_dim: of a word vector.
        embedding_dim: C; num_heads divides it. mlp_ratio: hidden width of the MLP is int(C * mlp_ratio).
        kernel_size: words under the convolution (CCT) or in a patch (also: patch_size).
        stride, padding, pooling_kernel_size, pooling_stride, pooling_padding (CCT): in words; stride and padding None give
            max(1, k//2 - 1) and max(1, k//2).
        dropout, attention_dropout, stochastic_depth, num_classes, positional_embedding, fused: as `CCT`.
        vocab_size: rows of the word table. padding_idx: its row without gradient, or None.
        pretrained_weight: (vocab_size, word_embedding_dim) word vectors, or None. embed_freeze: no gradient for the table.

    Raises: TypeError for an unknown argument; ValueError for a wrong value, naming it.
    """

    aliases: ClassVar = {**CompactTransformer.aliases, "patch_size": "kernel_size"}
    leading_row = True

    def __init__(self, tokenizer, fused):
        given = self.config["kwargs"]
        word_dim, seq_len = given["word_embedding_dim"], given["seq_len"]
        for name in ("seq_len", "word_embedding_dim", "vocab_size"):
            expect_int(self.config["name"], name, given[name], 1)
        length = seq_len if tokenizer is None else tokenizer.sizes((seq_len, word_dim))[-1][1][0]
        super().__init__(fused, length, embedder=self._embedder(given), tokenizer=tokenizer)
        self.seq_len = seq_len

    def _embedder(self, given):
        weight = given.pop("pretrained_weight")  # config is JSON; the vectors travel in the state dict
        if weight is not None:
            weight = torch.as_tensor(weight)
            if weight.dim() != 2 or weight.shape[1] != given["word_embedding_dim"]:
                raise ValueError(
                    f"{self.config['name']}: pretrained_weight has shape {shape_text(weight.shape)}; expected "
                    f"(vocab_size, word_embedding_dim={given['word_embedding_dim']})"
                )
            given.update(vocab_size=len(weight), padding_idx=None)  # as in the official code: every row learns
        return Embedder(given["vocab_size"], given["word_embedding_dim"], given["padding_idx"], weight, given["embed_freeze"])

    def _input_size(self):
        return (self.seq_len,)

    def tokens(self, ids, mask=None, backend=None):
        self._check_ids(ids)
        if mask is not None:
            if not isinstance(mask, torch.Tensor) or mask.shape != ids.shape:
                got = shape_text(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
                raise ValueError(f"{self.config['name']}: mask is {got}; expected {shape_text(ids.shape)}, as the word ids")
            mask = mask > 0
        x = self.embedder(ids, mask)
        return (x, mask) if self.tokenizer is None else self.tokenizer(x, mask, backend)

    def _check_ids(self, ids):
        name, longest = self.config["name"], self.seq_len
        if ids.dtype not in (torch.int64, torch.int32) or ids.dim() != 2 or ids.shape[1] == 0:
            raise ValueError(f"{name}: input is {ids.dtype} {shape_text(ids.shape)}; expected int64 word ids (batch, words)")
        if self.classifier.positional_embedding != "none" and ids.shape[1] > longest:
            raise ValueError(
                f"{name}: input has {ids.shape[1]} words; expected at most seq_len={longest}: cut the sentences, or build the "
                f"model with seq_len={ids.shape[1]} or positional_embedding='none'"
            )
        # On other devices the embedding itself stops at a wrong id; looking first would wait for the device at every call.
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling() and not torch.jit.is_tracing():
            low, high = (v.item() for v in ids.aminmax())
            vocab = self.embedder.embeddings.num_embeddings
            if low < 0 or high >= vocab:
                raise ValueError(f"{name}: word ids lie in {low}..{high}; expected 0..{vocab - 1} (vocab_size={vocab})")


class TextCCT(TextModel):
    """Convolution over words, ReLU, max-pooling, encoder, SeqPool. Arguments: `TextModel`."""

    @keyword_arguments
    def __init__(
        self, seq_len=64, word_embedding_dim=300, embedding_dim=128, kernel_size=4, stride=None, padding=None,
        pooling_kernel_size=2, pooling_stride=2, pooling_padding=1, dropout=0.0, attention_dropout=0.1, stochastic_depth=0.1,
        num_layers=2, num_heads=2, mlp_ratio=1.0, num_classes=2, positional_embedding="sine", vocab_size=100_000,
        padding_idx=1, pretrained_weight=None, embed_freeze=False, fused=True,
    ):  # fmt: skip
        pool = (pooling_kernel_size, pooling_stride, pooling_padding)
        super().__init__(TextTokenizer(word_embedding_dim, embedding_dim, kernel_size, stride, padding, pool), fused)


class TextCVT(TextModel):
    """Patches of kernel_size words, encoder, SeqPool. Arguments: `TextModel`."""

    @keyword_arguments
    def __init__(
        self, seq_len=64, word_embedding_dim=300, embedding_dim=128, kernel_size=4, dropout=0.0, attention_dropout=0.1,
        stochastic_depth=0.1, num_layers=2, num_heads=2, mlp_ratio=1.0, num_classes=2, positional_embedding="sine",
        vocab_size=100_000, padding_idx=1, pretrained_weight=None, embed_freeze=False, fused=True,
    ):  # fmt: skip
        super().__init__(TextTokenizer(word_embedding_dim, embedding_dim, kernel_size, kernel_size, 0), fused)


class TextViTLite(TextCVT):
    """Patches of kernel_size words, class token, encoder, the class token read out. Arguments: `TextModel`."""

    seq_pool = False


class TextTransformerLite(TextModel):
    """Word vectors are the tokens, C = word_embedding_dim; encoder with a class token, read out. Arguments: `TextModel`."""

    aliases: ClassVar = {**CompactTransformer.aliases, "embedding_dim": "word_embedding_dim"}
    seq_pool = False

    @keyword_arguments
    def __init__(
        self, seq_len=64, word_embedding_dim=300, dropout=0.0, attention_dropout=0.1, stochastic_depth=0.1, num_layers=2,
        num_heads=2, mlp_ratio=1.0, num_classes=2, positional_embedding="sine", vocab_size=100_000, padding_idx=1,
        pretrained_weight=None, embed_freeze=False, fused=True,
    ):  # fmt: skip
        super().__init__(None, fused)
