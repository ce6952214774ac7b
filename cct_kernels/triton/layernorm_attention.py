"""out = x + s * drop(proj(attention(qkv(LN(x))))) in Triton: three kernels forward.

    qkv = LN(x) Wqkv^T        o = attention(qkv)        out = x + s * drop(o Wproj^T + b)

Backward, with dz = s * drop(dout):

    do = dz Wproj        dqkv = attention'(do)        dy = dqkv Wqkv        dx = dout + LN'(dy)
    dWproj = dz^T o      dbproj = sum dz              dWqkv = dqkv^T LN(x)  dbqkv = sum dqkv
"""

import torch

from .. import native, philox
from . import launch
from .attention import attention_backward, attention_forward
from .linear import Branch, Norm, dense, layernorm_backward, linear, norm_of_rows, weight_gradient


def _fake_forward(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, *rest):
    (B, N, C), compute = x.shape, rest[-2]
    stats = x.new_empty(B, N, dtype=torch.float32)
    qkv, o = (x.new_empty(B * N, width, dtype=compute) for width in (3 * C, C))
    lse = x.new_empty(B, num_heads, N, dtype=torch.float32)
    return x.new_empty(B, N, C), stats, torch.empty_like(stats), qkv, o, lse, *_not_kept(x)


def _not_kept(x):
    """Backward draws the masks of dropout again, and takes x itself."""
    return x.new_empty(0, dtype=torch.int64), x.new_empty(0)


@launch.operator("layernorm_attention_forward" + native.OPS["layernorm_attention_forward"], _fake_forward)
def forward(
    x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask,
    attn_dropout, dropout, drop_path_scale, seed, eps, compute, keep,
):  # fmt: skip
    B, N, C = x.shape
    drop_path_scale, seed = dense(drop_path_scale), dense(seed)
    rows, norm = norm_of_rows(x, norm_weight, norm_bias, eps)
    qkv = x.new_empty(B * N, 3 * C, dtype=compute)
    linear(rows, qkv_weight.to(compute), qkv, bias=dense(qkv_bias), norm_input=norm)
    o, lse = attention_forward(qkv, B, N, num_heads, dense(mask), attn_dropout, seed)
    out = linear(
        o, proj_weight.to(compute), x.new_empty(B * N, C), bias=dense(proj_bias), residual=rows,
        branch_out=Branch(drop_path_scale, seed, dropout, philox.PROJECTION), tokens=N,
    )  # fmt: skip
    return out.view(B, N, C), norm.mean.view(B, N), norm.rstd.view(B, N), qkv, o, lse, *_not_kept(x)


@launch.operator(
    "layernorm_attention_backward" + native.OPS["layernorm_attention_backward"],
    torch.ops.cct_kernels.layernorm_attention_backward,
)
def backward(
    dout, x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask,
    attn_dropout, dropout, drop_path_scale, seed, eps, compute, mean, rstd, qkv, o, lse, pairs, need_weights,
):  # fmt: skip
    (B, N, C), dtype = x.shape, qkv_weight.dtype
    drop_path_scale, seed = dense(drop_path_scale), dense(seed)
    rows = x.reshape(B * N, C).contiguous()
    norm = Norm(mean.view(-1), rstd.view(-1), dense(norm_weight), dense(norm_bias), eps)
    dout = dout.contiguous().view(B * N, C)
    projection = Branch(drop_path_scale, seed, dropout, philox.PROJECTION)
    do = linear(dout, proj_weight.to(compute).T, torch.empty_like(o), branch_in=projection, tokens=N)
    dqkv = attention_backward(do, qkv, B, N, num_heads, dense(mask), attn_dropout, seed, o, lse)
    dy = linear(dqkv, qkv_weight.to(compute).T, x.new_empty(B * N, C, dtype=compute))
    dx, dnorm_weight, dnorm_bias = layernorm_backward(dy, rows, norm, residual=dout)
    need_qkv, need_proj = need_weights
    dproj_weight, dqkv_weight = x.new_empty(0, dtype=dtype), x.new_empty(0, dtype=dtype)
    dproj_bias, dqkv_bias = (x.new_empty(n, dtype=dtype) for n in (C, 0 if qkv_bias is None else 3 * C))
    if need_proj:
        dproj_weight, dproj_bias = weight_gradient(dout, o, dtype, compute, branch_in=projection, tokens=N)
    if need_qkv:
        dqkv_weight, dqkv_bias = weight_gradient(dqkv, rows, dtype, compute, norm=norm, bias=qkv_bias is not None)
    return (
        dx.view(B, N, C), dnorm_weight.to(dtype), dnorm_bias.to(dtype),
        dqkv_weight, dproj_weight, dproj_bias, dqkv_bias,
    )  # fmt: skip
