"""The dropout masks of philox.py in Triton: the same elements are dropped as on every other backend."""

import triton
import triton.language as tl


def threshold(p):
    """An element is kept if its random word is at least this; 0 keeps all."""
    return round(p * 2**32)


@triton.jit
def keep(seed_ptr, SITE: tl.constexpr, rows, first_column, THRESHOLD: tl.constexpr, BLOCK: tl.constexpr):
    """(rows, BLOCK) booleans for the columns from `first_column`, a multiple of 64 as BLOCK is.

    One Philox call gives four words: columns lane, lane + 16, lane + 32 and lane + 48 of a group of 64.
    """
    tl.static_assert(BLOCK % 64 == 0)
    seed = tl.load(seed_ptr)
    offset = (tl.load(seed_ptr + 1) & 0xFFFFFFFF).to(tl.uint32)
    lane = first_column // 4 + tl.arange(0, BLOCK // 4)
    row = rows.to(tl.uint32)[:, None]
    w0, w1, w2, w3 = tl.philox(seed, lane[None, :].to(tl.uint32), row, offset, tl.full((1, 1), SITE, tl.uint32))
    # int8 and a last axis in the order w0 w1 w2 w3, then (row, group, lane, word) -> (row, group, word, lane)
    kept = tl.join(
        tl.join((w0 >= THRESHOLD).to(tl.int8), (w2 >= THRESHOLD).to(tl.int8)),
        tl.join((w1 >= THRESHOLD).to(tl.int8), (w3 >= THRESHOLD).to(tl.int8)),
    )
    kept = kept.reshape(rows.shape[0], BLOCK // 64, 16, 4).permute(0, 1, 3, 2)
    return kept.reshape(rows.shape[0], BLOCK) != 0
