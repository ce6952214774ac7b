"""Augmentation of uint8 images as a few Triton launches: two a step of the program, one for all that follows.

The specification is plain PyTorch, cct/data/augment/pixels.py and mixing.py, where operations and arguments are described; each
number is computed in the same order and without fused multiply-adds (FUSION below), so the results are the same to the bit but
for the last bit of a sine in the arguments. No launch waits for the device.
"""

import torch
import triton
import triton.language as tl

# Numbers of cct/data/augment/program.py
SHIFT, RESIZE, AFFINE = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
AUTO_CONTRAST, EQUALIZE, INVERT, POSTERIZE = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)
SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST = tl.constexpr(8), tl.constexpr(9), tl.constexpr(10), tl.constexpr(11)
COLOR, SHARPNESS = tl.constexpr(12), tl.constexpr(13)
WIDTH, FLIPS, FILTER = tl.constexpr(7), tl.constexpr(5), tl.constexpr(6)
NEAREST, BICUBIC = tl.constexpr(0), tl.constexpr(2)

BLOCK = 256  # pixels a program, two a thread: more would spill in resized crops
FUSION = {"enable_fp_fusion": False}


@triton.jit
def _clip(v, last):
    return tl.minimum(tl.maximum(v, 0), last)


@triton.jit
def _blend(first, second, factor):
    """Both int32; float32 arithmetic, cut and rounded down."""
    mixed = first.to(tl.float32) + factor * (second - first).to(tl.float32)
    return tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)


@triton.jit
def _grey(image_ptr, offs, mask, plane, C: tl.constexpr):
    red = tl.load(image_ptr + offs, mask=mask, other=0).to(tl.int32)
    if C == 3:
        green = tl.load(image_ptr + plane + offs, mask=mask, other=0).to(tl.int32)
        blue = tl.load(image_ptr + 2 * plane + offs, mask=mask, other=0).to(tl.int32)
        red = (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16
    return red


@triton.jit
def augment_tables_kernel(
    image_ptr, code_ptr, arg_ptr, table_ptr, steps, plane, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """table (B, C, 256) of each image whose operation is one; program (b, c)."""
    b, c = tl.program_id(0), tl.program_id(1)
    code = tl.load(code_ptr + b * steps)
    arg = tl.load(arg_ptr + b * steps * WIDTH)
    v = tl.arange(0, 256)
    if (code >= AUTO_CONTRAST) & (code <= CONTRAST):
        image_ptr += b.to(tl.int64) * C * plane
        offs_p = tl.arange(0, BLOCK)
        table = v
        if code == INVERT:
            table = 255 - v
        elif code == POSTERIZE:
            table = v & (256 - (1 << (8 - arg.to(tl.int32))))
        elif code == SOLARIZE:
            table = tl.where(v.to(tl.float64) < arg, v, 255 - v)
        elif code == SOLARIZE_ADD:
            table = tl.where(v < 128, tl.minimum(v + arg.to(tl.int32), 255), v)
        elif code == BRIGHTNESS:
            table = _blend(tl.zeros_like(v), v, arg.to(tl.float32))
        elif code == CONTRAST:
            total = tl.zeros((BLOCK,), tl.int64)
            for start in range(0, plane, BLOCK):
                total += _grey(image_ptr, start + offs_p, start + offs_p < plane, plane, C).to(tl.int64)
            # whole numbers: the greatest below their mean and a half, without a division
            mean = ((2 * tl.sum(total, 0) + plane) // (2 * plane)).to(tl.int32)
            table = _blend(tl.zeros_like(v) + mean, v, arg.to(tl.float32))
        else:
            count = tl.zeros((256,), tl.int32)
            for start in range(0, plane, BLOCK):
                inside = start + offs_p < plane
                value = tl.load(image_ptr + c * plane + start + offs_p, mask=inside, other=0).to(tl.int32)
                outside = tl.sum((~inside).to(tl.int32), 0)
                count += tl.histogram(value, 256) - tl.where(v == 0, outside, 0)
            high = tl.max(tl.where(count > 0, v, 0), 0)
            if code == AUTO_CONTRAST:
                low = tl.min(tl.where(count > 0, v, 255), 0)
                scale = 255.0 / tl.maximum(high - low, 1).to(tl.float64)
                stretched = v.to(tl.float64) * scale + (-low).to(tl.float64) * scale
                table = tl.where(high > low, tl.minimum(tl.maximum(stretched, 0.0), 255.0).to(tl.int32), v)
            else:
                step = (plane - tl.sum(tl.where(v == high, count, 0), 0)) // 255
                before = step // 2 + tl.cumsum(count, 0) - count
                table = tl.where(step > 0, tl.minimum(before // tl.maximum(step, 1), 255), v)
        tl.store(table_ptr + (b * C + c) * 256 + v, table.to(tl.uint8))


@triton.jit
def _key(distance, cubic):
    """Pillow's weight of a pixel at this distance."""
    x = tl.abs(distance)
    near = ((-0.5 + 2.0) * x - (-0.5 + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * -0.5
    return tl.where(cubic, tl.where(x < 1, near, tl.where(x < 2, far, 0.0)), tl.maximum(1 - x, 0.0))


@triton.jit
def _first_tap(i, scale, cubic):
    reach = tl.where(cubic, 2.0, 1.0).to(tl.float64)
    return tl.maximum(tl.floor((i.to(tl.float64) + 0.5) * scale - reach + 0.5), 0.0).to(tl.int32)


@triton.jit
def _tap(i, t, first, scale, length, cubic):
    """Weight of tap t before it is normalised; 0 behind the last one."""
    center, reach = (i.to(tl.float64) + 0.5) * scale, tl.where(cubic, 2.0, 1.0).to(tl.float64)
    last = tl.minimum(tl.floor(center + reach + 0.5), length.to(tl.float64)).to(tl.int32)
    return tl.where(first + t < last, _key((first + t).to(tl.float64) - center + 0.5, cubic), 0.0)


@triton.jit
def _fixed(weight, total):
    """With 22 bits behind the point."""
    w = weight / total * 4194304.0
    return tl.where(w < 0, w - 0.5, w + 0.5).to(tl.int32)


@triton.jit
def _rounded(total):
    return _clip((total + (1 << 21)) >> 22, 255)


@triton.jit
def _resized(image_ptr, arg_ptr, y, x, mask, H, W):
    """One channel; columns first, each pass in fixed point."""
    top, left = tl.load(arg_ptr).to(tl.int32), tl.load(arg_ptr + 1).to(tl.int32)
    height, width = tl.load(arg_ptr + 2).to(tl.int32), tl.load(arg_ptr + 3).to(tl.int32)
    cubic = tl.load(arg_ptr + FILTER) == BICUBIC
    down, across = height.to(tl.float64) / H, width.to(tl.float64) / W
    first_y, first_x = _first_tap(y, down, cubic), _first_tap(x, across, cubic)
    sum_y, sum_x = tl.zeros(y.shape, tl.float64), tl.zeros(x.shape, tl.float64)
    for t in tl.static_range(5):
        sum_y += _tap(y, t, first_y, down, height, cubic)
        sum_x += _tap(x, t, first_x, across, width, cubic)
    total = tl.zeros(x.shape, tl.int32)
    for j in tl.static_range(5):
        row = tl.zeros(x.shape, tl.int32)
        for i in tl.static_range(5):
            inside = mask & (first_y + j < height) & (first_x + i < width)
            value = tl.load(image_ptr + (top + first_y + j) * W + left + first_x + i, mask=inside, other=0)
            row += value.to(tl.int32) * _fixed(_tap(x, i, first_x, across, width, cubic), sum_x)
        total += _rounded(row) * _fixed(_tap(y, j, first_y, down, height, cubic), sum_y)
    return _rounded(total)


@triton.jit
def _cubic(v1, v2, v3, v4, d):
    return v2 + d * ((-v1 + v3) + d * ((2 * (v1 - v2) + v3 - v4) + d * (-v1 + v2 - v3 + v4)))


@triton.jit
def _pixel(image_ptr, y, x, H, W):
    return tl.load(image_ptr + _clip(y, H - 1) * W + _clip(x, W - 1)).to(tl.float64)


@triton.jit
def _cubic_row(image_ptr, y, left, d, H, W):
    v1, v2 = _pixel(image_ptr, y, left - 1, H, W), _pixel(image_ptr, y, left, H, W)
    return _cubic(v1, v2, _pixel(image_ptr, y, left + 1, H, W), _pixel(image_ptr, y, left + 2, H, W), d)


@triton.jit
def _linear_row(image_ptr, y, left, d, H, W):
    value = _pixel(image_ptr, y, left, H, W)
    return value + (_pixel(image_ptr, y, left + 1, H, W) - value) * d


@triton.jit
def _fixed_point(v):
    """16.16, far outside where it does not fit."""
    return tl.floor(tl.minimum(tl.maximum(v * 65536 + 0.5, -1099511627776.0), 1099511627776.0)).to(tl.int64)


@triton.jit
def _affine(image_ptr, arg_ptr, y, x, fill, H, W):
    """One channel."""
    a, b, c = tl.load(arg_ptr), tl.load(arg_ptr + 1), tl.load(arg_ptr + 2)
    d, e, f = tl.load(arg_ptr + 3), tl.load(arg_ptr + 4), tl.load(arg_ptr + 5)
    kind = tl.load(arg_ptr + FILTER)
    if kind == NEAREST:
        column = (_fixed_point(a) * x + _fixed_point(b) * y + _fixed_point(c + a * 0.5 + b * 0.5)) >> 16
        row = (_fixed_point(d) * x + _fixed_point(e) * y + _fixed_point(f + d * 0.5 + e * 0.5)) >> 16
        inside = (column >= 0) & (column < W) & (row >= 0) & (row < H)
        value = tl.load(image_ptr + row * W + column, mask=inside, other=0).to(tl.int32)
    else:
        px, py = x.to(tl.float64) + 0.5, y.to(tl.float64) + 0.5
        u, v = a * px + b * py + c, d * px + e * py + f
        inside = (u >= 0) & (u < W) & (v >= 0) & (v < H)
        u, v = tl.where(inside, u, 0.5) - 0.5, tl.where(inside, v, 0.5) - 0.5
        du, dv = u - tl.floor(u), v - tl.floor(v)
        left, above = tl.floor(u).to(tl.int32), tl.floor(v).to(tl.int32)
        if kind == BICUBIC:
            mixed = _cubic(
                _cubic_row(image_ptr, above - 1, left, du, H, W), _cubic_row(image_ptr, above, left, du, H, W),
                _cubic_row(image_ptr, above + 1, left, du, H, W), _cubic_row(image_ptr, above + 2, left, du, H, W), dv,
            )  # fmt: skip
        else:
            upper = _linear_row(image_ptr, above, left, du, H, W)
            mixed = upper + (_linear_row(image_ptr, above + 1, left, du, H, W) - upper) * dv
        value = tl.minimum(tl.maximum(mixed, 0.0), 255.0).to(tl.int32)
    return tl.where(inside, value, fill)


@triton.jit
def _smooth(image_ptr, y, x, own, mask, H, W):
    inner = mask & (y > 0) & (y < H - 1) & (x > 0) & (x < W - 1)
    total = 4 * own
    for j in tl.static_range(3):
        for i in tl.static_range(3):
            total += tl.load(image_ptr + (y + j - 1) * W + x + i - 1, mask=inner, other=0).to(tl.int32)
    return tl.where(inner, (2 * total + 13) // 26, own)


@triton.jit
def augment_step_kernel(
    image_ptr, code_ptr, arg_ptr, table_ptr, fill_ptr, out_ptr, steps, H, W,
    CROPS: tl.constexpr, POLICY: tl.constexpr, C: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One step of the program of image b for BLOCK pixels of each channel; CROPS, POLICY: operations that can come."""
    b, plane = tl.program_id(0), H * W
    code = tl.load(code_ptr + b * steps)
    arg_ptr += b * steps * WIDTH
    image_ptr += b.to(tl.int64) * C * plane
    out_ptr += b.to(tl.int64) * C * plane
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < plane
    y, x = offs // W, offs % W
    for c in range(C):
        channel_ptr = image_ptr + c * plane
        own = tl.load(channel_ptr + offs, mask=mask, other=0).to(tl.int32)
        value = own
        if CROPS:
            flips = tl.load(arg_ptr + FLIPS).to(tl.int32)
            fy, fx = tl.where(flips & 2 == 2, H - 1 - y, y), tl.where(flips & 1 == 1, W - 1 - x, x)
            if code == SHIFT:
                sy, sx = fy + tl.load(arg_ptr).to(tl.int32), fx + tl.load(arg_ptr + 1).to(tl.int32)
                inside = mask & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W)
                value = tl.load(channel_ptr + sy * W + sx, mask=inside, other=0).to(tl.int32)
            elif code == RESIZE:
                value = _resized(channel_ptr, arg_ptr, fy, fx, mask, H, W)
        if POLICY:
            factor = tl.load(arg_ptr).to(tl.float32)
            if code == AFFINE:
                value = _affine(channel_ptr, arg_ptr, y, x, tl.load(fill_ptr + c).to(tl.int32), H, W)
            elif code == COLOR:
                value = _blend(_grey(image_ptr, offs, mask, plane, C), own, factor)
            elif code == SHARPNESS:
                value = _blend(_smooth(channel_ptr, y, x, own, mask, H, W), own, factor)
            elif code >= AUTO_CONTRAST:
                value = tl.load(table_ptr + (b * C + c) * 256 + own).to(tl.int32)
        tl.store(out_ptr + c * plane + offs, value.to(tl.uint8), mask=mask)


@triton.jit
def augment_finish_kernel(
    image_ptr, lam_ptr, box_ptr, erase_ptr, scale_ptr, shift_ptr, normals_ptr, out_ptr, B, C, H, W,
    MIX: tl.constexpr, BOXES: tl.constexpr, MODE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Mixing, normalisation and erasing of BLOCK values of image b."""
    b = tl.program_id(0)
    size = C * H * W
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < size
    c, y, x = offs // (H * W), offs // W % H, offs % W
    value = tl.load(image_ptr + b.to(tl.int64) * size + offs, mask=mask, other=0).to(tl.float32)
    if MIX:
        other = tl.load(image_ptr + (B - 1 - b).to(tl.int64) * size + offs, mask=mask, other=0).to(tl.float32)
        lam = tl.load(lam_ptr + b)
        top, bottom = tl.load(box_ptr + 4 * b), tl.load(box_ptr + 4 * b + 1)
        left, right = tl.load(box_ptr + 4 * b + 2), tl.load(box_ptr + 4 * b + 3)
        both = value * lam.to(tl.float32) + other * (1 - lam).to(tl.float32)
        both = both + 12582912.0 - 12582912.0  # 1.5 * 2^23: to the nearest whole number, halves to even
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        value = tl.where(bottom > top, tl.where(inside, other, value), both)
    value = value * tl.load(scale_ptr + c, mask=mask, other=0.0) + tl.load(shift_ptr + c, mask=mask, other=0.0)
    for i in tl.static_range(BOXES):
        box = erase_ptr + (b * BOXES + i) * 5
        top, left = tl.load(box), tl.load(box + 1)
        inside = (y >= top) & (y < top + tl.load(box + 2)) & (x >= left) & (x < left + tl.load(box + 3))
        noise = tl.zeros((BLOCK,), tl.float32)
        if MODE < 2:
            number = (offs if MODE == 0 else c).to(tl.int64)
            # SplitMix64; constants as signed numbers
            state = tl.load(box + 4) + (number // 4 + 1) * -7046029254386353131
            state = (state ^ (state >> 30 & 0x3FFFFFFFF)) * -4658895280553007687
            state = (state ^ (state >> 27 & 0x1FFFFFFFFF)) * -7723592293110705685
            state = state ^ (state >> 31 & 0x1FFFFFFFF)
            noise = tl.load(normals_ptr + (state >> (16 * (number % 4)) & 0xFFFF))
        value = tl.where(inside, noise, value)
    tl.store(out_ptr + b.to(tl.int64) * size + offs, value, mask=mask)


def pixels(images, codes, args, kinds, fill):
    """`pixels.apply` of cct.data.augment: uint8 (B, C, H, W), codes (B, S), args (B, S, 7) -> uint8 (B, C, H, W).

    kinds: for each step the numbers of the operations that it can hold.
    """
    images, codes, args = images.contiguous(), codes.contiguous(), args.contiguous()
    B, C, H, W = images.shape
    if images.numel() == 0:
        return images
    steps = codes.shape[1]
    table = images.new_empty(B, C, 256)
    for s, kind in enumerate(kinds):
        out = torch.empty_like(images)
        code, arg = codes[:, s:], args[:, s:]
        with torch.cuda.device_of(images):
            if any(4 <= k <= 11 for k in kind):
                augment_tables_kernel[(B, C)](images, code, arg, table, steps, H * W, C=C, BLOCK=BLOCK, **FUSION)
            augment_step_kernel[(B, triton.cdiv(H * W, BLOCK))](
                images, code, arg, table, fill, out, steps, H, W,
                CROPS=bool(kind & {1, 2}), POLICY=any(k > 2 for k in kind), C=C, BLOCK=BLOCK, **FUSION,
            )  # fmt: skip
        images = out
    return images


def finish(images, lam, box, erase, scale, shift, mode, normals):
    """`mixing.mixed`, normalisation and `mixing.erased` of cct.data.augment: uint8 (B, C, H, W) -> float32."""
    images = images.contiguous()
    B, C, H, W = images.shape
    out = torch.empty(images.shape, dtype=torch.float32, device=images.device)
    if images.numel() == 0:
        return out
    mix, boxes = lam is not None, 0 if erase is None else erase.shape[1]
    lam, box = (lam.contiguous(), box.contiguous()) if mix else (scale, scale)  # unread
    erase = erase.contiguous() if boxes else scale
    with torch.cuda.device_of(images):
        augment_finish_kernel[(B, triton.cdiv(C * H * W, BLOCK))](
            images, lam, box, erase, scale, shift, normals, out, B, C, H, W,
            MIX=mix, BOXES=boxes, MODE=mode, BLOCK=BLOCK, **FUSION,
        )  # fmt: skip
    return out
