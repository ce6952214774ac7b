"""The attention core, softmax(q k^T / sqrt(hd)) v of every head, in Triton: forward and backward.

qkv is (B * N, 3C) as the product with the qkv weight leaves it, o (B * N, C); lse (B, nh, N) = log sum exp of the scores. No
(N, N) matrix reaches memory. Up to N = 256 a block of keys holds them all: the softmax needs no rescaling, and one program
makes dq, dk and dv of a head. Longer rows go flash style (Dao 2023, FlashAttention-2), with a second backward kernel for dq.

With P = exp(S - lse), Pd = drop(P), delta = rowsum(do * o):

    dv = Pd^T do        dS = P (drop(do v^T) - delta)        dq = dS k / sqrt(hd)        dk = dS^T q / sqrt(hd)

Heads of more than 64 channels are taken in slices: the scores of a block are sums over all slices, and each program makes one
slice of the outputs from them. So programs repeat what others do, but any width fits the registers and the shared memory.

Masked pairs count as a score of minus infinity; in the row of an invalid query all scores are 0, which makes it uniform.
"""

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from .. import philox
from . import launch
from .dropout import keep, threshold
from .linear import keep_scale, precision

# Kind of pass -> bytes a number takes -> largest N of a shape class -> (queries, keys, warps, stages) of a block; None is for
# longer rows, and for wide heads, of more than 64 channels, where "wide" is absent. A fifth number: see launch.options.
# A kind with conditions behind it changes the entries that it names where they all hold; "narrow" is a head of at most 32
# channels. Nothing spills with the Triton of PyTorch 2.11 to 2.13 (3.6 to 3.7); not yet timed on any GPU.
_SINGLE = {
    "forward": {None: (16, 64, 8, 3, 255)},
    "backward": {None: (16, 64, 16, 1, 128), "wide": (16, 64, 8, 1, 255)},
    "backward_dq": {None: (16, 64, 8, 1)},
}
_AMPERE = {
    "forward": {
        2: {64: (64, 64, 4, 1), 128: (64, 128, 8, 1), 256: (32, 256, 8, 1), None: (64, 64, 4, 2)},
        4: _SINGLE["forward"],
    },
    "backward": {2: {64: (16, 64, 4, 1), 128: (16, 128, 8, 1, 255), None: (32, 64, 8, 1)}, 4: _SINGLE["backward"]},
    "backward_dq": {2: {None: (32, 64, 8, 1, 255)}, 4: _SINGLE["backward_dq"]},
    "forward+narrow": {2: {256: (16, 256, 4, 1)}},
    "forward+dropout+narrow": {2: {256: (64, 128, 8, 1), None: (64, 64, 4, 2, 255)}},
    "backward+dropout+mask": {4: {None: (16, 64, 16, 1)}},
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
    "forward+dropout+narrow": {2: {256: (64, 128, 8, 1)}},
    "backward+dropout": {2: {128: (32, 128, 8, 1)}},  # the masks take registers too
    "backward+dropout+mask": {2: {256: (64, 128, 8, 1)}, 4: {None: (16, 64, 16, 1)}},
    "backward_dq+dropout+mask": {2: {256: (64, 128, 8, 1)}},
}
CONFIGS = {"sm_80": _AMPERE, "sm_86": _AMPERE, "sm_90": _HOPPER, "sm_100": _HOPPER}

SLICE = {2: 64, 4: 32}  # channels of a wide head at a time


def _config(kind, qkv, N, head_dim, p, mask):
    size, holds = qkv.element_size(), {"dropout": p > 0, "mask": mask is not None, "narrow": head_dim <= 32}
    table = {}
    for name, entries in CONFIGS[launch.architecture(qkv.device)].items():
        of_kind, *conditions = name.split("+")
        if of_kind == kind and all(holds[condition] for condition in conditions):
            table |= entries.get(size, {})
    if head_dim > 64:
        shape, block_d = "wide", SLICE[size]
    else:
        shape = next((n for n in table if isinstance(n, int) and n >= N), None)
        block_d = max(16, triton.next_power_of_2(head_dim))
    block_q, block_k, *options = table.get(shape, table[None])
    slices = triton.cdiv(head_dim, block_d)
    blocks = {"BLOCK_Q": block_q, "BLOCK_K": block_k, "BLOCK_D": block_d, "SLICES": slices}
    return blocks | launch.options(*options)


@triton.jit
def _place(N, heads, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr):
    """Of this program: its head, counted over all images, their image, the number of the head in it, its first token and
    its channels of the head."""
    pid = tl.program_id(0)
    offs_d = tl.arange(0, BLOCK_D)
    if SLICES > 1:
        offs_d += pid % SLICES * BLOCK_D
        pid //= SLICES
    blocks = tl.cdiv(N, BLOCK)
    head = (pid // blocks).to(tl.int64)
    return head, head // heads, head % heads, pid % blocks * BLOCK, offs_d


@triton.jit
def _load(ptr, offs_n, N, stride, offs_d, hd):
    mask = (offs_n < N)[:, None] & (offs_d < hd)[None, :]
    return tl.load(ptr + offs_n[:, None] * stride + offs_d[None, :], mask=mask, other=0.0)


@triton.jit
def _valid(mask_ptr, offs_n, N):
    return tl.load(mask_ptr + offs_n, mask=offs_n < N, other=0) != 0


@triton.jit
def _scores(
    q, k, qkv_ptr, mask_ptr, offs_q, offs_k, N, C, hd, scale,
    PRECISION: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """(queries, keys): scaled, masked, minus infinity behind the last key."""
    if SLICES == 1:
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    else:
        s = tl.zeros((BLOCK_Q, BLOCK_K), tl.float32)
        for d in range(0, hd, BLOCK_D):
            offs_d = d + tl.arange(0, BLOCK_D)
            qd = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
            kd = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
            s = tl.dot(qd, tl.trans(kd), s, input_precision=PRECISION)
        s *= scale
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
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    head, b, h, first_q, offs_d = _place(N, heads, BLOCK_Q, BLOCK_D, SLICES)
    offs_q = first_q + tl.arange(0, BLOCK_Q)
    qkv_ptr += b * N * 3 * C + h * hd
    if mask_ptr is not None:
        mask_ptr += b * N
    q = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
    if ONE_BLOCK:
        offs_k = tl.arange(0, BLOCK_K)
        k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
        s = _scores(
            q, k, qkv_ptr, mask_ptr, offs_q, offs_k, N, C, hd, scale, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, SLICES
        )  # fmt: skip
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
            s = _scores(
                q, k, qkv_ptr, mask_ptr, offs_q, offs_k, N, C, hd, scale, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, SLICES
            )  # fmt: skip
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
    if SLICES == 1 or tl.program_id(0) % SLICES == 0:
        tl.store(lse_ptr + head * N + offs_q, m_i + tl.log(l_i), mask=offs_q < N)


@triton.jit
def _ds(
    q, k, v, do, o, lse, qkv_ptr, do_ptr, o_ptr, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, C, hd, scale, keep_scale,
    DROP: tl.constexpr, SITE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """Pd^T and dS^T (keys, queries) of one pair of blocks: transposed, they are left operands as they stand."""
    if SLICES == 1:
        s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
    else:
        s = tl.zeros((BLOCK_K, BLOCK_Q), tl.float32)
        dp = tl.zeros((BLOCK_K, BLOCK_Q), tl.float32)
        delta = tl.zeros((BLOCK_Q,), tl.float32)
        for d in range(0, hd, BLOCK_D):
            offs_d = d + tl.arange(0, BLOCK_D)
            kd = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
            qd = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
            s = tl.dot(kd, tl.trans(qd), s, input_precision=PRECISION)
            vd = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
            dod = _load(do_ptr, offs_q, N, C, offs_d, hd)
            dp = tl.dot(vd, tl.trans(dod), dp, input_precision=PRECISION)
            od = _load(o_ptr, offs_q, N, C, offs_d, hd)
            delta += tl.sum(od.to(tl.float32) * dod.to(tl.float32), 1)
        s *= scale
    if mask_ptr is not None:
        valid_q = _valid(mask_ptr, offs_q, N)[None, :]
        s = tl.where(_valid(mask_ptr, offs_k, N)[:, None], s, -1.0e38)
        s = tl.where(valid_q, s, 0.0)
    p = tl.where((offs_k < N)[:, None], tl.exp(s - lse[None, :]), 0.0)
    if SLICES == 1:
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
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """dk and dv of a block of keys, over all queries; dq too if it holds every key."""
    head, b, h, first_k, offs_d = _place(N, heads, BLOCK_K, BLOCK_D, SLICES)
    offs_k = first_k + tl.arange(0, BLOCK_K)
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
            q, k, v, do, o, lse, qkv_ptr, do_ptr, o_ptr, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, C, hd,
            scale, keep_scale, DROP, SITE, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, SLICES,
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
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, SLICES: tl.constexpr,
):  # fmt: skip
    """dq of a block of queries, over all keys."""
    head, b, h, first_q, offs_d = _place(N, heads, BLOCK_Q, BLOCK_D, SLICES)
    offs_q = first_q + tl.arange(0, BLOCK_Q)
    qkv_ptr += b * N * 3 * C + h * hd
    if mask_ptr is not None:
        mask_ptr += b * N
    do_ptr += b * N * C + h * hd
    o_ptr += b * N * C + h * hd
    q = _load(qkv_ptr, offs_q, N, 3 * C, offs_d, hd)
    do = _load(do_ptr, offs_q, N, C, offs_d, hd)
    o = _load(o_ptr, offs_q, N, C, offs_d, hd)
    lse = tl.load(lse_ptr + head * N + offs_q, mask=offs_q < N, other=float("inf"))
    dq = tl.zeros((BLOCK_D, BLOCK_Q), tl.float32)
    for first_k in range(0, N, BLOCK_K):
        offs_k = first_k + tl.arange(0, BLOCK_K)
        k = _load(qkv_ptr + C, offs_k, N, 3 * C, offs_d, hd)
        v = _load(qkv_ptr + 2 * C, offs_k, N, 3 * C, offs_d, hd)
        _, ds = _ds(
            q, k, v, do, o, lse, qkv_ptr, do_ptr, o_ptr, mask_ptr, seed_ptr, head, offs_q, offs_k, first_k, N, C, hd,
            scale, keep_scale, DROP, SITE, PRECISION, BLOCK_Q, BLOCK_K, BLOCK_D, SLICES,
        )  # fmt: skip
        dq = tl.dot(tl.trans(k), ds.to(k.dtype), dq, input_precision=PRECISION)
    _store_transposed(dqkv_ptr + b * N * 3 * C + h * hd, dq * scale, offs_q, N, 3 * C, offs_d, hd)


def _grid(heads, N, config, block):
    return (heads * triton.cdiv(N, config[block]) * config["SLICES"],)


def _padded(x, head_dim):
    """x (M, heads * hd), with zeros behind each head up to a multiple of 16 channels: else every number is loaded alone, and
    the addresses spill."""
    return F.pad(x.view(x.shape[0], -1, head_dim), (0, -head_dim % 16)).flatten(1) if head_dim % 16 else x


def _cut(x, head_dim):
    """What _padded was given."""
    return x.view(x.shape[0], -1, head_dim + -head_dim % 16)[..., :head_dim].flatten(1) if head_dim % 16 else x


def attention_forward(qkv, B, N, heads, mask, p, seed):
    """o (B * N, C) and lse (B, nh, N) of a contiguous qkv (B * N, 3C)."""
    head_dim = qkv.shape[1] // (3 * heads)
    qkv = _padded(qkv, head_dim)
    C = qkv.shape[1] // 3
    o, lse = qkv.new_empty(B * N, C), qkv.new_empty(B, heads, N, dtype=torch.float32)
    if B > 0:
        config = _config("forward", qkv, N, C // heads, p, mask)
        attention_forward_kernel[_grid(B * heads, N, config, "BLOCK_Q")](
            qkv, mask, seed, o, lse, N, C, heads, C // heads, head_dim**-0.5, keep_scale(p),
            DROP=threshold(p), SITE=philox.ATTENTION, ONE_BLOCK=config["BLOCK_K"] >= N, PRECISION=precision(), **config,
        )  # fmt: skip
    return _cut(o, head_dim), lse


def attention_backward(do, qkv, B, N, heads, mask, p, seed, o, lse):
    """dqkv (B * N, 3C); do (B * N, C) contiguous."""
    head_dim = o.shape[1] // heads
    do, qkv, o = (_padded(t, head_dim) for t in (do, qkv, o))
    C = o.shape[1]
    dqkv = torch.empty_like(qkv)
    if B > 0:
        config = _config("backward", qkv, N, C // heads, p, mask)
        one_block = config["BLOCK_K"] >= N and config["SLICES"] == 1
        arguments = do, qkv, mask, seed, o, lse, dqkv, N, C, heads, C // heads, head_dim**-0.5, keep_scale(p)
        flags = {"DROP": threshold(p), "SITE": philox.ATTENTION, "PRECISION": precision()}
        attention_backward_kernel[_grid(B * heads, N, config, "BLOCK_K")](*arguments, **flags, ONE_BLOCK=one_block, **config)
        if not one_block:
            config = _config("backward_dq", qkv, N, C // heads, p, mask)
            attention_backward_dq_kernel[_grid(B * heads, N, config, "BLOCK_Q")](*arguments, **flags, **config)
    return _cut(dqkv, head_dim)
