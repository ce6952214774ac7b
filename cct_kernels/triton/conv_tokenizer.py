"""out = MaxPool(ReLU(Conv2d(x))) as tokens in Triton: forward and backward.

Forward is one pass: a program owns some pooled pixels and channels, computes the convolution at each pixel of their windows as
an implicit matrix product over K = kh kw Cin (in the order ky, kx, ci) and keeps the maximum. The convolved image never reaches
memory; backward needs one byte for each pooled element, the first maximum of its window, or NO_WINNER where ReLU made it zero.
Where K is long the windows overlap too dearly, and the product runs once a pixel with a pooling kernel behind it.

    dconv(r, c) = sum of dout over the windows that pixel (r, c) won        db = sum dconv
    dW = dconv^T im2col(x)                                                  dx = col2im(dconv W)

dW gathers dconv as it reads; for dx, which only a second stage needs, dconv and its product are stored, some images at a time.
Sums are float32 in a fixed order.
"""

import torch
import triton
import triton.language as tl

from .. import native
from . import launch
from .linear import TRITON_DTYPE, dense, linear, precision, sum_partials, vector

NO_WINNER = tl.constexpr(255)
LONG_K = 256  # above it computing a pixel once, not 9/4 times, is worth a trip of the convolved image through memory

DCOL_BYTES = 256 << 20  # the most that the product for dx may take at a time

# Bytes a number of the product takes -> (pixels, output channels, K, warps, stages) of a block.
# Chosen so that nothing spills; not yet timed on any GPU.
_CONFIG = {
    "forward": {2: (64, 64, 32, 4, 2), 4: (32, 32, 32, 8, 1)},
    "dweight": {2: (64, 64, 32, 4, 2), 4: (32, 32, 32, 8, 2)},
}
CONFIGS = {arch: _CONFIG for arch in launch.ARCHITECTURES}


@triton.jit
def _block(C, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr):
    """The pixels (64 bits) and channels of this program; the channels of the same pixels run side by side."""
    blocks_c, pid = tl.cdiv(C, BLOCK_C), tl.program_id(0)
    offs_p = (pid // blocks_c).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    return offs_p, pid % blocks_c * BLOCK_C + tl.arange(0, BLOCK_C)


@triton.jit
def _pixels(offs_p, H, W):
    """Pixels of a batch as image, row and column."""
    return offs_p // (H * W), (offs_p // W % H).to(tl.int32), (offs_p % W).to(tl.int32)


@triton.jit
def _im2col(
    x_ptr, b, r, c, inside, offs_k, H, W, Cin, K, stride_b, stride_c, stride_h, stride_w, KW, SH, SW, PH, PW
):  # fmt: skip
    """(pixels, BLOCK_K) of the im2col matrix, for convolved pixels (r, c) of images b."""
    ci, tap = offs_k % Cin, offs_k // Cin
    y = (r * SH - PH)[:, None] + (tap // KW)[None, :]
    x = (c * SW - PW)[:, None] + (tap % KW)[None, :]
    mask = inside[:, None] & (offs_k < K)[None, :] & (y >= 0) & (y < H) & (x >= 0) & (x < W)
    ptrs = x_ptr + (b * stride_b)[:, None] + (ci * stride_c)[None, :] + y * stride_h + x * stride_w
    return tl.load(ptrs, mask=mask, other=0.0)


@triton.jit
def _dconv(
    dout_ptr, winner_ptr, b, r, c, inside, offs_n, C, Ho, Wo,
    QH: tl.constexpr, QW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, QPH: tl.constexpr, QPW: tl.constexpr,
):  # fmt: skip
    """(pixels, channels): dout of the windows (Q kernel, T step) that convolved pixels (r, c) lie in and won."""
    total = tl.zeros((r.shape[0], offs_n.shape[0]), tl.float32)
    for i in tl.static_range((QH + TH - 1) // TH):
        for j in tl.static_range((QW + TW - 1) // TW):
            o, q = (r + QPH) // TH - i, (c + QPW) // TW - j
            wy, wx = r + QPH - o * TH, c + QPW - q * TW  # the place of (r, c) in window (o, q)
            hit = inside & (o >= 0) & (o < Ho) & (q >= 0) & (q < Wo) & (wy < QH) & (wx < QW)
            offs = ((b * Ho + o) * Wo + q)[:, None] * C + offs_n[None, :]
            mask = hit[:, None] & (offs_n < C)[None, :]
            value = tl.load(dout_ptr + offs, mask=mask, other=0.0).to(tl.float32)
            if winner_ptr is not None:
                won = tl.load(winner_ptr + offs, mask=mask, other=NO_WINNER).to(tl.int32) == (wy * QW + wx)[:, None]
                value = tl.where(won, value, 0.0)
            total += value
    return total


@triton.jit
def _store_maximum(best, winner, bias_ptr, out_ptr, winner_ptr, offs_p, offs_c, P, C, RELU: tl.constexpr):
    mask = (offs_p < P)[:, None] & (offs_c < C)[None, :]
    offs = offs_p[:, None] * C + offs_c[None, :]
    if bias_ptr is not None:
        best += vector(bias_ptr, offs_c, C)[None, :]
    if RELU:
        winner = tl.where(best <= 0.0, NO_WINNER, winner)
        best = tl.where(best < 0.0, 0.0, best)  # NaN stays NaN
    tl.store(out_ptr + offs, best.to(out_ptr.dtype.element_ty), mask=mask)
    if winner_ptr is not None:
        tl.store(winner_ptr + offs, winner.to(tl.uint8), mask=mask)


@triton.jit
def conv_tokenizer_forward_kernel(
    x_ptr, w_ptr, bias_ptr, out_ptr, winner_ptr, P, H, W, Cin, C, K, Hc, Wc, Ho, Wo,
    stride_b, stride_c, stride_h, stride_w,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    QH: tl.constexpr, QW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, QPH: tl.constexpr, QPW: tl.constexpr,
    RELU: tl.constexpr, PRECISION: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    offs_p, offs_c = _block(C, BLOCK_P, BLOCK_C)
    b, o, q = _pixels(offs_p, Ho, Wo)
    best = tl.full((BLOCK_P, BLOCK_C), -float("inf"), tl.float32)
    winner = tl.full((BLOCK_P, BLOCK_C), NO_WINNER, tl.int32)
    for place in range(QH * QW):
        r, c = o * TH - QPH + place // QW, q * TW - QPW + place % QW
        inside = (offs_p < P) & (r >= 0) & (r < Hc) & (c >= 0) & (c < Wc)
        acc = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
        for k in range(0, K, BLOCK_K):
            offs_k = k + tl.arange(0, BLOCK_K)
            a = _im2col(
                x_ptr, b, r, c, inside, offs_k, H, W, Cin, K, stride_b, stride_c, stride_h, stride_w, KW, SH, SW, PH, PW
            )
            w_mask = (offs_k < K)[:, None] & (offs_c < C)[None, :]
            w = tl.load(w_ptr + offs_k[:, None] * C + offs_c[None, :], mask=w_mask, other=0.0)
            acc = tl.dot(a.to(w.dtype), w, acc, input_precision=PRECISION)
        better = inside[:, None] & ((acc > best) | (acc != acc))
        best = tl.where(better, acc, best)
        winner = tl.where(better, place, winner)
    _store_maximum(best, winner, bias_ptr, out_ptr, winner_ptr, offs_p, offs_c, P, C, RELU)


@triton.jit
def conv_tokenizer_pool_kernel(
    conv_ptr, bias_ptr, out_ptr, winner_ptr, P, C, Hc, Wc, Ho, Wo,
    QH: tl.constexpr, QW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, QPH: tl.constexpr, QPW: tl.constexpr,
    RELU: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """The maximum over the windows of a convolved image (B, Hc * Wc, C)."""
    offs_p, offs_c = _block(C, BLOCK_P, BLOCK_C)
    b, o, q = _pixels(offs_p, Ho, Wo)
    best = tl.full((BLOCK_P, BLOCK_C), -float("inf"), tl.float32)
    winner = tl.full((BLOCK_P, BLOCK_C), NO_WINNER, tl.int32)
    for place in range(QH * QW):
        r, c = o * TH - QPH + place // QW, q * TW - QPW + place % QW
        inside = (offs_p < P) & (r >= 0) & (r < Hc) & (c >= 0) & (c < Wc)
        offs = ((b * Hc + r) * Wc + c)[:, None] * C + offs_c[None, :]
        value = tl.load(conv_ptr + offs, mask=inside[:, None] & (offs_c < C)[None, :], other=0.0)
        better = inside[:, None] & ((value > best) | (value != value))
        best = tl.where(better, value, best)
        winner = tl.where(better, place, winner)
    _store_maximum(best, winner, bias_ptr, out_ptr, winner_ptr, offs_p, offs_c, P, C, RELU)


@triton.jit
def conv_tokenizer_unpool_kernel(
    dout_ptr, winner_ptr, dconv_ptr, M, C, Hc, Wc, Ho, Wo,
    QH: tl.constexpr, QW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, QPH: tl.constexpr, QPW: tl.constexpr,
    BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    offs_m, offs_c = _block(C, BLOCK_P, BLOCK_C)
    b, r, c = _pixels(offs_m, Hc, Wc)
    value = _dconv(dout_ptr, winner_ptr, b, r, c, offs_m < M, offs_c, C, Ho, Wo, QH, QW, TH, TW, QPH, QPW)
    offs = offs_m[:, None] * C + offs_c[None, :]
    tl.store(dconv_ptr + offs, value.to(dconv_ptr.dtype.element_ty), mask=(offs_m < M)[:, None] & (offs_c < C)[None, :])


@triton.jit
def conv_tokenizer_backward_weight_kernel(
    dout_ptr, winner_ptr, x_ptr, out_ptr, bias_out_ptr, M, H, W, Cin, C, K, Hc, Wc, Ho, Wo, chunk,
    stride_b, stride_c, stride_h, stride_w,
    KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    QH: tl.constexpr, QW: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, QPH: tl.constexpr, QPW: tl.constexpr,
    COMPUTE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """out[split] (C, K) and bias_out[split] (C) over the convolved pixels of a split."""
    blocks_k = tl.cdiv(K, BLOCK_K)
    split = tl.program_id(1).to(tl.int64)
    offs_n = tl.program_id(0) // blocks_k * BLOCK_C + tl.arange(0, BLOCK_C)
    offs_k = tl.program_id(0) % blocks_k * BLOCK_K + tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_C, BLOCK_K), tl.float32)
    bias = tl.zeros((BLOCK_C,), tl.float32)
    for m in range(split * chunk, tl.minimum((split + 1) * chunk, M), BLOCK_M):
        offs_m = m + tl.arange(0, BLOCK_M)
        b, r, c = _pixels(offs_m, Hc, Wc)
        inside = offs_m < M
        g = _dconv(dout_ptr, winner_ptr, b, r, c, inside, offs_n, C, Ho, Wo, QH, QW, TH, TW, QPH, QPW)
        a = _im2col(x_ptr, b, r, c, inside, offs_k, H, W, Cin, K, stride_b, stride_c, stride_h, stride_w, KW, SH, SW, PH, PW)
        acc = tl.dot(tl.trans(g.to(COMPUTE)), a.to(COMPUTE), acc, input_precision=PRECISION)
        bias += tl.sum(g, 0)
    out_ptrs = out_ptr + split * C * K + offs_n[:, None] * K + offs_k[None, :]
    tl.store(out_ptrs, acc, mask=(offs_n < C)[:, None] & (offs_k < K)[None, :])
    if tl.program_id(0) % blocks_k == 0:
        tl.store(bias_out_ptr + split * C + offs_n, bias, mask=offs_n < C)


@triton.jit
def conv_tokenizer_col2im_kernel(
    dcol_ptr, dx_ptr, P, H, W, Cin, K, Hc, Wc, stride_b, stride_c, stride_h, stride_w,
    KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """dx of some pixels and channels: the sum of dcol (B Hc Wc, K) over the at most ROWS x COLUMNS windows that read them."""
    offs_p, offs_c = _block(Cin, BLOCK_P, BLOCK_C)
    b, y, x = _pixels(offs_p, H, W)
    last_r, last_c = tl.minimum((y + PH) // SH, Hc - 1), tl.minimum((x + PW) // SW, Wc - 1)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for window in range(ROWS * COLUMNS):
        r, c = last_r - window // COLUMNS, last_c - window % COLUMNS
        ky, kx = y + PH - r * SH, x + PW - c * SW
        hit = (offs_p < P) & (r >= 0) & (ky < KH) & (c >= 0) & (kx < KW)
        ptrs = dcol_ptr + (((b * Hc + r) * Wc + c) * K + (ky * KW + kx) * Cin)[:, None] + offs_c[None, :]
        total += tl.load(ptrs, mask=hit[:, None] & (offs_c < Cin)[None, :], other=0.0).to(tl.float32)
    ptrs = dx_ptr + (b * stride_b + y * stride_h + x * stride_w)[:, None] + (offs_c * stride_c)[None, :]
    tl.store(ptrs, total.to(dx_ptr.dtype.element_ty), mask=(offs_p < P)[:, None] & (offs_c < Cin)[None, :])


class _Geometry:
    """The sizes of a call and the constants of its kernels."""

    def __init__(self, x, weight, stride, padding, pool):
        self.B, self.Cin, self.H, self.W = x.shape
        self.C, _, self.KH, self.KW = weight.shape
        self.K = self.KH * self.KW * self.Cin
        self.Hc, self.Wc = self._size((self.H, self.W), (self.KH, self.KW), stride, padding)
        self.Ho, self.Wo = self._size((self.Hc, self.Wc), pool[:2], pool[2:4], pool[4:])
        self.conv = {"KW": self.KW, "SH": stride[0], "SW": stride[1], "PH": padding[0], "PW": padding[1]}
        self.pool = dict(zip(("QH", "QW", "TH", "TW", "QPH", "QPW"), pool, strict=True))
        self.pooled = pool[0] * pool[1] > 1

    @staticmethod
    def _size(size, kernel, stride, padding):
        return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))


_NO_POOL = {"QH": 1, "QW": 1, "TH": 1, "TW": 1, "QPH": 0, "QPW": 0}


def _config(kind, x, compute):
    return CONFIGS[launch.architecture(x.device)][kind][compute.itemsize]


def _matrix(weight, compute):
    """(C, Cin, kh, kw) -> (kh kw Cin, C)."""
    return weight.permute(2, 3, 1, 0).reshape(-1, weight.shape[0]).contiguous().to(compute)


def _fake_forward(x, weight, bias, stride, padding, relu, pool, compute, keep):
    g = _Geometry(x, weight, stride, padding, pool)
    kept = g.B if keep and (relu or g.pooled) else 0
    return x.new_empty(g.B, g.Ho * g.Wo, g.C), x.new_empty(kept, g.Ho * g.Wo, g.C, dtype=torch.uint8)


@launch.operator("conv_tokenizer_forward" + native.OPS["conv_tokenizer_forward"], _fake_forward)
def forward(x, weight, bias, stride, padding, relu, pool, compute, keep):
    g = _Geometry(x, weight, stride, padding, pool)
    out, winner = _fake_forward(x, weight, bias, stride, padding, relu, pool, compute, keep)
    if g.B == 0:
        return out, winner
    x, w, bias = launch.narrow(x), _matrix(weight, compute), dense(bias)
    block_p, block_c, block_k, *options = _config("forward", x, compute)
    twice = g.pooled and g.K > LONG_K
    direct = (x.new_empty(g.B, g.Hc * g.Wc, g.C, dtype=torch.float32), None) if twice else (out, winner)
    pixels, size = (g.B * g.Hc * g.Wc, (g.Hc, g.Wc)) if twice else (g.B * g.Ho * g.Wo, (g.Ho, g.Wo))
    conv_tokenizer_forward_kernel[(triton.cdiv(pixels, block_p) * triton.cdiv(g.C, block_c),)](
        x, w, None if twice else bias, direct[0], _or_none(direct[1]), pixels, g.H, g.W, g.Cin, g.C, g.K, g.Hc, g.Wc, *size,
        *x.stride(), **g.conv, **(_NO_POOL if twice else g.pool), RELU=relu and not twice, PRECISION=precision(),
        BLOCK_P=block_p, BLOCK_C=block_c, BLOCK_K=block_k, **launch.options(*options),
    )  # fmt: skip
    if twice:
        pixels = g.B * g.Ho * g.Wo
        conv_tokenizer_pool_kernel[(triton.cdiv(pixels, 32) * triton.cdiv(g.C, 64),)](
            direct[0], bias, out, _or_none(winner), pixels, g.C, g.Hc, g.Wc, g.Ho, g.Wo, **g.pool, RELU=relu,
            BLOCK_P=32, BLOCK_C=64, num_warps=4,
        )  # fmt: skip
    return out, winner


@launch.operator(
    "conv_tokenizer_backward" + native.OPS["conv_tokenizer_backward"], torch.ops.cct_kernels.conv_tokenizer_backward
)
def backward(dout, x, weight, winner, stride, padding, relu, pool, compute, output_mask):
    g = _Geometry(x, weight, stride, padding, pool)
    need_dx, need_dweight, need_dbias = output_mask
    source, won, window, size = dout.contiguous(), _or_none(winner), g.pool, (g.Ho, g.Wo)
    dx = x.new_empty(0)
    if need_dx:
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last if last else torch.contiguous_format)
        if g.B > 0:
            if won is not None or source.dtype != compute:
                source = _unpool(source, won, g, compute)
                won, window, size = None, _NO_POOL, (g.Hc, g.Wc)
            _input_gradient(source, weight, dx, g, compute)
    dweight = dbias = weight.new_empty(0)
    if need_dweight or need_dbias:
        dweight, dbias = _weight_gradient(source, won, window, size, launch.narrow(x), weight.dtype, g, compute)
    return dx, dweight if need_dweight else weight.new_empty(0), dbias if need_dbias else weight.new_empty(0)


def _unpool(dout, winner, g, compute):
    dconv = dout.new_empty(g.B, g.Hc * g.Wc, g.C, dtype=compute)
    pixels = g.B * g.Hc * g.Wc
    conv_tokenizer_unpool_kernel[(triton.cdiv(pixels, 32) * triton.cdiv(g.C, 64),)](
        dout, winner, dconv, pixels, g.C, g.Hc, g.Wc, g.Ho, g.Wo, **g.pool, BLOCK_P=32, BLOCK_C=64, num_warps=4
    )
    return dconv


def _input_gradient(dconv, weight, dx, g, compute):
    matrix, pixels = _matrix(weight, compute), g.Hc * g.Wc
    images = max(1, DCOL_BYTES // (pixels * g.K * compute.itemsize))
    rows, columns = min(triton.cdiv(g.KH, g.conv["SH"]), g.Hc), min(triton.cdiv(g.KW, g.conv["SW"]), g.Wc)
    block_c = min(64, max(16, triton.next_power_of_2(g.Cin)))
    for first in range(0, g.B, images):
        part = dx[first : first + images]
        dcol = dconv.new_empty(part.shape[0] * pixels, g.K)
        linear(dconv[first : first + images].view(-1, g.C), matrix, dcol)
        P = part.shape[0] * g.H * g.W
        conv_tokenizer_col2im_kernel[(triton.cdiv(P, 32) * triton.cdiv(g.Cin, block_c),)](
            dcol, part, P, g.H, g.W, g.Cin, g.K, g.Hc, g.Wc, *dx.stride(), KH=g.KH, **g.conv,
            ROWS=rows, COLUMNS=columns, BLOCK_P=32, BLOCK_C=block_c, num_warps=4,
        )  # fmt: skip


def _weight_gradient(source, winner, window, size, x, dtype, g, compute):
    block_m, block_c, block_k, *options = _config("dweight", x, compute)
    pixels, blocks = g.B * g.Hc * g.Wc, triton.cdiv(g.C, block_c) * triton.cdiv(g.K, block_k)
    parts, steps = launch.splits(triton.cdiv(max(pixels, 1), block_m), blocks, x.device, most=128)
    out, bias = (x.new_empty(parts, *shape, dtype=torch.float32) for shape in ((g.C, g.K), (g.C,)))
    conv_tokenizer_backward_weight_kernel[(blocks, parts)](
        source, winner, x, out, bias, pixels, g.H, g.W, g.Cin, g.C, g.K, g.Hc, g.Wc, *size, steps * block_m, *x.stride(),
        **g.conv, **window, COMPUTE=TRITON_DTYPE[compute], PRECISION=precision(),
        BLOCK_M=block_m, BLOCK_C=block_c, BLOCK_K=block_k, **launch.options(*options),
    )  # fmt: skip
    dweight = sum_partials(out, dtype).view(g.C, g.KH, g.KW, g.Cin).permute(0, 3, 1, 2).contiguous()
    return dweight, sum_partials(bias, dtype)


def _or_none(winner):
    """An empty tensor stands for no winners."""
    return winner if winner is not None and winner.numel() > 0 else None
