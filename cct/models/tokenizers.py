"""Tokenizers: images and sentences to tokens through the `conv_tokenizer` op; the modules hold the parameters."""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

from cct_kernels import conv_tokenizer
from cct_kernels.checks import expect_int, pair

from .special import any_special, expect_plain_allowed

STAGE = (nn.Sequential, nn.Conv2d)


class ConvStages(nn.Module):
    """Convolutions with optional ReLU and max-pooling after each; the last one is read out as tokens (B, N, C).

    convs: the layers. nested: keys `conv_layers.{i}.0.weight` (vision) instead of `conv_layers.{i}.weight` (text).
    pool: (kernel, stride, padding), each an int or a pair, or None.
    """

    def __init__(self, convs, *, nested, relu, pool):
        super().__init__()
        self.relu, self.pool = relu, pool
        self.conv_layers = nn.ModuleList(nn.Sequential(conv) if nested else conv for conv in convs)
        for conv in convs:
            nn.init.kaiming_normal_(conv.weight)  # fan-in, gain sqrt(2); a bias keeps PyTorch's uniform +-1/sqrt(fan-in)

    @property
    def convs(self):
        return [_conv(layer) for layer in self._modules["conv_layers"]._modules.values()]

    def forward(self, x, backend=None):
        for layer in self.conv_layers:
            last = layer is self.conv_layers[-1]
            if _is_special(layer):
                expect_plain_allowed(backend, "tokenizer")
                x = self._by_modules(layer, x, last)
                continue
            conv = _conv(layer)
            x = conv_tokenizer(
                x, conv.weight, conv.bias, stride=conv.stride, padding=conv.padding, relu=self.relu, pool=self.pool,
                tokens=last, backend=backend,
            )  # fmt: skip
        return x

    def has_special_parts(self):
        return any(map(_is_special, self._modules["conv_layers"]._modules.values()))

    def _by_modules(self, layer, x, last):
        """A stage by a call of its convolution."""
        x = layer(x)
        if self.relu:
            x = F.relu(x)
        if self.pool is not None:
            x = F.max_pool2d(x, *self.pool)
        return x.flatten(2).transpose(1, 2) if last else x

    def sizes(self, size):
        """[(height, width) after the convolution, (height, width) after the pooling] for each stage, from a (height, width)."""
        stages, given = [], size
        for conv in self.convs:
            after_conv = _output(size, conv.kernel_size, conv.stride, conv.padding)
            size = after_conv if self.pool is None else _output(after_conv, *map(_pair, self.pool))
            if min(*after_conv, *size) < 1:
                raise ValueError(f"input size is {given[0]} x {given[1]}; expected one that leaves at least one token")
            stages.append((after_conv, size))
        return stages


class ConvTokenizer(ConvStages):
    """CCT: n_conv_layers times [conv k x k without bias -> ReLU -> max-pool]; all but the last have 64 channels."""

    def __init__(self, in_chans, dim, kernel_size, stride=None, padding=None, n_conv_layers=1, pool=(3, 2, 1)):
        _check(n_input_channels=in_chans, embedding_dim=dim, kernel_size=kernel_size, n_conv_layers=n_conv_layers)
        stride, padding = _strides(kernel_size, stride, padding)
        _check_windows(stride, padding, pool)
        channels = [in_chans, *[64] * (n_conv_layers - 1), dim]
        convs = [nn.Conv2d(a, b, kernel_size, stride, padding, bias=False) for a, b in itertools.pairwise(channels)]
        super().__init__(convs, nested=True, relu=True, pool=pool)


class PatchTokenizer(ConvStages):
    """ViT-Lite and CVT: one convolution with kernel = stride = patch side, with bias, no activation, no pooling."""

    def __init__(self, in_chans, dim, patch):
        _check(n_input_channels=in_chans, embedding_dim=dim, kernel_size=patch)
        self.patch = patch
        super().__init__([nn.Conv2d(in_chans, dim, patch, patch)], nested=True, relu=False, pool=None)

    def sizes(self, size):
        if size[0] % self.patch or size[1] % self.patch:
            raise ValueError(
                f"img_size is {size[0]} x {size[1]}; expected multiples of kernel_size={self.patch}, the side of a patch: "
                f"resize the images or choose another kernel_size"
            )
        return super().sizes(size)


class TextTokenizer(ConvStages):
    """A sentence (B, S, words) as a one-channel image under a convolution of k words; pooling over words (CCT) or none.

    mask: (B, S) bool, True for a word. A token is valid when its window touches a valid word; invalid tokens become zero.
    """

    def __init__(self, word_dim, dim, kernel_size, stride=None, padding=None, pool=None):
        _check(word_embedding_dim=word_dim, embedding_dim=dim, kernel_size=kernel_size)
        stride, padding = _strides(kernel_size, stride, padding)
        _check_windows(stride, padding, pool)
        conv = nn.Conv2d(1, dim, (kernel_size, word_dim), (stride, 1), (padding, 0), bias=False)
        along_words = pool and tuple(zip(pool, (1, 1, 0), strict=True))
        super().__init__([conv], nested=False, relu=pool is not None, pool=along_words)

    def forward(self, x, mask=None, backend=None):
        x = super().forward(x[:, None], backend)
        if mask is None:
            return x, None
        mask = self.token_mask(mask)
        return x * mask[..., None], mask

    def token_mask(self, mask):
        """(B, S) of words -> (B, n) of tokens, both bool."""
        conv = self.convs[0]
        ones = torch.ones(1, 1, conv.kernel_size[0], device=mask.device)
        valid = F.conv1d(mask[:, None].float(), ones, stride=conv.stride[0], padding=conv.padding[0])
        if self.pool is not None:
            valid = F.max_pool1d(valid, *(size[0] for size in self.pool))
        return valid[:, 0] > 0


def _conv(layer):
    return next(iter(layer._modules.values())) if isinstance(layer, nn.Sequential) else layer


def _is_special(layer):
    inner = layer._modules
    return any_special((layer, *inner.values()), STAGE) if inner else any_special((layer,), STAGE[1:])


def _check(**sizes):
    for name, value in sizes.items():
        expect_int("model", name, value, 1)


def _check_windows(stride, padding, pool):
    """Of the convolution and of the pooling; each an int or a pair."""
    given = [("stride", stride, 1), ("padding", padding, 0)]
    if pool is not None:
        names = ("pooling_kernel_size", "pooling_stride", "pooling_padding")
        given += zip(names, pool, (1, 1, 0), strict=True)
    for name, value, least in given:
        pair("model", name, value, least)
    if pool is not None and any(2 * p > k for k, p in zip(_pair(pool[0]), _pair(pool[2]), strict=True)):
        raise ValueError(f"model: pooling_padding is {pool[2]}; expected at most half of pooling_kernel_size={pool[0]}")


def _strides(kernel, stride, padding):
    """The official rule for what is not given: stride max(1, k//2 - 1), padding max(1, k//2)."""
    return max(1, kernel // 2 - 1) if stride is None else stride, max(1, kernel // 2) if padding is None else padding


def _pair(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _output(size, kernel, stride, padding):
    return tuple((s + 2 * p - k) // t + 1 for s, k, t, p in zip(size, kernel, stride, padding, strict=True))
