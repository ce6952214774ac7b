"""y = LN(x);  out = y + s * drop(fc2(drop(gelu(fc1(y))))) in Triton: forward and backward.

Backward keeps nothing of size (B, N, F) from forward: it computes a = fc1(y) again, and with dz = s * drop(dout)

    dh = dz W2        da = drop(dh) gelu'(a)        h = drop(gelu(a))        dy = dout + da W1        dx = LN'(dy)
    dW2 = dz^T h      db2 = sum dz                  dW1 = da^T y             db1 = sum da
"""

import torch

from .. import native, philox
from . import launch
from .linear import Branch, dense, layernorm_backward, linear, norm_of_rows, weight_gradient


@launch.operator("layernorm_mlp_forward" + native.OPS["layernorm_mlp_forward"], torch.ops.cct_kernels.layernorm_mlp_forward)
def forward(
    x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps, compute
):  # fmt: skip
    (B, N, C), F = x.shape, fc1_weight.shape[0]
    rows, norm = norm_of_rows(x, norm_weight, norm_bias, eps)
    w1, w2 = fc1_weight.to(compute), fc2_weight.to(compute)
    hidden = Branch(None, seed, dropout, philox.HIDDEN)
    h = linear(
        rows, w1, x.new_empty(B * N, F, dtype=compute), bias=dense(fc1_bias), norm_input=norm, activation="gelu",
        branch_out=hidden, tokens=N,
    )  # fmt: skip
    out = linear(
        h, w2, x.new_empty(B * N, C), bias=dense(fc2_bias), norm_residual=norm, residual=rows,
        branch_out=Branch(drop_path_scale, seed, dropout, philox.OUTPUT), tokens=N,
    )  # fmt: skip
    return out.view(B, N, C), norm.mean.view(B, N), norm.rstd.view(B, N)


@launch.operator("layernorm_mlp_backward" + native.OPS["layernorm_mlp_backward"], torch.ops.cct_kernels.layernorm_mlp_backward)
def backward(
    dout, x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps, compute,
    mean, rstd, need_weights,
):  # fmt: skip
    (B, N, C), F, dtype = x.shape, fc1_weight.shape[0], fc1_weight.dtype
    rows, norm = norm_of_rows(x, norm_weight, norm_bias, eps)
    dout = dout.contiguous().view(B * N, C)
    w1, w2 = fc1_weight.to(compute), fc2_weight.to(compute)
    output = Branch(drop_path_scale, seed, dropout, philox.OUTPUT)
    hidden, da = (x.new_empty(B * N, F, dtype=compute) for _ in range(2))
    linear(rows, w1, hidden, bias=dense(fc1_bias), norm_input=norm)
    linear(
        dout, w2.T, da, branch_in=output, activation="gelu_backward", hidden=hidden,
        branch_out=Branch(None, seed, dropout, philox.HIDDEN), tokens=N,
    )  # fmt: skip
    dy = linear(da, w1.T, x.new_empty(B * N, C), residual=dout)
    dx, dnorm_weight, dnorm_bias = layernorm_backward(dy, rows, norm)
    if need_weights:
        dw2, db2 = weight_gradient(dout, hidden, dtype, compute, branch_in=output, tokens=N)
        dw1, db1 = weight_gradient(da, rows, dtype, compute, norm=norm)
    else:
        dw1, db1, dw2, db2 = (x.new_empty(shape, dtype=dtype) for shape in (0, F, 0, C))
    return dx.view(B, N, C), dnorm_weight.to(dtype), dnorm_bias.to(dtype), dw1, db1, dw2, db2
