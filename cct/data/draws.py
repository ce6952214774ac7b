"""Random numbers that depend on (seed, epoch, sample index) and nothing else.

Philox4x32-10 is a function, not a stream: the numbers of sample i are the same whatever the batch size, the device, the
PyTorch version, or the batch at which a resumed run starts.
"""

import torch

from cct_kernels.philox import philox

_WORD = 0xFFFFFFFF
_DOMAIN = 0x64617461  # "data": the last counter word, so that dropout masks of the same seed share no numbers with us

# What a draw is for; (epoch, site) makes the third counter word unique for 2^24 epochs.
ORDER, CROP_FLIP, SPLIT = range(3)


def words(seed: int, epoch: int, site: int, n: int, device="cpu") -> torch.Tensor:
    """int64 (n, 4): four uniform integers in [0, 2^32) for each of the samples 0..n-1."""
    index = torch.arange(n, device=device)
    counter = (index & _WORD, index >> 32, torch.full_like(index, epoch << 8 | site), torch.full_like(index, _DOMAIN))
    return torch.stack(philox((seed & _WORD, seed >> 32 & _WORD), counter), 1)


def below(word: torch.Tensor, bound: int) -> torch.Tensor:
    """Uniform integers in [0, bound) from 32-bit words; the bias is below bound / 2^32."""
    return (word * bound) >> 32


def permutation(seed: int, epoch: int, n: int, device="cpu") -> torch.Tensor:
    """int64 (n,): the samples in the order of their 63-bit random keys."""
    word = words(seed, epoch, ORDER, n, device)
    return torch.argsort(word[:, 0] << 31 | word[:, 1] >> 1, stable=True)


def stratified(labels: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sorted indices (kept, held out): round(fraction * count) of every class, always the same ones.

    At least one sample of a class is held out and at least one kept; a class of one sample is kept.
    """
    key = words(0, 0, SPLIT, len(labels))[:, 0]
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        held[members[torch.argsort(key[members], stable=True)[:count]]] = True
    return torch.nonzero(~held).flatten(), torch.nonzero(held).flatten()
