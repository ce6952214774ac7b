"""Everything between the attention cores of two layers, in Triton: one kernel forward and one backward for each layer.

A row of the stream needs no other row there, so a program takes some rows the whole way. With s drop-path, d dropout:

    mid = x + s d(o Wproj^T + b)        y = LN1(mid)        out = y + s d(fc2(d(gelu(fc1(y)))))        qkv = LN(out) Wqkv^T

where LN and Wqkv belong to the next layer and are absent behind the last. Backward makes the gradients of the rows; those of
the weights are products over all rows (linear.weight_gradient), which read the h and da that it leaves behind:

    dout = dnext + LN'(dqkv Wqkv)       da = s d(d(dout) W2) gelu'(fc1(y))       dmid = LN1'(dout + da W1)
    do = s d(dmid) Wproj

Tiles are transposed, (columns, rows): then the weights are the left operands and the rows the right ones, and Hopper's tensor
cores read both from shared memory. As left operands the rows would pass through registers, which are full of sums.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .. import philox
from . import launch
from .dropout import keep, threshold
from .linear import Norm, keep_scale, precision, sum_norm_partials, vector


@triton.jit
def _row(ptr, row, width):
    """Where a row of a matrix begins: the offsets within a program's rows then need 32 bits only."""
    return ptr + row.to(tl.int64) * width


@triton.jit
def _load(ptr, offs_m, mask_m, stride, offs_n, N):
    """(columns offs_n, rows offs_m) of a (M, N) matrix, 0 outside."""
    mask = (offs_n < N)[:, None] & mask_m[None, :]
    return tl.load(ptr + offs_m[None, :] * stride + offs_n[:, None], mask=mask, other=0.0)


@triton.jit
def _store(ptr, value, offs_m, mask_m, offs_n, N):
    mask = (offs_n < N)[:, None] & mask_m[None, :]
    tl.store(ptr + offs_m[None, :] * N + offs_n[:, None], value.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def _weight(w_ptr, offs_n, N, offs_k, K, stride_n, stride_k):
    """(offs_n, offs_k) of a weight (N, K) that lies at stride_n, stride_k."""
    mask = (offs_n < N)[:, None] & (offs_k < K)[None, :]
    return tl.load(w_ptr + offs_n[:, None] * stride_n + offs_k[None, :] * stride_k, mask=mask, other=0.0)


@triton.jit
def _product_before(w, x, M, PRECISION: tl.constexpr):
    """w x, when another product in the same loop takes the result.

    Triton would give both one layout, with all warps along the first dimension; where that is shorter, some compute the same
    again. Behind a condition, which always holds, it does not see the second product.
    """
    acc = tl.zeros((w.shape[0], x.shape[1]), tl.float32)
    if M > 0:
        acc = tl.dot(w, x, input_precision=PRECISION)
    return acc


@triton.jit
def _statistics(x, mask, C, eps):
    mean = tl.sum(x, 0) / C
    centred = tl.where(mask, x - mean[None, :], 0.0)
    return mean, tl.rsqrt(tl.sum(centred * centred, 0) / C + eps)


@triton.jit
def _normalised(x, mask, mean, rstd):
    return tl.where(mask, (x - mean[None, :]) * rstd[None, :], 0.0)


@triton.jit
def _affine(xhat, weight_ptr, bias_ptr, offs_c, C):
    return xhat * vector(weight_ptr, offs_c, C)[:, None] + vector(bias_ptr, offs_c, C)[:, None]


@triton.jit
def _saved_norm(x_ptr, mean_ptr, rstd_ptr, offs_m, mask_m, offs_c, C):
    """rstd, and (x - mean) rstd."""
    mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
    rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
    x = _load(x_ptr, offs_m, mask_m, C, offs_c, C).to(tl.float32)
    return rstd, _normalised(x, (offs_c < C)[:, None], mean, rstd)


@triton.jit
def _drop(x, seed_ptr, rows, first_column, keep_scale, SITE: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr):
    if DROP > 0:
        x = tl.where(tl.trans(keep(seed_ptr, SITE, rows, first_column, DROP, BLOCK)), x * keep_scale, 0.0)
    return x


@triton.jit
def _scale(scale_ptr, rows, tokens):
    """The drop-path factor of each row, (1, rows)."""
    s = tl.full((1, rows.shape[0]), 1.0, tl.float32)
    if scale_ptr is not None:
        s = tl.load(scale_ptr + rows // tokens).to(tl.float32)[None, :]
    return s


@triton.jit
def _gelu(x):
    """gelu(x) and gelu'(x), to 1e-6: erf by Abramowitz and Stegun 7.1.26, without the branches of tl.erf."""
    e = tl.exp(-0.5 * x * x)
    k = 1.0 / (1.0 + 0.23164190 * tl.abs(x))
    tail = k * (0.127414796 + k * (-0.142248368 + k * (0.7107068705 + k * (-0.7265760135 + k * 0.5307027145)))) * e
    cdf = tl.where(x < 0.0, tail, 1.0 - tail)
    return x * cdf, cdf + x * 0.3989422804014327 * e


@triton.jit
def row_segment_forward_kernel(
    o_ptr, x_ptr, proj_weight_ptr, proj_bias_ptr, norm1_weight_ptr, norm1_bias_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr,
    norm_weight_ptr, norm_bias_ptr, qkv_weight_ptr, scale_ptr, mlp_scale_ptr, seed_ptr, mlp_seed_ptr,
    mid_ptr, out_ptr, qkv_ptr, mean1_ptr, rstd1_ptr, mean_ptr, rstd_ptr, M, C, F, tokens, eps, keep_scale,
    DROP: tl.constexpr, PROJECTION: tl.constexpr, HIDDEN: tl.constexpr, OUTPUT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * BLOCK_M
    offs_m, offs_c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C)
    mask_m, mask_c = offs_m < M - first, (offs_c < C)[:, None]
    rows = tl.where(mask_m, first + offs_m, 0)
    o_ptr, x_ptr, out_ptr = _row(o_ptr, first, C), _row(x_ptr, first, C), _row(out_ptr, first, C)
    if mid_ptr is not None:
        mid_ptr = _row(mid_ptr, first, C)
    if qkv_ptr is not None:
        qkv_ptr = _row(qkv_ptr, first, 3 * C)
    if mean1_ptr is not None:
        mean1_ptr, rstd1_ptr = _row(mean1_ptr, first, 1), _row(rstd1_ptr, first, 1)
    if mean_ptr is not None:
        mean_ptr, rstd_ptr = _row(mean_ptr, first, 1), _row(rstd_ptr, first, 1)

    z = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    for k in range(0, C, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        w = _weight(proj_weight_ptr, offs_c, C, offs_k, C, C, 1)
        z = tl.dot(w, _load(o_ptr, offs_m, mask_m, C, offs_k, C), z, input_precision=PRECISION)
    z = _drop(z + vector(proj_bias_ptr, offs_c, C)[:, None], seed_ptr, rows, 0, keep_scale, PROJECTION, DROP, BLOCK_C)
    mid = _load(x_ptr, offs_m, mask_m, C, offs_c, C).to(tl.float32) + _scale(scale_ptr, rows, tokens) * z
    mid = mid.to(out_ptr.dtype.element_ty)
    if mid_ptr is not None:
        _store(mid_ptr, mid, offs_m, mask_m, offs_c, C)
    mid = mid.to(tl.float32)
    mean, rstd = _statistics(mid, mask_c, C, eps)
    if mean1_ptr is not None:
        tl.store(mean1_ptr + offs_m, mean, mask=mask_m)
        tl.store(rstd1_ptr + offs_m, rstd, mask=mask_m)

    acc = _affine(_normalised(mid, mask_c, mean, rstd), norm1_weight_ptr, norm1_bias_ptr, offs_c, C)
    y = acc.to(w1_ptr.dtype.element_ty)
    s = _scale(mlp_scale_ptr, rows, tokens)
    if DROP > 0:
        acc = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
    else:  # out = y + s (h W2 + b2) = (y + s b2) + (s h) W2: the sums start at the residual, and nothing is left behind them
        acc += vector(b2_ptr, offs_c, C)[:, None] * s
    for f in range(0, F, BLOCK_F):
        offs_f = f + tl.arange(0, BLOCK_F)
        h = _product_before(_weight(w1_ptr, offs_f, F, offs_c, C, C, 1), y, M, PRECISION)
        h, _ = _gelu(h + vector(b1_ptr, offs_f, F)[:, None])
        if DROP > 0:
            h = _drop(h, mlp_seed_ptr, rows, f, keep_scale, HIDDEN, DROP, BLOCK_F)
        else:
            h *= s
        w2 = _weight(w2_ptr, offs_c, C, offs_f, F, F, 1)
        acc = tl.dot(w2, h.to(w2.dtype), acc, input_precision=PRECISION)
    if DROP > 0:
        tl.debug_barrier()  # mid comes back from memory, where other threads of the program put it
        mid = _load(mid_ptr, offs_m, mask_m, C, offs_c, C).to(tl.float32)
        mean, rstd = _statistics(mid, mask_c, C, eps)
        y = _affine(_normalised(mid, mask_c, mean, rstd), norm1_weight_ptr, norm1_bias_ptr, offs_c, C)
        z = acc + vector(b2_ptr, offs_c, C)[:, None]
        acc = y + s * _drop(z, mlp_seed_ptr, rows, 0, keep_scale, OUTPUT, DROP, BLOCK_C)
    acc = acc.to(out_ptr.dtype.element_ty)
    _store(out_ptr, acc, offs_m, mask_m, offs_c, C)

    if qkv_ptr is not None:
        acc = acc.to(tl.float32)
        mean, rstd = _statistics(acc, mask_c, C, eps)
        if mean_ptr is not None:
            tl.store(mean_ptr + offs_m, mean, mask=mask_m)
            tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)
        acc = _affine(_normalised(acc, mask_c, mean, rstd), norm_weight_ptr, norm_bias_ptr, offs_c, C)
        y = acc.to(qkv_weight_ptr.dtype.element_ty)
        for n in range(0, 3 * C, BLOCK_F):
            offs_n = n + tl.arange(0, BLOCK_F)
            qkv = tl.dot(_weight(qkv_weight_ptr, offs_n, 3 * C, offs_c, C, C, 1), y, input_precision=PRECISION)
            _store(qkv_ptr, qkv, offs_m, mask_m, offs_n, 3 * C)


@triton.jit
def _layernorm_gradient(dy, xhat, rstd, weight_ptr, partial_ptr, offs_c, C):
    """dx of y = LN(x); the sums of dy xhat and dy over the rows, shares of weight and bias, go to partial_ptr (2, C)."""
    tl.store(partial_ptr + offs_c, tl.sum(dy * xhat, 1), mask=offs_c < C)
    tl.store(partial_ptr + C + offs_c, tl.sum(dy, 1), mask=offs_c < C)
    dy *= vector(weight_ptr, offs_c, C)[:, None]
    return rstd[None, :] * (dy - (tl.sum(dy, 0) / C)[None, :] - xhat * (tl.sum(dy * xhat, 0) / C)[None, :])


@triton.jit
def row_segment_backward_kernel(
    dqkv_ptr, dnext_ptr, x_ptr, mid_ptr, norm_weight_ptr, qkv_weight_ptr, norm1_weight_ptr, norm1_bias_ptr,
    w1_ptr, b1_ptr, w2_ptr, proj_weight_ptr, scale_ptr, mlp_scale_ptr,
    mean_ptr, rstd_ptr, mean1_ptr, rstd1_ptr, dout_ptr, h_ptr, da_ptr, dmid_ptr, do_ptr, partial_ptr, partial1_ptr,
    M, C, F, tokens, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """x is the stream behind the layer. partial, partial1 (programs, 2, C): shares of the weight and bias of LN and of LN1."""
    pid = tl.program_id(0)
    first = pid * BLOCK_M
    offs_m, offs_c = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_C)
    mask_m = offs_m < M - first
    rows = tl.where(mask_m, first + offs_m, 0)
    dnext_ptr, mid_ptr, dmid_ptr = _row(dnext_ptr, first, C), _row(mid_ptr, first, C), _row(dmid_ptr, first, C)
    h_ptr, da_ptr, do_ptr = _row(h_ptr, first, F), _row(da_ptr, first, F), _row(do_ptr, first, C)
    mean1_ptr, rstd1_ptr = _row(mean1_ptr, first, 1), _row(rstd1_ptr, first, 1)

    if dqkv_ptr is None:
        dout = _load(dnext_ptr, offs_m, mask_m, C, offs_c, C).to(tl.float32)
    else:
        dqkv_ptr, x_ptr, dout_ptr = _row(dqkv_ptr, first, 3 * C), _row(x_ptr, first, C), _row(dout_ptr, first, C)
        mean_ptr, rstd_ptr = _row(mean_ptr, first, 1), _row(rstd_ptr, first, 1)
        dy = tl.zeros((BLOCK_C, BLOCK_M), tl.float32)
        for k in range(0, 3 * C, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            w = tl.trans(_weight(qkv_weight_ptr, offs_k, 3 * C, offs_c, C, C, 1))
            dy = tl.dot(w, _load(dqkv_ptr, offs_m, mask_m, 3 * C, offs_k, 3 * C), dy, input_precision=PRECISION)
        rstd, xhat = _saved_norm(x_ptr, mean_ptr, rstd_ptr, offs_m, mask_m, offs_c, C)
        dx = _layernorm_gradient(dy, xhat, rstd, norm_weight_ptr, _row(partial_ptr, pid, 2 * C), offs_c, C)
        dout = _load(dnext_ptr, offs_m, mask_m, C, offs_c, C).to(tl.float32) + dx
        dout = dout.to(dout_ptr.dtype.element_ty)
        _store(dout_ptr, dout, offs_m, mask_m, offs_c, C)
        dout = dout.to(tl.float32)

    rstd, xhat = _saved_norm(mid_ptr, mean1_ptr, rstd1_ptr, offs_m, mask_m, offs_c, C)
    y = _affine(xhat, norm1_weight_ptr, norm1_bias_ptr, offs_c, C).to(w1_ptr.dtype.element_ty)
    # the drop-path factors are left to the narrower products
    dz = dout.to(w2_ptr.dtype.element_ty)
    dy = dout
    for f in range(0, F, BLOCK_F):
        offs_f = f + tl.arange(0, BLOCK_F)
        w1 = _weight(w1_ptr, offs_f, F, offs_c, C, C, 1)
        h, gradient = _gelu(_product_before(w1, y, M, PRECISION) + vector(b1_ptr, offs_f, F)[:, None])
        da = _product_before(tl.trans(_weight(w2_ptr, offs_c, C, offs_f, F, F, 1)), dz, M, PRECISION)
        da *= _scale(mlp_scale_ptr, rows, tokens) * gradient
        da = da.to(da_ptr.dtype.element_ty)
        _store(h_ptr, h, offs_m, mask_m, offs_f, F)
        _store(da_ptr, da, offs_m, mask_m, offs_f, F)
        dy = tl.dot(tl.trans(w1), da, dy, input_precision=PRECISION)
    # again, from the cache: the registers were full
    rstd, xhat = _saved_norm(mid_ptr, mean1_ptr, rstd1_ptr, offs_m, mask_m, offs_c, C)
    dmid = _layernorm_gradient(dy, xhat, rstd, norm1_weight_ptr, _row(partial1_ptr, pid, 2 * C), offs_c, C)
    _store(dmid_ptr, dmid, offs_m, mask_m, offs_c, C)

    dz = dmid.to(proj_weight_ptr.dtype.element_ty)
    for n in range(0, C, BLOCK_F):
        offs_n = n + tl.arange(0, BLOCK_F)
        w = tl.trans(_weight(proj_weight_ptr, offs_c, C, offs_n, C, C, 1))
        do = tl.dot(w, dz, input_precision=PRECISION) * _scale(scale_ptr, rows, tokens)
        _store(do_ptr, do, offs_m, mask_m, offs_n, C)


class Config(NamedTuple):
    """Of a launch: rows, columns of the hidden layer or of qkv at a time, of the other summed dimensions; warps, stages."""

    rows: int
    hidden: int
    k: int
    warps: int
    stages: int

    def constants(self, C):
        """What a launch of a kernel of this file takes them as."""
        block_c = max(64, triton.next_power_of_2(C))
        blocks = {"BLOCK_M": self.rows, "BLOCK_C": block_c, "BLOCK_F": self.hidden, "BLOCK_K": self.k}
        return blocks | {"num_warps": self.warps, "num_stages": self.stages}


# Kind of pass -> largest C -> Config. Chosen so that nothing spills; not yet timed on any GPU. Ampere's tensor cores take
# their operands from registers, which do not hold whole rows; float32 has none without tf32; wider rows leave room for so few
# at a time that reading the weights for them costs more than is saved: there the products one by one are the way.
BYTES = (2,)  # of a number of the products
_HOPPER = {
    "forward": {128: Config(128, 64, 64, 8, 2), 256: Config(64, 64, 64, 8, 2)},
    "forward_dropout": {128: Config(16, 64, 64, 8, 2)},
    "backward": {128: Config(32, 64, 64, 8, 2), 256: Config(32, 64, 32, 8, 2)},
}
_BLACKWELL = {
    "forward": {128: Config(64, 64, 64, 8, 2), 256: Config(32, 64, 64, 8, 2)},
    "backward": {128: Config(64, 64, 64, 8, 1)},
}
CONFIGS = {"sm_80": {}, "sm_86": {}, "sm_90": _HOPPER, "sm_100": _BLACKWELL}


def config(kind, x, compute, dropout):
    """The Config of a "forward" or "backward" pass over x (B, N, C), or None where the products one by one are the way."""
    B, N, C = x.shape
    table = CONFIGS[launch.architecture(x.device)]
    table = table.get(f"{kind}_dropout" if dropout > 0 else kind, {})
    found = next((config for most, config in table.items() if most >= C), None)
    if found is None or compute.itemsize not in BYTES or not launch.fills(triton.cdiv(B * N, found.rows), x.device):
        return None  # few rows: the products one by one divide the columns among programs too
    return found


def forward(config, o, x, block, following, dropout, scales, seeds, eps, keep):
    """o (B * N, C) of the attention core, x (B, N, C) -> mid, the statistics of LN1, out, those of the next LN, its qkv.

    block, following: the parameters of this layer and the next (None behind the last), weights in the dtype of the products.
    scales, seeds: of the attention and the MLP branch. What only backward needs is None without `keep`.
    """
    B, N, C = x.shape
    out = torch.empty_like(x)
    mid = torch.empty_like(x) if keep or dropout > 0 else None
    qkv = o.new_empty(B * N, 3 * C) if following else None
    mean1, rstd1, mean, rstd = (x.new_empty(B, N, dtype=torch.float32) if keep else None for _ in range(4))
    row_segment_forward_kernel[(triton.cdiv(B * N, config.rows),)](
        o, x, *block[3:], *(following[:3] if following else [None] * 3), *scales, *seeds,
        mid, out, qkv, mean1, rstd1, mean, rstd, B * N, C, block.fc1_weight.shape[0], N, eps, keep_scale(dropout),
        DROP=threshold(dropout), PROJECTION=philox.PROJECTION, HIDDEN=philox.HIDDEN, OUTPUT=philox.OUTPUT,
        PRECISION=precision(), **config.constants(C),
    )  # fmt: skip
    return mid, mean1, rstd1, out, mean, rstd, qkv


def backward(config, dqkv, dnext, x, norm, following, mid, norm1, block, scales):
    """dout, h, da, dmid, do, and the gradients (2, C) of the weight and bias of LN, or None, and of LN1.

    dqkv: of the layer behind, with its parameters `following`, its input x and the statistics `norm`; None behind the last,
    where dout is dnext. dnext: of the layer behind too, without the share that goes through its attention.
    """
    (B, N, C), F, compute = mid.shape, block.fc1_weight.shape[0], block.fc1_weight.dtype
    programs, first = triton.cdiv(B * N, config.rows), dqkv is None
    dout = dnext if first else torch.empty_like(mid)
    dmid, do = torch.empty_like(mid), mid.new_empty(B * N, C, dtype=compute)
    h, da = (mid.new_empty(B * N, F, dtype=compute) for _ in range(2))
    partial, partial1 = (mid.new_empty(0 if i else programs, 2, C, dtype=torch.float32) for i in (first, False))
    norm = norm or Norm(None, None, None, None)
    row_segment_backward_kernel[(programs,)](
        dqkv, dnext, x, mid, norm.weight, following.qkv_weight if following else None, norm1.weight, norm1.bias,
        block.fc1_weight, block.fc1_bias, block.fc2_weight, block.proj_weight, *scales,
        norm.mean, norm.rstd, norm1.mean, norm1.rstd, None if first else dout, h, da, dmid, do, partial, partial1,
        B * N, C, F, N, PRECISION=precision(), **config.constants(C),
    )  # fmt: skip
    dnorm = None if first else sum_norm_partials(partial, torch.float32)
    return dout, h, da, dmid, do, dnorm, sum_norm_partials(partial1, torch.float32)
