"""Random numbers that depend on (seed, epoch, sample index) and nothing else.

Philox4x32-10 is a function, not a stream: the numbers of sample i are the same whatever the batch size, the device, the
PyTorch version, or the batch at which a resumed run starts.
"""

import torch

from cct_kernels.philox import philox

_WORD = 0xFFFFFFFF
_DOMAIN = 0x64617461  # "data": the last counter word, so that dropout masks of the same seed share no numbers with us

# What a draw is for; (epoch, site) makes the third counter word unique for 2^24 epochs. A site is followed by room for the
# further blocks of the same draw.
ORDER, CROP_FLIP, SPLIT = range(3)
RESIZED_CROP, JITTER, POLICY, MIX, ERASE = 8, 16, 24, 64, 128


def words(seed: int, epoch: int, site: int, n: int, device="cpu") -> torch.Tensor:
    """int64 (n, 4): four uniform integers in [0, 2^32) for each of the samples 0..n-1."""
    return words_of(seed, epoch, site, torch.arange(n, device=device))


def words_of(seed, epoch, site: int, index: torch.Tensor, blocks: int = 1) -> torch.Tensor:
    """int64 (n, 4 * blocks): uniform integers in [0, 2^32) for the samples of `index` (n,), from `blocks` sites on.

    seed and epoch are ints, or int64 tensors without dimensions, which a captured graph reads anew at each replay.
    """
    block = torch.arange(site, site + blocks, device=index.device)
    index = index[:, None].expand(-1, blocks)
    counter = (index & _WORD, index >> 32, (block | epoch << 8).expand_as(index), torch.full_like(index, _DOMAIN))
    return torch.stack(philox((seed & _WORD, seed >> 32 & _WORD), counter), 2).flatten(1)


def below(word: torch.Tensor, bound) -> torch.Tensor:
    """Uniform integers in [0, bound) from 32-bit words, bound < 2^31; the bias is below bound / 2^32."""
    return (word * bound) >> 32


def unit(word: torch.Tensor) -> torch.Tensor:
    """Uniform float64 in (0, 1) from 32-bit words: the middles of 2^32 equal parts."""
    return (word.double() + 0.5) * 2.0**-32


def chance(word: torch.Tensor, p: float) -> torch.Tensor:
    """True with probability p (to 2^-32)."""
    return word >= round((1 - p) * 2**32)


def normal(word: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Standard normal float64 numbers from two words each (G. Box and M. Muller, 1958)."""
    return torch.sqrt(-2 * torch.log(unit(word))) * torch.cos(2 * torch.pi * unit(other))


def beta(word: torch.Tensor, other: torch.Tensor, alpha: float) -> torch.Tensor:
    """Beta(alpha, alpha) numbers, any alpha > 0: 1/2 + T / (2 sqrt(1 + T^2)) with T = sqrt(U^(-1/alpha) - 1) cos(2 pi V).

    Source: R. Bailey, "Polar generation of random variates with the t-distribution", 1994.
    """
    t = torch.sqrt(torch.expm1(-torch.log(unit(word)) / alpha)) * torch.cos(2 * torch.pi * unit(other))
    return 0.5 + 0.5 * torch.sin(torch.atan(t))  # sin(atan(t)) = t / sqrt(1 + t^2), also where t is infinite


def permutation(seed: int, epoch: int, n: int, device="cpu") -> torch.Tensor:
    """int64 (n,): the samples in the order of their 63-bit random keys."""
    word = words(seed, epoch, ORDER, n, device)
    return torch.argsort(word[:, 0] << 31 | word[:, 1] >> 1, stable=True)


def stratified(labels: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted indices (kept, held out): round(fraction * count) of every class, always the same ones.

    At least one sample of a class is held out and at least one kept; a class of one sample is kept, so that of classes with one
    sample each nothing is held out.
    """
    key = words(0, 0, SPLIT, len(labels))[:, 0]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[torch.argsort(key[members], stable=True)[:count]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()
