"""The attention core, softmax(q k^T / sqrt(hd)) v of every head, in Triton: forward and backward.

qkv is (B * N, 3C) as the product with the qkv weight leaves it, o (B * N, C); lse (B, nh, N) = log sum exp of the scores. No
(N, N) matrix reaches memory. Up to N = 256 a block of keys holds them all: the softmax needs no rescaling, and one program
makes dq, dk and dv of a head. Longer rows go flash style (Dao 2023, FlashAttention-2), with a second backward kernel for dq.

With P = exp(S - lse), Pd = drop(P), delta = rowsum(do * o):

    dv = Pd^T do        dS = P (drop(do v^T) - delta)        dq = dS k / sqrt(hd)        dk = dS^T q / sqrt(hd)

Masked pairs count as a score of minus infinity; in the row of an invalid query all scores are 0, which makes it uniform.
"""

import torch
import triton
import triton.language as tl

from .. import philox
from . import launch
from .dropout import keep, threshold
from .linear import keep_scale, precision

# Kind of pass -> bytes a number takes -> largest N of a shape class -> (queries, keys, warps, stages) of a block; None is for
# longer rows. Chosen at hd = 64 so that nothing spills, with dropout or without (float32 with mask and dropout: 24 bytes);
# not yet timed on any GPU.
_SINGLE = {
    "forward": {None: (16, 64, 8, 2)},
    "backward": {256: (16, 64, 8, 1), None: (16, 64, 16, 1)},
    "backward_dq": {None: (16, 64, 8, 1)},
}
_AMPERE = {
    "forward": {
        2: {64: (64, 64, 4, 1), 128: (64, 128, 8, 1), 256: (32, 256, 8, 1), None: (64, 64, 4, 2)},
        4: _SINGLE["forward"],
    },
    "backward": {2: {64: (16, 64, 4, 1), 128: (16, 128, 8, 1), None: (32, 64, 8, 1)}, 4: _SINGLE["backward"]},
    "backward_dq": {2: {None: (32, 64, 8, 1)}, 4: _SINGLE["backward_dq"]},
}
_HOPPER = {
    "forward": {
        2: {64: (64, 64, 4, 1), 128: (64, 128, 4, 1), 256: (64, 256, 8, 1), None: (64, 64, 4, 2)},
        4: _SINGLE["forward"],
    },
    "backward": {
        2: {64: (64, 64, 8, 1), 128: (64, 128, 8, 1), 256: (16, 256, 8, 1), None: (64, 64, 8, 1)},
        4: _SINGLE["backward"],
    },
    "backward_dq": {2: {None: (64, 64, 8, 1)}, 4: _SINGLE["backward_dq"]},
}
_DROPOUT = {
    "forward": {256: (64, 128, 4, 1)},
    "backward": {128: (32, 128, 8, 1), 256: (64, 128, 8, 1)},
    "backward_dq": {256: (64, 128, 8, 1)},
}  # on Hopper: the masks too
_A100 = _AMPERE | {"backward": _AMPERE["backward"] | {4: {64: (16, 64, 16, 1), 256: (16, 64, 8, 1), None: (16, 64, 8, 2)}}}
CONFIGS = {"sm_80": _A100, "sm_86": _AMPERE, "sm_90": _HOPPER, "sm_100": _HOPPER}


def _config(kind, qkv, N, head_dim, p):
    arch = launch.architecture(qkv.device)
    table = CONFIGS[arch][kind][qkv.element_size()]
    if p > 0 and CONFIGS[arch] is _HOPPER and qkv.element_size() == 2:
        table = table | _DROPOUT[kind]
    block_d = max(16, triton.next_power_of_2(head_dim))
    most = next((n for n in table if n is not None and n >= N), None)
    block_q, block_k, warps, stages = table[most if block_d <= 64 else None]  # wider heads: the smallest accumulators
    return {"BLOCK_Q": block_q, "BLOCK_K": block_k, "BLOCK_D": block_d, "num_warps": warps, "num_stages": stages}


@triton.jit
def _place(N, heads, BLOCK: tl.constexpr):
    """Of this program: its head, counted over all images, their image, the number of the head in it, its first token."""
    blocks = tl.cdiv(N, BLOCK)
    head = (tl.program_id(0) // blocks).to(tl.int64)
    return head, head // heads, head % heads, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _load(ptr, offs_n, N, stride, offs_d, hd):
    mask = (offs_n < N)[:, None] & (offs_d < hd)[None, :]
    return tl.load(ptr + offs_n[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def _valid(mask_ptr, offs_n, N):
    return tl.load(mask_ptr + offs_n, mask=offs_n < N, other=0) != 0


@triton.jit
def _scores(q, k, mask_ptr, offs_q, offs_k, N, scale, PRECISION: tl.constexpr):
    """(queries, keys): scaled, masked, minus infinity behind the last key."""
    s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if mask_ptr is not None:
        s = tl.where(_valid(mask_ptr, offs_k, N)[None, :], s, -1.0e38)
        s = tl.where(_valid(mask_ptr, offs_q, N)[:, None], s, 0.0)
    return tl.where((offs_k < N)[None, :], s, -float("inf"))


@triton.jit
def _drop(p, seed_ptr, head, offs_q, first_k, N, keep_scale, DROP: tl.constexpr, SITE: tl.constexpr, BLOCK_K: tl.constexpr):
    if DROP > 0:
        p = tl.where(keep(seed_ptr, SITE, head * N + offs_q, first_k, DROP, BLOCK_K), p * keep_scale, 0.0)
    return p


@triton.jit
def attention_forward_kernel(
    qkv_ptr, mask_ptr, seed_ptr, o_ptr, lse_ptr, N, C, heads, hd, scale, keep_scale,
    DROP: tl.constexpr, SITE: tl.constexpr, ONE_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    head, b, h, first_q = _place(N, heads, BLOCK_Q)
    offs_q = first_q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    qkv_ptr += b * N * 3 * C + h * hd
    if mask_ptr is not None:
        mask_ptr += b * N
    q = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
    if ONE_BLOCK:
        offs_k = tl.arange(0, BLOCK_K)
        k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
        s = _scores(q, k, mask_ptr, offs_q, offs_k, N, scale, PRECISION)
        m_i = tl.max(s, 1)
        p = tl.exp(s - m_i[:, None])
        l_i = tl.sum(p, 1)
        p = _drop(p, seed_ptr, head, offs_q, 0, N, keep_scale, DROP, SITE, BLOCK_K)
        v = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
    else:
        m_i = tl.full((BLOCK_Q,), -float("inf"), tl.float32)
        l_i = tl.zeros((BLOCK_Q,), tl.float32)
        acc = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
        for first_k in range(0, N, BLOCK_K):
            offs_k = first_k + tl.arange(0, BLOCK_K)
            k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
            s = _scores(q, k, mask_ptr, offs_q, offs_k, N, scale, PRECISION)
            m_new = tl.maximum(m_i, tl.max(s, 1))
            p = tl.exp(s - m_new[:, None])
            rescale = tl.exp(m_i - m_new)
            l_i = l_i * rescale + tl.sum(p, 1)
            p = _drop(p, seed_ptr, head, offs_q, first_k, N, keep_scale, DROP, SITE, BLOCK_K)
            v = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
            acc = tl.dot(p.to(v.dtype), v, acc * rescale[:, None], input_precision=PRECISION)
            m_i = m_new
    o_ptrs = o_ptr + b * N * C + h * hd + offs_q[:, None] * C + offs_d[None, :]
    mask = (offs_q < N)[:, None] & (offs_d < hd)[None, :]
    tl.store(o_ptrs, (acc / l_i[:, None]).to(o_ptr.dtype.element_ty), mask=mask)
    tl.store(lse_ptr + head * N + offs_q, m_i + tl.log(l_i), mask=offs_q < N)


@triton.jit
def _ds(
    q, k, v, do, o, lse, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, scale, keep_scale,
    DROP: tl.constexpr, SITE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Pd^T and dS^T (keys, queries) of one pair of blocks: transposed, they are left operands as they stand."""
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    if mask_ptr is not None:
        valid_q = _valid(mask_ptr, offs_q, N)[None, :]
        s = tl.where(_valid(mask_ptr, offs_k, N)[:, None], s, -1.0e38)
        s = tl.where(valid_q, s, 0.0)
    p = tl.where((offs_k < N)[:, None], tl.exp(s - lse[None, :]), 0.0)
    dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
    delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    dropped = p
    if DROP > 0:
        kept = tl.trans(keep(seed_ptr, SITE, head * N + offs_q, first_k, DROP, BLOCK_K))
        dropped = tl.where(kept, p * keep_scale, 0.0)
        dp = tl.where(kept, dp * keep_scale, 0.0)
    ds = p * (dp - delta[None, :])
    if mask_ptr is not None:  # the scores of an invalid query are constants
        ds = tl.where(valid_q, ds, 0.0)
    return dropped, ds


@triton.jit
def _store_transposed(ptr, value, offs_n, N, stride, offs_d, hd):
    """value (hd, tokens) to rows of tokens."""
    mask = (offs_n < N)[:, None] & (offs_d < hd)[None, :]
    tl.store(ptr + offs_n[:, None] * stride + offs_d[None, :], tl.trans(value).to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_backward_kernel(
    do_ptr, qkv_ptr, mask_ptr, seed_ptr, o_ptr, lse_ptr, dqkv_ptr, N, C, heads, hd, scale, keep_scale,
    DROP: tl.constexpr, SITE: tl.constexpr, ONE_BLOCK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, over all queries; dq too if it holds every key."""
    head, b, h, first_k = _place(N, heads, BLOCK_K)
    offs_k = first_k + tl.arange(0, BLOCK_K)
    offs_d = tl.arange(0, BLOCK_D)
    qkv_ptr += b * N * 3 * C + h * hd
    dqkv_ptr += b * N * 3 * C + h * hd
    o_ptr += b * N * C + h * hd
    do_ptr += b * N * C + h * hd
    if mask_ptr is not None:
        mask_ptr += b * N
    k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
    v = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
    dk = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    dv = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    for first_q in range(0, N, BLOCK_Q):
        offs_q = first_q + tl.arange(0, BLOCK_Q)
        q = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
        do = _load(do_ptr, offs_q, N, C, offs_d, hd)
        o = _load(o_ptr, offs_q, N, C, offs_d, hd)
        lse = tl.load(lse_ptr + head * N + offs_q, mask=offs_q < N, other=float("inf"))
        pd, ds = _ds(
            q, k, v, do, o, lse, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, scale, keep_scale,
            DROP, SITE, PRECISION, BLOCK_K,
        )  # fmt: skip
        dv = tl.dot(pd.to(do.dtype), do, dv, input_precision=PRECISION)
        ds = ds.to(q.dtype)
        dk = tl.dot(ds, q, dk, input_precision=PRECISION)
        if ONE_BLOCK:
            dq = tl.dot(tl.trans(k), ds, input_precision=PRECISION) * scale
            _store_transposed(dqkv_ptr, dq, offs_q, N, 3 * C, offs_d, hd)
    mask = (offs_k < N)[:, None] & (offs_d < hd)[None, :]
    dk_ptrs = dqkv_ptr + C + offs_k[:, None] * 3 * C + offs_d[None, :]
    tl.store(dk_ptrs, (dk * scale).to(dqkv_ptr.dtype.element_ty), mask=mask)
    tl.store(dk_ptrs + C, dv.to(dqkv_ptr.dtype.element_ty), mask=mask)


@triton.jit
def attention_backward_dq_kernel(
    do_ptr, qkv_ptr, mask_ptr, seed_ptr, o_ptr, lse_ptr, dqkv_ptr, N, C, heads, hd, scale, keep_scale,
    DROP: tl.constexpr, SITE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries, over all keys."""
    head, b, h, first_q = _place(N, heads, BLOCK_Q)
    offs_q = first_q + tl.arange(0, BLOCK_Q)
    offs_d = tl.arange(0, BLOCK_D)
    qkv_ptr += b * N * 3 * C + h * hd
    if mask_ptr is not None:
        mask_ptr += b * N
    q = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
    do = _load(do_ptr + b * N * C + h * hd, offs_q, N, C, offs_d, hd)
    o = _load(o_ptr + b * N * C + h * hd, offs_q, N, C, offs_d, hd)
    lse = tl.load(lse_ptr + head * N + offs_q, mask=offs_q < N, other=float("inf"))
    dq = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)
    for first_k in range(0, N, BLOCK_K):
        offs_k = first_k + tl.arange(0, BLOCK_K)
        k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
        v = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
        _, ds = _ds(
            q, k, v, do, o, lse, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, scale, keep_scale,
            DROP, SITE, PRECISION, BLOCK_K,
        )  # fmt: skip
        dq = tl.dot(tl.trans(k), ds.to(k.dtype), dq, input_precision=PRECISION)
    _store_transposed(dqkv_ptr + b * N * 3 * C + h * hd, dq * scale, offs_q, N, 3 * C, offs_d, hd)


def attention_forward(qkv, B, N, heads, mask, p, seed):
    """o (B * N, C) and lse (B, nh, N) of a contiguous qkv (B * N, 3C)."""
    C = qkv.shape[1] // 3
    o, lse = qkv.new_empty(B * N, C), qkv.new_empty(B, heads, N, dtype=torch.float32)
    if B > 0:
        config = _config("forward", qkv, N, C // heads, p)
        attention_forward_kernel[(triton.cdiv(N, config["BLOCK_Q"]) * B * heads,)](
            qkv, mask, seed, o, lse, N, C, heads, C // heads, (C // heads) ** -0.5, keep_scale(p),
            DROP=threshold(p), SITE=philox.ATTENTION, ONE_BLOCK=config["BLOCK_K"] >= N, PRECISION=precision(), **config,
        )  # fmt: skip
    return o, lse


def attention_backward(do, qkv, B, N, heads, mask, p, seed, o, lse):
    """dqkv (B * N, 3C); do (B * N, C) contiguous."""
    C = qkv.shape[1] // 3
    dqkv = torch.empty_like(qkv)
    if B > 0:
        config = _config("backward", qkv, N, C // heads, p)
        one_block = config["BLOCK_K"] >= N
        arguments = do, qkv, mask, seed, o, lse, dqkv, N, C, heads, C // heads, (C // heads) ** -0.5, keep_scale(p)
        flags = {"DROP": threshold(p), "SITE": philox.ATTENTION, "PRECISION": precision()}
        attention_backward_kernel[(triton.cdiv(N, config["BLOCK_K"]) * B * heads,)](
            *arguments, **flags, ONE_BLOCK=one_block, **config
        )
        if not one_block:
            config = _config("backward_dq", qkv, N, C // heads, p)
            attention_backward_dq_kernel[(triton.cdiv(N, config["BLOCK_Q"]) * B * heads,)](*arguments, **flags, **config)
    return dqkv
