"""y = LN(x);  out = y + s * drop(fc2(drop(gelu(fc1(y))))) in Triton: forward and backward.

In 16 bits and for the widths of the small models forward is one kernel, and so is all of backward but the weight gradients;
otherwise the products follow one another.
Backward keeps nothing of size (B, N, F) from forward: it computes a = fc1(y) again, and with dz = s * drop(dout)

    dh = dz W2        da = drop(dh) gelu'(a)        h = drop(gelu(a))        dy = dout + da W1        dx = LN'(dy)
    dW2 = dz^T h      db2 = sum dz                  dW1 = da^T y             db1 = sum da
"""

import torch
import triton
import triton.language as tl

from .. import native, philox
from . import launch
from .linear import (
    Branch,
    Norm,
    affine,
    dense,
    gelu,
    gelu_gradient,
    layernorm_backward,
    linear,
    norm_of_rows,
    sum_norm_partials,
    vector,
    weight_gradient,
)

# Largest C -> (rows, columns of the hidden layer, warps, stages) of the one-kernel forms, and registers (launch.options): rows
# and weights of a step fit the shared memory, the sums of all columns the registers. Not yet timed on any GPU.
FORWARD = {
    "sm_80": {128: (64, 64, 4, 2), 256: (64, 32, 8, 2)},
    "sm_86": {128: (64, 32, 4, 2, 255), 256: (32, 32, 8, 2)},
    "sm_90": {128: (128, 64, 8, 2), 256: (64, 64, 8, 2)},
    "sm_100": {128: (128, 64, 8, 2), 256: (128, 64, 8, 2)},
}
BACKWARD = {  # wgmma wants 64 rows, and with 256 columns they would spill
    "sm_80": {128: (64, 32, 8, 2), 256: (32, 32, 8, 2)},
    "sm_86": {128: (32, 32, 8, 1)},
    "sm_90": {128: (64, 32, 8, 2)},
    "sm_100": {128: (32, 32, 8, 2)},
}


@triton.jit
def layernorm_mlp_forward_kernel(
    x_ptr, norm_weight_ptr, norm_bias_ptr, w1_ptr, b1_ptr, w2_ptr, b2_ptr, scale_ptr, out_ptr, mean_ptr, rstd_ptr,
    M, C, F, tokens, eps, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """BLOCK_M rows from x to out; the hidden layer lives a step at a time."""
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_c = tl.arange(0, BLOCK_C)
    mask = (offs_m < M)[:, None] & (offs_c < C)[None, :]
    offs = offs_m[:, None] * C + offs_c[None, :]
    x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, 1) / C
    x = tl.where(mask, x - mean[:, None], 0.0)
    rstd = tl.rsqrt(tl.sum(x * x, 1) / C + eps)
    tl.store(mean_ptr + offs_m, mean, mask=offs_m < M)
    tl.store(rstd_ptr + offs_m, rstd, mask=offs_m < M)
    acc = affine(x * rstd[:, None], norm_weight_ptr, norm_bias_ptr, offs_c, C)
    y = acc.to(w1_ptr.dtype.element_ty)
    # out = y + s (h W2 + b2) = (y + s b2) + (s h) W2: the sums start at the residual, and nothing is left to do behind them
    s = tl.full((BLOCK_M,), 1.0, tl.float32)
    if scale_ptr is not None:
        s = tl.load(scale_ptr + offs_m // tokens, mask=offs_m < M, other=0.0).to(tl.float32)
    if b2_ptr is not None:
        acc += s[:, None] * vector(b2_ptr, offs_c, C)[None, :]
    for f in range(0, F, BLOCK_F):
        offs_f = f + tl.arange(0, BLOCK_F)
        w1_mask = (offs_f < F)[None, :] & (offs_c < C)[:, None]
        h = tl.dot(y, tl.load(w1_ptr + offs_f[None, :] * C + offs_c[:, None], mask=w1_mask, other=0.0))
        if b1_ptr is not None:
            h += vector(b1_ptr, offs_f, F)[None, :]
        w2_mask = (offs_f < F)[:, None] & (offs_c < C)[None, :]
        w2 = tl.load(w2_ptr + offs_c[None, :] * F + offs_f[:, None], mask=w2_mask, other=0.0)
        acc = tl.dot((s[:, None] * gelu(h)).to(w2.dtype), w2, acc)
    tl.store(out_ptr + offs, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def layernorm_mlp_backward_kernel(
    dout_ptr, x_ptr, norm_weight_ptr, norm_bias_ptr, w1_ptr, b1_ptr, w2_ptr, scale_ptr, mean_ptr, rstd_ptr,
    h_ptr, da_ptr, dx_ptr, partial_ptr, M, C, F, tokens, chunk,
    BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_F: tl.constexpr,
):  # fmt: skip
    """dx of `chunk` rows, their h and da for the weight gradients, and their sums of dy xhat and dy."""
    offs_c = tl.arange(0, BLOCK_C)
    mask_c = offs_c < C
    dweight = tl.zeros((BLOCK_C,), tl.float32)
    dbias = tl.zeros((BLOCK_C,), tl.float32)
    pid = tl.program_id(0).to(tl.int64)
    for m in range(pid * chunk, tl.minimum((pid + 1) * chunk, M), BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        mask_m = offs_m < M
        mask = mask_m[:, None] & mask_c[None, :]
        offs = offs_m[:, None] * C + offs_c[None, :]
        mean = tl.load(mean_ptr + offs_m, mask=mask_m, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m, mask=mask_m, other=0.0)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        xhat = (x - mean[:, None]) * rstd[:, None]
        y = affine(xhat, norm_weight_ptr, norm_bias_ptr, offs_c, C).to(w1_ptr.dtype.element_ty)
        dy = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
        dz = dy
        if scale_ptr is not None:
            dz *= tl.load(scale_ptr + offs_m // tokens, mask=mask_m, other=0.0).to(tl.float32)[:, None]
        dz = dz.to(w2_ptr.dtype.element_ty)
        for f in range(0, F, BLOCK_F):
            offs_f = f + tl.arange(0, BLOCK_F)
            mask_f = offs_f < F
            w1 = tl.load(w1_ptr + offs_f[:, None] * C + offs_c[None, :], mask=mask_f[:, None] & mask_c[None, :], other=0.0)
            a = tl.dot(y, tl.trans(w1))
            if b1_ptr is not None:
                a += vector(b1_ptr, offs_f, F)[None, :]
            w2 = tl.load(w2_ptr + offs_c[:, None] * F + offs_f[None, :], mask=mask_c[:, None] & mask_f[None, :], other=0.0)
            da = (tl.dot(dz, w2) * gelu_gradient(a)).to(w1.dtype)
            offs_h = offs_m[:, None] * F + offs_f[None, :]
            tl.store(h_ptr + offs_h, gelu(a).to(h_ptr.dtype.element_ty), mask=mask_m[:, None] & mask_f[None, :])
            tl.store(da_ptr + offs_h, da, mask=mask_m[:, None] & mask_f[None, :])
            dy = tl.dot(da, w1, dy)
        x = tl.load(x_ptr + offs, mask=mask, other=0.0).to(tl.float32)  # again, from the cache: the registers were full
        xhat = tl.where(mask, (x - mean[:, None]) * rstd[:, None], 0.0)
        dweight += tl.sum(dy * xhat, 0)
        dbias += tl.sum(tl.where(mask, dy, 0.0), 0)
        if norm_weight_ptr is not None:
            dy *= vector(norm_weight_ptr, offs_c, C)[None, :]
        dx = dy - (tl.sum(dy, 1) / C)[:, None] - xhat * (tl.sum(dy * xhat, 1) / C)[:, None]
        tl.store(dx_ptr + offs, (rstd[:, None] * dx).to(dx_ptr.dtype.element_ty), mask=mask)
    tl.store(partial_ptr + pid * 2 * C + offs_c, dweight, mask=mask_c)
    tl.store(partial_ptr + (pid * 2 + 1) * C + offs_c, dbias, mask=mask_c)


def _one_kernel(table, x, C, compute, dropout):
    """The blocks of the one-kernel forms, or None where products one by one are the way."""
    if compute.itemsize != 2 or dropout > 0 or x.numel() == 0:
        return None
    config = next((config for most, config in table[launch.architecture(x.device)].items() if most >= C), None)
    if config is None:
        return None
    block_m, block_f, *options = config
    block_c = max(16, triton.next_power_of_2(C))
    return {"BLOCK_M": block_m, "BLOCK_C": block_c, "BLOCK_F": block_f} | launch.options(*options)


def _fake_forward(x, norm_weight, norm_bias, fc1_weight, *rest):
    stats, compute = x.new_empty(x.shape[:2], dtype=torch.float32), rest[-2]
    hidden = x.new_empty(0, fc1_weight.shape[0], dtype=compute)
    return x.new_empty(x.shape), stats, torch.empty_like(stats), hidden, x.new_empty(0)


@launch.operator("layernorm_mlp_forward" + native.OPS["layernorm_mlp_forward"], _fake_forward)
def forward(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps, compute, keep,
):  # fmt: skip
    (B, N, C), F = x.shape, fc1_weight.shape[0]
    drop_path_scale, seed = dense(drop_path_scale), dense(seed)
    rows, norm = norm_of_rows(x, norm_weight, norm_bias, eps)
    w1, w2 = fc1_weight.to(compute).contiguous(), fc2_weight.to(compute).contiguous()
    config = _one_kernel(FORWARD, x, C, compute, dropout)
    if config:
        out = x.new_empty(B, N, C)
        layernorm_mlp_forward_kernel[(triton.cdiv(B * N, config["BLOCK_M"]),)](
            rows, norm.weight, norm.bias, w1, dense(fc1_bias), w2, dense(fc2_bias), drop_path_scale, out,
            norm.mean, norm.rstd, B * N, C, F, N, eps, **config,
        )  # fmt: skip
        return out, norm.mean.view(B, N), norm.rstd.view(B, N), x.new_empty(0, F, dtype=compute), x.new_empty(0)
    hidden = Branch(None, seed, dropout, philox.HIDDEN)
    h = linear(
        rows, w1, x.new_empty(B * N, F, dtype=compute), bias=dense(fc1_bias), norm_input=norm, activation="gelu",
        branch_out=hidden, tokens=N,
    )  # fmt: skip
    out = linear(
        h, w2, x.new_empty(B * N, C), bias=dense(fc2_bias), norm_residual=norm, residual=rows,
        branch_out=Branch(drop_path_scale, seed, dropout, philox.OUTPUT), tokens=N,
    )  # fmt: skip
    return out.view(B, N, C), norm.mean.view(B, N), norm.rstd.view(B, N), h.new_empty(0, F), x.new_empty(0)


@launch.operator("layernorm_mlp_backward" + native.OPS["layernorm_mlp_backward"], torch.ops.cct_kernels.layernorm_mlp_backward)
def backward(
    dout, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps, compute,
    mean, rstd, _, need_weights,
):  # fmt: skip
    (B, N, C), F, dtype = x.shape, fc1_weight.shape[0], fc1_weight.dtype
    drop_path_scale, seed = dense(drop_path_scale), dense(seed)
    rows, norm = x.reshape(B * N, C).contiguous(), Norm(mean.view(-1), rstd.view(-1), dense(norm_weight), dense(norm_bias), eps)
    dout = dout.contiguous().view(B * N, C)
    w1, w2 = fc1_weight.to(compute).contiguous(), fc2_weight.to(compute).contiguous()
    output = Branch(drop_path_scale, seed, dropout, philox.OUTPUT)
    h, da = (x.new_empty(B * N, F, dtype=compute) for _ in range(2))
    config = _one_kernel(BACKWARD, x, C, compute, dropout)
    if config:
        parts, steps = launch.splits(triton.cdiv(B * N, config["BLOCK_M"]), 1, x.device, most=512)
        dx, partial = x.new_empty(B * N, C), x.new_empty(parts, 2, C, dtype=torch.float32)
        layernorm_mlp_backward_kernel[(parts,)](
            dout, rows, norm.weight, norm.bias, w1, dense(fc1_bias), w2, drop_path_scale, norm.mean, norm.rstd,
            h, da, dx, partial, B * N, C, F, N, steps * config["BLOCK_M"], **config,
        )  # fmt: skip
        dnorm_weight, dnorm_bias = sum_norm_partials(partial, dtype)
    else:
        _, norm = norm_of_rows(x, norm_weight, norm_bias, eps)  # the saved statistics are not for this product to write
        linear(rows, w1, h, bias=dense(fc1_bias), norm_input=norm)  # pre-activations, that make way for h
        linear(
            dout, w2.T, da, branch_in=output, activation="gelu_backward", hidden=h,
            branch_out=Branch(None, seed, dropout, philox.HIDDEN), tokens=N,
        )  # fmt: skip
        dy = linear(da, w1.T, x.new_empty(B * N, C), residual=dout)
        dx, dnorm_weight, dnorm_bias = layernorm_backward(dy, rows, norm)
    dw1, db1, dw2, db2 = (x.new_empty(shape, dtype=dtype) for shape in (0, F, 0, C))
    need_fc1, need_fc2 = need_weights
    if need_fc2:
        dw2, db2 = weight_gradient(dout, h, dtype, compute, branch_in=output, tokens=N)
    if need_fc1:
        dw1, db1 = weight_gradient(da, rows, dtype, compute, norm=norm)
    return dx.view(B, N, C), dnorm_weight.to(dtype), dnorm_bias.to(dtype), dw1, db1, dw2, db2
