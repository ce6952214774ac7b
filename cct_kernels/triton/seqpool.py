"""SeqPool with the final LayerNorm folded in, in Triton.

With xhat = (x - mean) * rstd (or x without the norm), g the norm weight and b its bias, forward is one pass:

    score_n = xhat_n . (g w) + const        lse = log sum_n exp(score_n)        p_n = exp(score_n - lse)
    out     = g * sum_n p_n xhat_n + b

and backward two passes over x, the second of which finds it in the L2 cache. With t_n = xhat_n . (g dout):

    U = sum_n p_n xhat_n        D = U . (g dout)        ds_n = p_n (t_n - D)        V = sum_n p_n t_n xhat_n - D U
    dx_n = rstd_n (p_n (g dout) + ds_n (g w) - A_n - xhat_n E_n),  A and E the means that LayerNorm subtracts
    dw = sum_b g V        dg = sum_b dout U + w V        db = sum_b dout

A program owns one image, or one of SPLITS stretches of it when there are fewer images than multiprocessors. No atomics:
the partial sums of the stretches and of the images are added in a fixed order.
"""

import torch
import triton
import triton.language as tl

from .. import native
from . import launch

# Largest C of a shape class -> (tokens a step, warps). A step is 4096 numbers, 32 registers a thread of four warps.
_CONFIG = {64: (64, 4), 128: (32, 4), 256: (16, 4), 512: (8, 4), 1024: (4, 8), 2048: (4, 8), 4096: (2, 8)}
CONFIGS = {"sm_80": _CONFIG, "sm_86": _CONFIG, "sm_90": _CONFIG, "sm_100": _CONFIG | {2048: (2, 8)}}
_LONGEST = (1, 16)


def _config(C, device):
    table = CONFIGS[launch.architecture(device)]
    block_n, warps = next((config for most, config in table.items() if most >= C), _LONGEST)
    if C % 16:  # loads of single numbers: half the step, or their addresses spill
        block_n = triton.cdiv(block_n, 4)
    return {"BLOCK_N": block_n, "BLOCK_C": max(16, triton.next_power_of_2(C)), "num_warps": warps}


@triton.jit
def _vector(ptr, offs_c, C):
    return tl.load(ptr + offs_c, mask=offs_c < C, other=0.0).to(tl.float32)


@triton.jit
def seqpool_forward_kernel(
    x_ptr, weight_ptr, norm_weight_ptr, norm_bias_ptr, out_ptr, lse_ptr, mean_ptr, rstd_ptr, partial_ptr,
    stride_b, stride_n, N, C, chunk, eps,
    NORM: tl.constexpr, BIAS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    score_weight = _vector(weight_ptr, offs_c, C)
    if NORM:
        score_weight *= _vector(norm_weight_ptr, offs_c, C)

    m_i = -3.4028234e38  # finite: a score of -inf counts nothing
    l_i = 0.0
    acc = tl.zeros((BLOCK_C,), tl.float32)
    for n in range(split * chunk, tl.minimum((split + 1) * chunk, N), BLOCK_N):
        offs_n = n + tl.arange(0, BLOCK_N)
        mask_n = offs_n < N
        x_ptrs = x_ptr + b * stride_b + offs_n[:, None] * stride_n + offs_c[None, :]
        x = tl.load(x_ptrs, mask=mask_n[:, None] & mask_c[None, :], other=0.0).to(tl.float32)
        if NORM:
            mean = tl.sum(x, 1) / C
            x = tl.where(mask_c[None, :], x - mean[:, None], 0.0)
            rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
            x *= rstd[:, None]
            tl.store(mean_ptr + b * N + offs_n, mean, mask=mask_n)
            tl.store(rstd_ptr + b * N + offs_n, rstd, mask=mask_n)
        score = tl.where(mask_n, tl.sum(x * score_weight[None, :], 1), -float("inf"))
        m_new = tl.maximum(m_i, tl.max(score, 0))
        p = tl.exp(score - m_new)
        scale = tl.exp(m_i - m_new)
        acc = acc * scale + tl.sum(p[:, None] * x, 0)
        l_i = l_i * scale + tl.sum(p, 0)
        m_i = m_new

    if SPLITS == 1:
        _store_pooled(acc / l_i, norm_weight_ptr, norm_bias_ptr, out_ptr + b * C, offs_c, C, NORM, BIAS)
        tl.store(lse_ptr + b, m_i + tl.log(l_i))
    else:
        partial_ptr += (b * SPLITS + split) * (C + 2)
        tl.store(partial_ptr + offs_c, acc, mask=mask_c)
        tl.store(partial_ptr + C, m_i)
        tl.store(partial_ptr + C + 1, l_i)


@triton.jit
def _store_pooled(
    pooled, norm_weight_ptr, norm_bias_ptr, out_ptr, offs_c, C, NORM: tl.constexpr, BIAS: tl.constexpr
):  # fmt: skip
    if NORM:
        pooled *= _vector(norm_weight_ptr, offs_c, C)
    if BIAS:
        pooled += _vector(norm_bias_ptr, offs_c, C)
    tl.store(out_ptr + offs_c, pooled.to(out_ptr.dtype.element_ty), mask=offs_c < C)


@triton.jit
def seqpool_forward_combine_kernel(
    partial_ptr, norm_weight_ptr, norm_bias_ptr, out_ptr, lse_ptr, C,
    NORM: tl.constexpr, BIAS: tl.constexpr, SPLITS: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    offs_c = tl.arange(0, BLOCK_C)
    offs_s = tl.arange(0, BLOCK_S)
    partial_ptr += b * SPLITS * (C + 2)
    m_i = tl.load(partial_ptr + offs_s * (C + 2) + C, mask=offs_s < SPLITS, other=-float("inf"))
    l_i = tl.load(partial_ptr + offs_s * (C + 2) + C + 1, mask=offs_s < SPLITS, other=0.0)
    m = tl.max(m_i, 0)
    length = tl.sum(l_i * tl.exp(m_i - m), 0)
    acc = tl.zeros((BLOCK_C,), tl.float32)
    for split in range(SPLITS):
        scale = tl.exp(tl.load(partial_ptr + split * (C + 2) + C) - m) / length
        acc += scale * _vector(partial_ptr + split * (C + 2), offs_c, C)
    _store_pooled(acc, norm_weight_ptr, norm_bias_ptr, out_ptr + b * C, offs_c, C, NORM, BIAS)
    tl.store(lse_ptr + b, m + tl.log(length))


@triton.jit
def _tokens(
    x_ptr, mean_ptr, rstd_ptr, offs_n, offs_c, stride_n, N, C, score_weight, gout, lse, NORM: tl.constexpr
):  # fmt: skip
    """xhat (BLOCK_N, BLOCK_C), rstd, score, p and t (BLOCK_N) of a step; rows behind N have p = 0."""
    mask_n = offs_n < N
    mask = mask_n[:, None] & (offs_c < C)[None, :]
    x = tl.load(x_ptr + offs_n[:, None] * stride_n + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
    rstd = tl.full(offs_n.shape, 1.0, tl.float32)
    if NORM:
        mean = tl.load(mean_ptr + offs_n, mask=mask_n, other=0.0)
        rstd = tl.load(rstd_ptr + offs_n, mask=mask_n, other=0.0)
        x = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
    score = tl.sum(x * score_weight[None, :], 1)
    p = tl.where(mask_n, tl.exp(score - lse), 0.0)
    return x, rstd, score, p, tl.sum(x * gout[None, :], 1)


@triton.jit
def seqpool_backward_kernel(
    dout_ptr, x_ptr, weight_ptr, norm_weight_ptr, lse_ptr, mean_ptr, rstd_ptr, dx_ptr, partial_ptr, uv_ptr,
    stride_b, stride_n, N, C, chunk,
    NORM: tl.constexpr, SUMS: tl.constexpr, DX: tl.constexpr, SPLITS: tl.constexpr,
    BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """SUMS: the first pass, U and sum p t xhat. DX: the second. Both in one launch if SPLITS is 1, else in two."""
    b = tl.program_id(0).to(tl.int64)
    split = tl.program_id(1)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    score_weight = _vector(weight_ptr, offs_c, C)
    gout = _vector(dout_ptr + b * C, offs_c, C)
    if NORM:
        norm_weight = _vector(norm_weight_ptr, offs_c, C)
        score_weight *= norm_weight
        gout *= norm_weight
    lse = tl.load(lse_ptr + b)
    x_ptr += b * stride_b
    dx_ptr += b * N * C
    mean_ptr += b * N
    rstd_ptr += b * N
    partial_ptr += b * SPLITS * 2 * C
    first = split * chunk
    last = tl.minimum(first + chunk, N)

    U = tl.zeros((BLOCK_C,), tl.float32)
    W = tl.zeros((BLOCK_C,), tl.float32)
    if SUMS:
        for n in range(first, last, BLOCK_N):
            offs_n = n + tl.arange(0, BLOCK_N)
            xhat, rstd, score, p, t = _tokens(
                x_ptr, mean_ptr, rstd_ptr, offs_n, offs_c, stride_n, N, C, score_weight, gout, lse, NORM
            )
            U += tl.sum(p[:, None] * xhat, 0)
            W += tl.sum((p * t)[:, None] * xhat, 0)
        if SPLITS > 1:
            tl.store(partial_ptr + split * 2 * C + offs_c, U, mask=mask_c)
            tl.store(partial_ptr + (split * 2 + 1) * C + offs_c, W, mask=mask_c)
    if DX:
        if SPLITS > 1:
            for s in range(SPLITS):
                U += _vector(partial_ptr + s * 2 * C, offs_c, C)
                W += _vector(partial_ptr + (s * 2 + 1) * C, offs_c, C)
        D = tl.sum(U * gout, 0)
        if split == 0:
            tl.store(uv_ptr + b * 2 * C + offs_c, U, mask=mask_c)
            tl.store(uv_ptr + (b * 2 + 1) * C + offs_c, W - D * U, mask=mask_c)
        mean_gout = tl.sum(gout, 0) / C
        mean_score_weight = tl.sum(score_weight, 0) / C
        for n in range(first, last, BLOCK_N):
            offs_n = n + tl.arange(0, BLOCK_N)
            xhat, rstd, score, p, t = _tokens(
                x_ptr, mean_ptr, rstd_ptr, offs_n, offs_c, stride_n, N, C, score_weight, gout, lse, NORM
            )
            ds = p * (t - D)
            dx = p[:, None] * gout[None, :] + ds[:, None] * score_weight[None, :]
            if NORM:
                A = p * mean_gout + ds * mean_score_weight
                E = (p * t + ds * score) / C
                dx = rstd[:, None] * (dx - A[:, None] - xhat * E[:, None])
            dx_ptrs = dx_ptr + offs_n[:, None] * C + offs_c[None, :]
            tl.store(dx_ptrs, dx.to(dx_ptr.dtype.element_ty), mask=(offs_n < N)[:, None] & mask_c[None, :])


@triton.jit
def seqpool_backward_parameters_kernel(
    dout_ptr, uv_ptr, weight_ptr, norm_weight_ptr, dweight_ptr, dnorm_weight_ptr, dnorm_bias_ptr, B, C,
    NORM: tl.constexpr, BIAS: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The sums over the images, for BLOCK_C channels."""
    offs_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    V_sum = tl.zeros((BLOCK_C,), tl.float32)
    dU_sum = tl.zeros((BLOCK_C,), tl.float32)
    dout_sum = tl.zeros((BLOCK_C,), tl.float32)
    for b in range(0, B, BLOCK_B):
        offs_b = b + tl.arange(0, BLOCK_B).to(tl.int64)
        mask = (offs_b < B)[:, None] & mask_c[None, :]
        uv_ptrs = uv_ptr + offs_b[:, None] * 2 * C + offs_c[None, :]
        V_sum += tl.sum(tl.load(uv_ptrs + C, mask=mask, other=0.0), 0)
        if NORM:
            dout = tl.load(dout_ptr + offs_b[:, None] * C + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
            dU_sum += tl.sum(dout * tl.load(uv_ptrs, mask=mask, other=0.0), 0)
            dout_sum += tl.sum(dout, 0)
    dweight = V_sum
    if NORM:
        dweight *= _vector(norm_weight_ptr, offs_c, C)
        dnorm_weight = dU_sum + _vector(weight_ptr, offs_c, C) * V_sum
        tl.store(dnorm_weight_ptr + offs_c, dnorm_weight.to(dnorm_weight_ptr.dtype.element_ty), mask=mask_c)
    if BIAS:
        tl.store(dnorm_bias_ptr + offs_c, dout_sum.to(dnorm_bias_ptr.dtype.element_ty), mask=mask_c)
    tl.store(dweight_ptr + offs_c, dweight.to(dweight_ptr.dtype.element_ty), mask=mask_c)


@launch.operator("seqpool_forward" + native.OPS["seqpool_forward"], torch.ops.cct_kernels.seqpool_forward)
def forward(x, weight, norm_weight, norm_bias, eps):
    B, N, C = x.shape
    norm = norm_weight is not None
    f32 = {"dtype": torch.float32}
    out, lse = x.new_empty(B, C), x.new_empty(B, **f32)
    mean, rstd = (x.new_empty(B if norm else 0, N, **f32) for _ in range(2))
    if B == 0:
        return out, lse, mean, rstd
    x, weight, norm_weight, norm_bias = launch.narrow(x, rows=True), *_contiguous(weight, norm_weight, norm_bias)
    config = _config(C, x.device)
    parts, steps = launch.splits(triton.cdiv(N, config["BLOCK_N"]), B, x.device)
    partial = x.new_empty(B, parts, C + 2, **f32) if parts > 1 else lse
    flags = {"NORM": norm, "BIAS": norm_bias is not None, "SPLITS": parts}
    seqpool_forward_kernel[(B, parts)](
        x, weight, norm_weight, norm_bias, out, lse, mean, rstd, partial,
        x.stride(0), x.stride(1), N, C, steps * config["BLOCK_N"], eps, **flags, **config,
    )  # fmt: skip
    if parts > 1:
        seqpool_forward_combine_kernel[(B,)](
            partial, norm_weight, norm_bias, out, lse, C, **flags,
            BLOCK_S=triton.next_power_of_2(parts), BLOCK_C=config["BLOCK_C"], num_warps=config["num_warps"],
        )  # fmt: skip
    return out, lse, mean, rstd


@launch.operator("seqpool_backward" + native.OPS["seqpool_backward"], torch.ops.cct_kernels.seqpool_backward)
def backward(dout, x, weight, norm_weight, norm_bias, lse, mean, rstd):
    B, N, C = x.shape
    norm = norm_weight is not None
    dx, dweight = x.new_empty(B, N, C), x.new_empty(1, C)
    dnorm_weight, dnorm_bias = (x.new_empty(0 if t is None else C) for t in (norm_weight, norm_bias))
    dout, weight, norm_weight, norm_bias = _contiguous(dout, weight, norm_weight, norm_bias)
    uv = x.new_empty(B, 2, C, dtype=torch.float32)
    if B > 0:
        x, config = launch.narrow(x, rows=True), _config(C, x.device)
        parts, steps = launch.splits(triton.cdiv(N, config["BLOCK_N"]), B, x.device)
        partial = x.new_empty(B, parts, 2, C, dtype=torch.float32) if parts > 1 else uv
        for sums, use in [(True, True)] if parts == 1 else [(True, False), (False, True)]:
            seqpool_backward_kernel[(B, parts)](
                dout, x, weight, norm_weight, lse, mean, rstd, dx, partial, uv,
                x.stride(0), x.stride(1), N, C, steps * config["BLOCK_N"],
                NORM=norm, SUMS=sums, DX=use, SPLITS=parts, **config,
            )  # fmt: skip
    block_c = min(16, triton.next_power_of_2(C))
    seqpool_backward_parameters_kernel[(triton.cdiv(C, block_c),)](
        dout, uv, weight, norm_weight, dweight, dnorm_weight, dnorm_bias, B, C,
        NORM=norm, BIAS=norm_bias is not None, BLOCK_B=128, BLOCK_C=block_c, num_warps=4,
    )  # fmt: skip
    return dx, dweight, dnorm_weight, dnorm_bias


def _contiguous(*tensors):
    return [t if t is None else t.contiguous() for t in tensors]
