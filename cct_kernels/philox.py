"""Dropout masks from a counter: Philox4x32-10 (Salmon et al., SC 2011, "Parallel random numbers: as easy as 1, 2, 3").

A mask is a function of (seed, offset, site, row, column) alone, so forward, backward and every backend drop the same
elements without storing them. This is the plain PyTorch form, the specification of the others:

    key     = (seed mod 2^32, seed div 2^32)
    counter = (16 * (column div 64) + column mod 16,  row,  offset mod 2^32,  site)
    word    = output (column mod 64) div 16 of the four
    keep the element if word >= round(p * 2^32)

The columns are dealt out so that one counter vector of 16 lanes serves 64 neighbouring columns.
"""

import torch

_MASK = 0xFFFFFFFF
_ROUND_A, _ROUND_B = 0xD2511F53, 0xCD9E8D57
_KEY_A, _KEY_B = 0x9E3779B9, 0xBB67AE85

# Which mask of an op: the last counter word.
ATTENTION, PROJECTION, HIDDEN, OUTPUT = range(4)


def _mulhilo(a, b):
    product = a * b  # wraps modulo 2^64; the bits are those of the unsigned product
    return (product >> 32) & _MASK, product & _MASK


def philox(key, counter):
    """Ten rounds. key: two, counter: four int64 tensors holding 32-bit values; returns four."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        hi0, lo0 = _mulhilo(c0, _ROUND_A)
        hi1, lo1 = _mulhilo(c2, _ROUND_B)
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + _KEY_A) & _MASK, (k1 + _KEY_B) & _MASK
    return c0, c1, c2, c3


def keep_mask(seed, site, rows, columns, p):
    """Boolean (rows, columns): True where dropout with probability p keeps. seed: int64 tensor (2,) = (seed, offset)."""
    device = seed.device
    groups = -(-columns // 64)
    lane = torch.arange(16 * groups, device=device)
    row = torch.arange(rows, device=device)[:, None]
    key = (seed[0] & _MASK, (seed[0] >> 32) & _MASK)
    counter = (lane, row, seed[1] & _MASK, torch.full_like(lane, site))
    words = philox(key, torch.broadcast_tensors(*counter))
    word = torch.stack([w.view(rows, groups, 16) for w in words], 2)  # (rows, groups, 4, 16)
    return word.view(rows, 64 * groups)[:, :columns] >= round(p * 2**32)
