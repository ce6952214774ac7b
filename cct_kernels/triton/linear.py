"""Matrix products with what stands before and after them in a layer, in Triton: the parts of which the ops are made.

    linear              out = epilogue(prologue(a) W^T)
    weight_gradient     dW  = g^T a, db = sum g, with the same prologues, split over the rows and added in a fixed order
    layernorm_backward  dx of y = LN(x), and the gradients of its weight and bias

Prologues: LayerNorm (the statistics are computed on the way), or the branch gradient s * keep(dout) of drop-path and dropout.
Epilogues: bias, GELU or its backward, dropout, drop-path, residual x or LN(x).

Products are in the dtype of W with float32 sums; everything else is float32. Rows are counted over batch and tokens together.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from . import launch
from .dropout import keep, threshold

# Bytes a number of the product takes -> (BLOCK_M, BLOCK_N, BLOCK_K, warps, stages) and registers (launch.options). In `linear`
# blocks are rows, columns and the summed dimension; in `weight` the rows, summed over, and the two dimensions of the weight.
# `rich` products hold a second tile (GELU backward) or make a mask, 64 columns at a time. Chosen so that nothing spills; not
# yet timed on any GPU.
_HALF = {
    "linear": (128, 128, 64, 8, 3),
    "rich": (128, 64, 64, 8, 3),
    "weight": (64, 128, 64, 4, 3),
    "weight_rich": (64, 64, 64, 4, 3),
}
_SINGLE = {
    "linear": (64, 64, 16, 8, 3),
    "rich": (32, 64, 64, 8, 2),
    "weight": (16, 64, 64, 8, 2),
    "weight_rich": (16, 64, 32, 8, 2),
}
CONFIGS = {
    "sm_80": {2: _HALF | {"linear": (128, 128, 32, 8, 4), "weight": (64, 128, 64, 8, 3)}, 4: _SINGLE},
    "sm_86": {2: _HALF | {"linear": (128, 128, 32, 8, 3), "weight": (32, 128, 64, 8, 3)}, 4: _SINGLE},
    "sm_90": {2: _HALF, 4: _SINGLE},
    "sm_100": {
        2: _HALF | {"weight_rich": (64, 64, 64, 8, 3)},
        4: _SINGLE | {"weight_rich": (16, 64, 32, 8, 1)},
    },
}
CHUNK = 64  # vectors that a program of sum_partials adds one behind the other when there are many
STEP = 2048  # numbers that a program of layernorm_backward holds at a time: 16 registers a thread


class Norm(NamedTuple):
    """LayerNorm of rows: (M,) statistics, to be written if it stands before the product; (C,) parameters or None."""

    mean: torch.Tensor
    rstd: torch.Tensor
    weight: torch.Tensor | None
    bias: torch.Tensor | None
    eps: float = 0.0


class Branch(NamedTuple):
    """s * drop(x): drop-path scale (B,) or None, and dropout of probability p with the mask of (seed, site)."""

    scale: torch.Tensor | None = None
    seed: torch.Tensor | None = None
    p: float = 0.0
    site: int = 0


@triton.jit
def gelu(x):
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_gradient(x):
    return 0.5 * (1.0 + tl.erf(x * 0.7071067811865476)) + x * 0.3989422804014327 * tl.exp(-0.5 * x * x)


@triton.jit
def vector(ptr, offs, size):
    return tl.load(ptr + offs, mask=offs < size, other=0.0).to(tl.float32)


@triton.jit
def affine(xhat, norm_weight_ptr, norm_bias_ptr, offs_c, C):
    if norm_weight_ptr is not None:
        xhat *= vector(norm_weight_ptr, offs_c, C)[None, :]
    if norm_bias_ptr is not None:
        xhat += vector(norm_bias_ptr, offs_c, C)[None, :]
    return xhat


@triton.jit
def branch(
    x, scale_ptr, seed_ptr, rows, first_column, tokens, keep_scale, SITE: tl.constexpr, DROP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """s * drop(x): of a branch in forward, of its incoming gradient in backward."""
    if DROP > 0:
        x = tl.where(keep(seed_ptr, SITE, rows, first_column, DROP, BLOCK), x * keep_scale, 0.0)
    if scale_ptr is not None:
        x *= tl.load(scale_ptr + rows // tokens).to(tl.float32)[:, None]
    return x


@triton.jit
def _statistics(x_ptr, stride, offs_m, mask_m, C, eps, BLOCK_M: tl.constexpr, BLOCK_K: tl.constexpr):
    """mean and rstd of BLOCK_M rows, in two passes over them."""
    x_ptrs = x_ptr + offs_m[:, None] * stride
    total = tl.zeros((BLOCK_M,), tl.float32)
    for c in range(0, C, BLOCK_K):
        offs_c = c + tl.arange(0, BLOCK_K)
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask_m[:, None] & (offs_c < C)[None, :], other=0.0)
        total += tl.sum(x.to(tl.float32), 1)
    mean = total / C
    total = tl.zeros((BLOCK_M,), tl.float32)
    for c in range(0, C, BLOCK_K):
        offs_c = c + tl.arange(0, BLOCK_K)
        mask = mask_m[:, None] & (offs_c < C)[None, :]
        x = tl.load(x_ptrs + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        x = tl.where(mask, x - mean[:, None], 0.0)
        total += tl.sum(x * x, 1)
    return mean, tl.rsqrt(total / C + eps)


@triton.jit
def linear_kernel(
    a_ptr, w_ptr, bias_ptr, out_ptr, hidden_ptr, residual_ptr, mean_ptr, rstd_ptr, norm_weight_ptr, norm_bias_ptr,
    scale_in_ptr, scale_out_ptr, seed_ptr,
    M, N, K, tokens, stride_a, stride_wn, stride_wk, stride_residual, eps, keep_scale,
    NORM: tl.constexpr, ACTIVATION: tl.constexpr, SITE_IN: tl.constexpr, DROP_IN: tl.constexpr, SITE_OUT: tl.constexpr,
    DROP_OUT: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """NORM: "none", or whether "input" or "residual" is normalised. ACTIVATION: "none", "gelu", "gelu_backward"."""
    pid = tl.program_id(0)
    blocks_n = tl.cdiv(N, BLOCK_N)
    first_n = pid % blocks_n * BLOCK_N
    offs_m = (pid // blocks_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = first_n + tl.arange(0, BLOCK_N)
    mask_m, mask_n = offs_m < M, offs_n < N
    rows = tl.where(mask_m, offs_m, 0)  # a row behind the last one reads the statistics and the sample of the first
    if NORM == "input":
        mean, rstd = _statistics(a_ptr, stride_a, offs_m, mask_m, K, eps, BLOCK_M, BLOCK_K)
        if first_n == 0:
            tl.store(mean_ptr + offs_m, mean, mask=mask_m)
            tl.store(rstd_ptr + offs_m, rstd, mask=mask_m)

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        offs_k = k + tl.arange(0, BLOCK_K)
        mask_k = offs_k < K
        a_ptrs = a_ptr + offs_m[:, None] * stride_a + offs_k[None, :]
        a = tl.load(a_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        if NORM == "input":
            a = (a.to(tl.float32) - mean[:, None]) * rstd[:, None]
            a = affine(a, norm_weight_ptr, norm_bias_ptr, offs_k, K)
        if DROP_IN > 0 or scale_in_ptr is not None:
            a = branch(a.to(tl.float32), scale_in_ptr, seed_ptr, rows, k, tokens, keep_scale, SITE_IN, DROP_IN, BLOCK_K)
        w_ptrs = w_ptr + offs_n[None, :] * stride_wn + offs_k[:, None] * stride_wk
        w = tl.load(w_ptrs, mask=mask_n[None, :] & mask_k[:, None], other=0.0)
        acc = tl.dot(a.to(w.dtype), w, acc, input_precision=PRECISION)

    if bias_ptr is not None:
        acc += vector(bias_ptr, offs_n, N)[None, :]
    mask = mask_m[:, None] & mask_n[None, :]
    out_offs = offs_m[:, None] * N + offs_n[None, :]
    if ACTIVATION == "gelu":
        acc = gelu(acc)
    if ACTIVATION == "gelu_backward":  # hidden holds the pre-activations, and h = drop(gelu(.)) afterwards
        pre = tl.load(hidden_ptr + out_offs, mask=mask, other=0.0).to(tl.float32)
        h = branch(gelu(pre), None, seed_ptr, rows, first_n, tokens, keep_scale, SITE_OUT, DROP_OUT, BLOCK_N)
        tl.store(hidden_ptr + out_offs, h.to(hidden_ptr.dtype.element_ty), mask=mask)
        acc *= gelu_gradient(pre)
    acc = branch(acc, scale_out_ptr, seed_ptr, rows, first_n, tokens, keep_scale, SITE_OUT, DROP_OUT, BLOCK_N)
    if residual_ptr is not None:
        residual_ptrs = residual_ptr + offs_m[:, None] * stride_residual + offs_n[None, :]
        residual = tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)
        if NORM == "residual":
            residual = (residual - tl.load(mean_ptr + rows)[:, None]) * tl.load(rstd_ptr + rows)[:, None]
            residual = affine(residual, norm_weight_ptr, norm_bias_ptr, offs_n, N)
        acc += residual
    tl.store(out_ptr + out_offs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def weight_gradient_kernel(
    g_ptr, a_ptr, out_ptr, bias_out_ptr, mean_ptr, rstd_ptr, norm_weight_ptr, norm_bias_ptr, scale_ptr, seed_ptr,
    M, N, K, tokens, chunk, stride_g, stride_a, keep_scale,
    SITE: tl.constexpr, DROP: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[split] = branch(g)^T norm(a) over the rows of a split, and bias_out[split] = sum branch(g)."""
    pid = tl.program_id(0)
    split = tl.program_id(1).to(tl.int64)
    blocks_k = tl.cdiv(K, BLOCK_K)
    first_n = pid // blocks_k * BLOCK_N
    offs_n = first_n + tl.arange(0, BLOCK_N)
    offs_k = pid % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
    mask_n, mask_k = offs_n < N, offs_k < K
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    bias = tl.zeros((BLOCK_N,), tl.float32)
    for m in range(split * chunk, tl.minimum((split + 1) * chunk, M), BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        g_ptrs = g_ptr + offs_m[:, None] * stride_g + offs_n[None, :]
        g = tl.load(g_ptrs, mask=mask_m[:, None] & mask_n[None, :], other=0.0)
        if DROP > 0 or scale_ptr is not None:
            rows = tl.where(mask_m, offs_m, 0)
            g = branch(g.to(tl.float32), scale_ptr, seed_ptr, rows, first_n, tokens, keep_scale, SITE, DROP, BLOCK_N)
        a_ptrs = a_ptr + offs_m[:, None] * stride_a + offs_k[None, :]
        a = tl.load(a_ptrs, mask=mask_m[:, None] & mask_k[None, :], other=0.0)
        if mean_ptr is not None:
            mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
            rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
            a = (a.to(tl.float32) - mean[:, None]) * rstd[:, None]
            a = affine(a, norm_weight_ptr, norm_bias_ptr, offs_k, K)
        acc = tl.dot(tl.trans(g.to(COMPUTE)), a.to(COMPUTE), acc, input_precision=PRECISION)
        if bias_out_ptr is not None:
            bias += tl.sum(g.to(tl.float32), 0)
    out_ptrs = out_ptr + split * N * K + offs_n[:, None].to(tl.int64) * K + offs_k[None, :]
    tl.store(out_ptrs, acc.to(out_ptr.dtype.element_ty), mask=mask_n[:, None] & mask_k[None, :])
    if bias_out_ptr is not None and pid % blocks_k == 0:
        tl.store(bias_out_ptr + split * N + offs_n, bias.to(bias_out_ptr.dtype.element_ty), mask=mask_n)


@triton.jit
def layernorm_backward_kernel(
    dy_ptr, x_ptr, residual_ptr, mean_ptr, rstd_ptr, norm_weight_ptr, dx_ptr, partial_ptr, M, C, stride_x, chunk,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx = residual + rstd (g dy - mean(g dy) - xhat mean(g dy xhat)); partial: sum dy xhat and sum dy of `chunk` rows."""
    pid = tl.program_id(0).to(tl.int64)
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    for m in range(pid * chunk, tl.minimum((pid + 1) * chunk, M), BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        mask = mask_m[:, None] & mask_c[None, :]
        offs = offs_m[:, None] * C + offs_c[None, :]
        dy = tl.load(dy_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + offs_m[:, None] * stride_x + offs_c[None, :], mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
        xhat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        dweight += tl.sum(dy * xhat, 0)
        dbias += tl.sum(dy, 0)
        if norm_weight_ptr is not None:
            dy *= vector(norm_weight_ptr, offs_c, C)[None, :]
        dx = dy - (tl.sum(dy, 1) / C)[:, None] - xhat * (tl.sum(dy * xhat, 1) / C)[:, None]
        dx *= rstd[:, None]
        if residual_ptr is not None:
            dx += tl.load(residual_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        tl.store(dx_ptr + offs, dx.to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + pid * 2 * C + offs_c, dweight, mask=mask_c)
    tl.store(partial_ptr + (pid * 2 + 1) * C + offs_c, dbias, mask=mask_c)


@triton.jit
def sum_partials_kernel(partial_ptr, out_ptr, parts, size, chunk, BLOCK_P: tl.constexpr, BLOCK: tl.constexpr):
    """out[group] = the sum of `chunk` of `parts` vectors, BLOCK_P at a time."""
    blocks = tl.cdiv(size, BLOCK)
    offs = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(0) // blocks  # not a second dimension of the grid, which ends at 65535
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(group * chunk, tl.minimum((group + 1) * chunk, parts), BLOCK_P):
        offs_p = part + tl.arange(0, BLOCK_P)
        mask = (offs_p < parts)[:, None] & (offs < size)[None, :]
        total += tl.sum(tl.load(partial_ptr + offs_p[:, None].to(tl.int64) * size + offs[None, :], mask=mask, other=0.0), 0)
    tl.store(out_ptr + group.to(tl.int64) * size + offs, total.to(out_ptr.dtype.element_ty), mask=offs < size)


def precision():
    """Of float32 products: "tf32" where PyTorch's own matmuls may use it, which is not its default."""
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def keep_scale(p):
    return 1.0 / (1.0 - p)


def dense(tensor):
    return None if tensor is None else tensor.contiguous()


def norm_of_rows(x, norm_weight, norm_bias, eps):
    """x (B, N, C) as contiguous rows, and their LayerNorm, whose statistics the product behind it fills in."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    mean, rstd = (x.new_empty(rows.shape[0], dtype=torch.float32) for _ in range(2))
    return rows, Norm(mean, rstd, dense(norm_weight), dense(norm_bias), eps)


def linear(
    a, weight, out, *, bias=None, norm_input=None, norm_residual=None, branch_in=None, branch_out=None, activation="none",
    hidden=None, residual=None, tokens=1,
):  # fmt: skip
    """out (M, N) = epilogue(prologue(a) weight^T); a (M, K), weight (N, K) in the dtype of the product, any strides."""
    (M, K), N = a.shape, weight.shape[0]
    if M == 0:
        return out
    norm = norm_input or norm_residual or Norm(None, None, None, None)
    before, after = branch_in or Branch(), branch_out or Branch()
    kind = "rich" if activation == "gelu_backward" or before.p > 0 or after.p > 0 else "linear"
    block_m, block_n, block_k, *options = CONFIGS[launch.architecture(a.device)][weight.element_size()][kind]
    linear_kernel[(triton.cdiv(M, block_m) * triton.cdiv(N, block_n),)](
        a, weight, bias, out, hidden, residual, norm.mean, norm.rstd, norm.weight, norm.bias,
        before.scale, after.scale, before.seed if after.seed is None else after.seed,
        M, N, K, tokens, a.stride(0), weight.stride(0), weight.stride(1), 0 if residual is None else residual.stride(0),
        norm.eps, keep_scale(max(before.p, after.p)),
        NORM="input" if norm_input else "residual" if norm_residual else "none", ACTIVATION=activation,
        SITE_IN=before.site, DROP_IN=threshold(before.p), SITE_OUT=after.site, DROP_OUT=threshold(after.p),
        PRECISION=precision(), BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **launch.options(*options),
    )  # fmt: skip
    return out


def weight_gradient(g, a, dtype, compute, *, bias=True, norm=None, branch_in=None, tokens=1):
    """dW (N, K) = branch(g)^T norm(a) and db (N,) = sum branch(g) in `dtype`; g (M, N), a (M, K). db is empty without bias."""
    (M, N), K = g.shape, a.shape[1]
    norm, before = norm or Norm(None, None, None, None), branch_in or Branch()
    kind = "weight" if branch_in is None or before == Branch() else "weight_rich"
    block_m, block_n, block_k, *options = CONFIGS[launch.architecture(a.device)][compute.itemsize][kind]
    blocks = triton.cdiv(N, block_n) * triton.cdiv(K, block_k)
    parts, steps = launch.splits(triton.cdiv(max(M, 1), block_m), blocks, a.device)
    dtypes = {"dtype": dtype if parts == 1 else torch.float32}
    out, bias_out = a.new_empty(parts, N, K, **dtypes), a.new_empty(parts, N if bias else 0, **dtypes)
    weight_gradient_kernel[(blocks, parts)](
        g, a, out, bias_out if bias else None, norm.mean, norm.rstd, norm.weight, norm.bias, before.scale, before.seed,
        M, N, K, tokens, steps * block_m, g.stride(0), a.stride(0), keep_scale(before.p),
        SITE=before.site, DROP=threshold(before.p), COMPUTE=TRITON_DTYPE[compute], PRECISION=precision(),
        BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_K=block_k, **launch.options(*options),
    )  # fmt: skip
    return (out[0], bias_out[0]) if parts == 1 else (sum_partials(out, dtype), sum_partials(bias_out, dtype))


def layernorm_backward(dy, x, norm, residual=None):
    """dx (M, C) = residual + LN'(dy), in the dtype of x, and the gradients (C,) of the norm's weight and bias, float32."""
    M, C = x.shape
    block_c = max(16, triton.next_power_of_2(C))
    block_m = max(1, STEP // block_c)
    parts, steps = launch.splits(triton.cdiv(max(M, 1), block_m), 1, x.device, most=256)
    dx, partial = x.new_empty(M, C), x.new_empty(parts, 2, C, dtype=torch.float32)
    layernorm_backward_kernel[(parts,)](
        dy, x, residual, norm.mean, norm.rstd, norm.weight, dx, partial, M, C, x.stride(0), steps * block_m,
        BLOCK_M=block_m, BLOCK_C=block_c, num_warps=4 if block_c <= 2048 else 8,
    )  # fmt: skip
    return dx, *sum_norm_partials(partial, torch.float32)


def sum_partials(partial, dtype):
    """The sum over the first dimension of a contiguous float32 tensor, in a fixed order; of many parts, in two steps."""
    parts, size = partial.shape[0], partial[0].numel()
    chunk = parts if parts <= 2 * CHUNK else CHUNK  # a multiple of BLOCK_P if it is not all
    groups = triton.cdiv(parts, chunk)
    out = partial.new_empty(groups, *partial.shape[1:], dtype=dtype if groups == 1 else torch.float32)
    if size > 0:
        sum_partials_kernel[(triton.cdiv(size, 64) * groups,)](
            partial, out, parts, size, chunk, BLOCK_P=16, BLOCK=64, num_warps=4
        )
    return out[0] if groups == 1 else sum_partials(out, dtype)


def sum_norm_partials(partial, dtype):
    """Gradients (C,) of the weight and bias of a LayerNorm from shares (parts, 2, C)."""
    dweight, dbias = sum_partials(partial, dtype)
    return dweight, dbias.clone()  # results of an operator share no memory


TRITON_DTYPE = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
