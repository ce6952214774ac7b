// out = MaxPool(ReLU(Conv2d(x))) as tokens, forward and backward, on bands of rows of an image: the rows of x as channel-last
// pixels, their im2col matrix, the convolved band and its pooling stay in the second-level cache; nothing of the size of the
// convolved image is stored. winograd_bands and row_bands do without the matrix.
//
// Forward keeps, for each pooled element, which pixel of its window won (the first maximum, one byte): kNoWinner where ReLU
// made the maximum zero. Backward gathers dout through it,
//   dconv(r, c) = sum of dout(o, q) over the windows (o, q) that pixel (r, c) won     db = sum dconv
//   dW = dconv^T im2col(x)      dx = col2im(dconv W)                                  (the smaller factor is transposed)
// A part of an image owns some convolved rows (for dW, db) and the input rows from its first on (for dx); the convolved rows
// that reach into the latter from the part before are gathered a second time, so parts are independent.
//
// Letters: (Cin, H, W) image, (kh, kw) kernel, stride (sh, sw), padding (ph, pw), (C, Hc, Wc) convolved, (Ho, Wo) pooled;
// K = kh kw Cin, ordered (ky, kx, ci).
#include "conv_tokenizer.h"

#if defined(CCT_ISA)  // ------------------------------------------------------------------------------ kernels, once per set
#include "layernorm.h"
#include "pack.h"
#include "winograd.h"

namespace cct::CCT_ISA {
namespace {

struct Range {
  int64_t first, last;
};

CCT_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
CCT_INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
CCT_INLINE Range share(int64_t n, int64_t i, int64_t shares) { return {i * n / shares, (i + 1) * n / shares}; }

// Of `size` rows, those under the windows `out`.
CCT_INLINE Range rows_under(Range out, int64_t kernel, int64_t stride, int64_t padding, int64_t size) {
  return {most(0, least(size, out.first * stride - padding)), most(0, least(size, (out.last - 1) * stride - padding + kernel))};
}
// Of `count` windows, those over the rows `in`.
CCT_INLINE Range windows_over(Range in, int64_t kernel, int64_t stride, int64_t padding, int64_t count) {
  return {divide_up(in.first + padding - kernel + 1, stride), least(count, (in.last - 1 + padding) / stride + 1)};
}

// The rows of tiles that hold the convolved rows r, and the input rows under such tiles: see winograd.h.
CCT_INLINE Range tiles_over(Range r) { return {r.first / 2, (r.last + 1) / 2}; }
CCT_INLINE Range input_rows_of(const ConvArgs& a, Range s) {
  return rows_under({2 * s.first, 2 * s.last}, 3, 1, a.conv.ph, a.H);
}

template <typename T>
CCT_INLINE void zero(T* p, int64_t n) {
  std::memset(static_cast<void*>(p), 0, n * sizeof(T));
}

template <typename X, typename T>
CCT_INLINE void convert(const X* src, int64_t n, T* dst) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load(src + i));
  if (i < n) store_part(dst + i, load_part(src + i, int(n - i)), int(n - i));
}

constexpr int64_t kRun = 256;  // pixels between planes and channel-last pixels at a time

// Rows y of image b as channel-last pixels.
template <typename X, typename T>
void load_image(const ConvArgs& a, int64_t b, Range y, T* image) {
  const X* x = static_cast<const X*>(a.x) + b * a.Cin * a.H * a.W;
  const int64_t n = (y.last - y.first) * a.W, plane = a.H * a.W;
  if (a.channels_last) return convert(x + y.first * a.W * a.Cin, n * a.Cin, image);
  x += y.first * a.W;
  T line[3][kRun];
  for (int64_t i = 0; i < n; i += kRun) {
    const int64_t m = least(kRun, n - i);
    T* out = image + i * a.Cin;
    if (a.Cin == 3) {  // a constant stride becomes shuffles
      for (int c = 0; c < 3; ++c) convert(x + c * plane + i, m, line[c]);
      for (int64_t j = 0; j < m; ++j)
        for (int c = 0; c < 3; ++c) out[3 * j + c] = line[c][j];
      continue;
    }
    for (int64_t c = 0; c < a.Cin; ++c) {
      convert(x + c * plane + i, m, line[0]);
      for (int64_t j = 0; j < m; ++j) out[j * a.Cin + c] = line[0][j];
    }
  }
}

// The same, each row between zeros up to the whole `line`.
template <typename X, typename T>
void load_lines(const ConvArgs& a, int64_t b, Range y, int64_t line, T* image) {
  const int64_t left = a.conv.pw * a.Cin, right = left + a.W * a.Cin;
  for (int64_t i = y.first; i < y.last; ++i, image += line) {
    zero(image, left);
    load_image<X>(a, b, {i, i + 1}, image + left);
    zero(image + right, line - right);
  }
}

template <typename X>
void store_image(const ConvArgs& a, int64_t b, Range y, const float* image) {
  X* x = static_cast<X*>(a.dx) + b * a.Cin * a.H * a.W;
  const int64_t n = (y.last - y.first) * a.W;
  if (a.channels_last) return convert(image, n * a.Cin, x + y.first * a.W * a.Cin);
  float line[kRun];
  for (int64_t i = 0; i < n; i += kRun)
    for (int64_t c = 0; c < a.Cin; ++c) {
      const int64_t m = least(kRun, n - i);
      for (int64_t j = 0; j < m; ++j) line[j] = image[(i + j) * a.Cin + c];
      convert(line, m, x + (c * a.H + y.first) * a.W + i);
    }
}

// Whole vectors: up to one of them beyond n.
template <typename T>
CCT_INLINE void copy_over(T* dst, const T* src, int64_t n) {
  constexpr int64_t kStep = sizeof(Vec) / sizeof(T);
  for (int64_t i = 0; i < n; i += kStep) {
    Vec v;
    std::memcpy(&v, src + i, sizeof v);
    std::memcpy(dst + i, &v, sizeof v);
  }
}
template <typename T>
CCT_INLINE void zero_over(T* dst, int64_t n) {
  constexpr int64_t kStep = sizeof(Vec) / sizeof(T);
  for (int64_t i = 0; i < n; i += kStep) std::memset(static_cast<void*>(dst + i), 0, sizeof(Vec));
}

// Row i of `columns` = what the kernel rows ky see at convolved pixel m + i, counted from row r0 on: (ky, kx, ci) and zeros up
// to ld. `image` holds the input rows from y0 on. Written from front to back, each piece over the end of the one before.
template <typename T>
void im2col(const ConvArgs& a, const T* image, int64_t y0, int64_t r0, int64_t m, int64_t pixels, Range ky, T* columns,
            int64_t ld) {
  const int64_t run = a.conv.kw * a.Cin;
  int64_t r = r0 + m / a.Wc, c = m % a.Wc;
  for (int64_t i = 0; i < pixels; ++i) {
    T* dst = columns + i * ld;
    const int64_t x = c * a.conv.sw - a.conv.pw, left = most(0, -x), right = least(a.conv.kw, a.W - x);
    for (int64_t k = ky.first; k < ky.last; ++k, dst += run) {
      const int64_t y = r * a.conv.sh - a.conv.ph + k;
      if (y < 0 || y >= a.H || left >= right) {
        zero_over(dst, run);
      } else {
        const T* src = image + ((y - y0) * a.W + x + left) * a.Cin;
        if (right - left < a.conv.kw) {
          zero_over(dst, run);
          std::memcpy(static_cast<void*>(dst + left * a.Cin), src, (right - left) * a.Cin * sizeof(T));
        } else {
          copy_over(dst, src, run);
        }
      }
    }
    zero_over(dst, columns + (i + 1) * ld - dst);
    if (++c == a.Wc) c = 0, ++r;
  }
}

// ---- forward ----

// Integers in the order of the values they stand for: the bits of a float or BFloat16, of negative ones turned over.
template <typename T>
struct Keys {
  typedef VecI Vector;
  typedef int32_t Lane;
  static constexpr Lane kRest = 0x7fffffff;
};
#if defined(CCT_BF16_PRODUCT)
template <>
struct Keys<BFloat16> {
  typedef int16_t Vector __attribute__((vector_size(sizeof(Vec))));
  typedef int16_t Lane;
  static constexpr Lane kRest = 0x7fff;
};
#endif

using cct::CCT_ISA::store_bytes;  // beside the one for halves
#if defined(CCT_BF16_PRODUCT)
CCT_INLINE void store_bytes(uint8_t* p, Keys<BFloat16>::Vector taps) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi16_epi8((__m512i)taps));
}
#endif

template <typename T>
CCT_INLINE typename Keys<T>::Vector turn_negative(typename Keys<T>::Vector k) {  // its own inverse
  return k ^ ((k >> (8 * sizeof(T) - 1)) & Keys<T>::kRest);
}

// conv = ReLU(tile + bias): zeros and NaNs positive, as the order of the bits needs it.
template <typename T>
CCT_INLINE void activate(const ConvArgs& a, const float* tile, const float* bias, T* conv) {
  for (int c = 0; c < kPanel; c += kLanes) {
    Vec v = load(tile + c) + load(bias + c);
    if (a.relu)
      v = (Vec)((VecI)select(v < 0.f, Vec{}, v) & 0x7fffffff);
    else
      v = select(v != v, set(__builtin_nanf("")), v + 0.f);
    store(conv + c, v);
  }
}

// The maximum of 64 channels over one window, and which tap of the window is the first to have it.
template <typename T, bool kWinner>
CCT_INLINE void pool_pixel(const ConvArgs& a, const T* window, int64_t row_stride, int64_t pixel_stride, Range ky, Range kx,
                           T* line, uint8_t* winner) {
  using Key = typename Keys<T>::Vector;
  using Lane = typename Keys<T>::Lane;
  constexpr int kKeys = sizeof(Key) / sizeof(T), kCount = kPanel / kKeys < 4 ? kPanel / kKeys : 4;
  for (int c0 = 0; c0 < kPanel; c0 += kKeys * kCount) {
    Key best[kCount], where[kCount];
    for (int v = 0; v < kCount; ++v) best[v] = Key{} + Lane(-Keys<T>::kRest - 1), where[v] = Key{};
    for (int64_t y = ky.first; y < ky.last; ++y)
      for (int64_t x = kx.first; x < kx.last; ++x) {
        const T* p = window + y * row_stride + x * pixel_stride + c0;
        const Lane tap = Lane(y * a.pool.kw + x);
#pragma GCC unroll 4
        for (int v = 0; v < kCount; ++v) {
          Key k;
          std::memcpy(&k, p + v * kKeys, sizeof k);
          if (!a.relu) k = turn_negative<T>(k);
          if (kWinner) where[v] = k > best[v] ? Key{} + tap : where[v];
          best[v] = k > best[v] ? k : best[v];
        }
      }
    for (int v = 0; v < kCount; ++v) {
      if (kWinner) {
        if (a.relu) where[v] = best[v] == 0 ? Key{} + Lane(kNoWinner) : where[v];
        store_bytes(winner + c0 + v * kKeys, where[v]);
      }
      if (!a.relu) best[v] = turn_negative<T>(best[v]);
      std::memcpy(static_cast<void*>(line + c0 + v * kKeys), &best[v], sizeof best[v]);
    }
  }
}

// Pooled rows o of panel p, from the convolved rows from r0 on; a pixel of `conv` takes `stride` elements.
template <typename X, typename T, bool kWinner>
void pool_rows(const ConvArgs& a, const T* conv, int64_t stride, int64_t r0, int64_t b, Range o, int64_t p) {
  alignas(64) T line[kPanel];
  const int64_t columns = least(kPanel, a.C - p * kPanel);
  for (int64_t i = o.first; i < o.last; ++i)
    for (int64_t q = 0; q < a.Wo; ++q) {
      const int64_t y = i * a.pool.sh - a.pool.ph, x = q * a.pool.sw - a.pool.pw, token = (b * a.Ho + i) * a.Wo + q;
      const Range ky{most(0, -y), least(a.pool.kh, a.Hc - y)}, kx{most(0, -x), least(a.pool.kw, a.Wc - x)};
      pool_pixel<T, kWinner>(a, conv + ((y - r0) * a.Wc + x) * stride, a.Wc * stride, stride, ky, kx, line,
                             kWinner ? a.winner + token * a.Cp + p * kPanel : nullptr);
      convert(line, columns, static_cast<X*>(a.out) + token * a.C + p * kPanel);
    }
}

template <typename X, typename T>
void pool_rows(const ConvArgs& a, const T* conv, int64_t stride, int64_t r0, int64_t b, Range o, int64_t p) {
  a.winner ? pool_rows<X, T, true>(a, conv, stride, r0, b, o, p) : pool_rows<X, T, false>(a, conv, stride, r0, b, o, p);
}

// One item of forward: image, pooled rows, panels of channels, and the convolved rows under the pooled ones.
struct Band {
  int64_t b;
  Range o, slice, r;

  Band(const ConvArgs& a, int64_t item)
      : b(item / a.slices / a.bands),
        o(share(a.Ho, item / a.slices % a.bands, a.bands)),
        slice(share(panels(a.C), item % a.slices, a.slices)),
        r(rows_under(o, a.pool.kh, a.pool.sh, a.pool.ph, a.Hc)) {}
};

template <typename X, typename T>
void winograd_bands(const ConvArgs& a, int64_t first, int64_t last, char* scratch) {
  float *image = take<float>(scratch, a.image_size), *zeros = take<float>(scratch, a.Cin);
  T* V = take<T>(scratch, a.tile_rows * tile_columns(a) * 16 * a.Cin);
  float* M = take<float>(scratch, 16 * kTileRows * kPanel);
  T* conv = take<T>(scratch, a.band_pixels * kPanel);
  zero(zeros, a.Cin);
  for (int64_t item = first; item < last; ++item) {
    const Band band(a, item);
    const Range r = band.r, s = tiles_over(r), y = input_rows_of(a, s);
    load_image<X>(a, band.b, y, image);
    input_tiles(a, image, y.first, s.first, s.last, zeros, (s.last - s.first) * tile_columns(a), V);
    for (int64_t p = band.slice.first; p < band.slice.last; ++p) {
      winograd_pixels(a, V, s.first, s.last, r.first, r.last, p, M, [&](int64_t row, int64_t c, const float* values) {
        activate(a, values, a.bias + p * kPanel, conv + ((row - r.first) * a.Wc + c) * kPanel);
      });
      pool_rows<X, T>(a, conv, kPanel, r.first, band.b, band.o, p);
    }
  }
}

// The products of one kernel row after the other: its pixels under neighbouring windows lie sw pixels apart in a line of the
// image, so the line is their matrix, and the kernel row's part of a panel stays in cache for all lines.
template <typename X>
void row_bands(const ConvArgs& a, int64_t first, int64_t last, char* scratch) {
  float *image = take<float>(scratch, a.image_size), *conv = take<float>(scratch, a.band_pixels * kPanel);
  const int64_t run = a.conv.kw * a.Cin, line = padded_width(a) * a.Cin;
  const int64_t pieces = divide_up(run, kSumDepth<float>), depth = divide_up(run / 16, pieces) * 16;
  for (int64_t item = first; item < last; ++item) {
    const Band band(a, item);
    const Range r = band.r, y = rows_under(r, a.conv.kh, a.conv.sh, a.conv.ph, a.H);
    const int64_t pixels = (r.last - r.first) * a.Wc;
    load_lines<X>(a, band.b, y, line, image);
    for (int64_t p = band.slice.first; p < band.slice.last; ++p) {
      Panel<float> panel = weight_panel<float>(a.weight, p, a.K);
      panel.bytes = 0;  // each part of it is used for long
      zero(conv, pixels * kPanel);
      for (int64_t k = 0; k < a.conv.kh; ++k)
        for (int64_t piece = 0; piece < run; piece += depth)
          for (int64_t row = r.first; row < r.last; ++row) {
            const int64_t iy = row * a.conv.sh - a.conv.ph + k;
            if (iy >= 0 && iy < a.H)
              product<true>(a.Wc, least(depth, run - piece), image + (iy - y.first) * line + piece, a.conv.sw * a.Cin,
                            panel.from(k * run + piece), conv + (row - r.first) * a.Wc * kPanel, kPanel);
          }
      for (int64_t i = 0; i < pixels; ++i) activate(a, conv + i * kPanel, a.bias + p * kPanel, conv + i * kPanel);
      pool_rows<X, float>(a, conv, kPanel, r.first, band.b, band.o, p);
    }
  }
}

template <typename X, typename T>
void forward_bands(const ConvArgs& a, int64_t first, int64_t last, char* scratch) {
  if constexpr (!kTiled<T>)
    if (a.winograd) return winograd_bands<X, T>(a, first, last, scratch);
  if (a.by_rows) return row_bands<X>(a, first, last, scratch);
  const TileScope tiles;
  T* image = take<T>(scratch, a.image_size);
  T* columns = take<T>(scratch, (a.block + 32) * a.Kp);
  T* conv = take<T>(scratch, a.band_pixels * a.group * kPanel);
  const int64_t stride = a.group * kPanel;
  const Window& pool = a.pool;  // without pooling and ReLU the convolved pixels are the tokens
  const bool patches = !a.relu && pool.kh * pool.kw * pool.sh * pool.sw == 1;
  for (int64_t item = first; item < last; ++item) {
    const Band band(a, item);
    const Range r = band.r, y = rows_under(r, a.conv.kh, a.conv.sh, a.conv.ph, a.H);
    const int64_t pixels = (r.last - r.first) * a.Wc;
    load_image<X>(a, band.b, y, image);
    for (int64_t p0 = band.slice.first; p0 < band.slice.last; p0 += a.group) {
      for (int64_t m = 0; m < pixels; m += a.block) {
        const int64_t R = least(a.block, pixels - m);
        if (p0 == band.slice.first) im2col(a, image, y.first, r.first, m, R, {0, a.conv.kh}, columns, a.Kp);
        for (int64_t p = p0; p < p0 + a.group; ++p)
          product_blocks(R, a.K, columns, a.Kp, weight_panel<T>(a.weight, p, a.K), [&](int64_t i, int rows, float* tile) {
            for (int j = 0; j < rows; ++j, tile += kPanel) {
              if (!patches) {
                activate(a, tile, a.bias + p * kPanel, conv + (m + i + j) * stride + (p - p0) * kPanel);
                continue;
              }
              activate(a, tile, a.bias + p * kPanel, tile);
              const int64_t token = (band.b * a.Hc + r.first) * a.Wc + m + i + j;
              convert(tile, least(kPanel, a.C - p * kPanel), static_cast<X*>(a.out) + token * a.C + p * kPanel);
            }
          });
      }
      for (int64_t p = p0; p < p0 + a.group && !patches; ++p)
        pool_rows<X, T>(a, conv + (p - p0) * kPanel, stride, r.first, band.b, band.o, p);
    }
  }
}

// ---- backward ----

// One pooled element's gradient and winners, all channels; the tap that a given pixel is in its window.
template <typename X>
struct Source {
  const X* dout;
  const uint8_t* winner;
  int tap;
};

// d (Cp) = what one convolved pixel receives from its n windows; also added to `sums`, if any.
template <int kCount, typename X, typename T>
CCT_INLINE void gather(const ConvArgs& a, const Source<X>* sources, int n, T* d, float* sums) {
  const int count = kCount ? kCount : n;
  for (int64_t c = 0; c < a.Cp; c += kLanes) {
    Vec total = {};
    for (int s = 0; s < count && c < a.C; ++s) {
      const X* from = sources[s].dout + c;
      Vec v = c + kLanes <= a.C ? load(from) : load_part(from, int(a.C - c));
      if (a.winner) v = select(load_bytes(sources[s].winner + c) == sources[s].tap, v, Vec{});
      total += v;
    }
    store(d + c, total);
    if (sums) store(sums + c, load(sums + c) + total);
  }
}

// dconv of the convolved rows r; those of `own` also summed into dbias in three levels: pixels, parts, all of the thread.
template <typename X, typename T>
void unpool(const ConvArgs& a, int64_t b, Range r, Range own, T* dconv, float* part, float* dbias) {
  Source<X> sources[kNoWinner];
  for (int64_t i = r.first; i < r.last; ++i) {
    const Range o = windows_over({i, i + 1}, a.pool.kh, a.pool.sh, a.pool.ph, a.Ho);
    float* sums = dbias && i >= own.first && i < own.last ? part : nullptr;
    for (int64_t c = 0; c < a.Wc; ++c, dconv += a.Cp) {
      const Range q = windows_over({c, c + 1}, a.pool.kw, a.pool.sw, a.pool.pw, a.Wo);
      int n = 0;
      for (int64_t y = o.first; y < o.last; ++y)
        for (int64_t x = q.first; x < q.last; ++x) {
          const int64_t token = (b * a.Ho + y) * a.Wo + x;
          const int64_t ky = i - (y * a.pool.sh - a.pool.ph), kx = c - (x * a.pool.sw - a.pool.pw);
          sources[n++] = {static_cast<const X*>(a.dout) + token * a.C, a.winner ? a.winner + token * a.Cp : nullptr,
                          int(ky * a.pool.kw + kx)};
        }
      switch (n) {
        case 1:
          gather<1>(a, sources, n, dconv, sums);
          break;
        case 2:
          gather<2>(a, sources, n, dconv, sums);
          break;
        case 4:
          gather<4>(a, sources, n, dconv, sums);
          break;
        default:
          gather<0>(a, sources, n, dconv, sums);
      }
      if (sums && ((c + 1) % kSumRows == 0 || c + 1 == a.Wc)) flush_sums(part, part + a.Cp, a.Cp);
    }
  }
  if (dbias) flush_sums(part + a.Cp, dbias, a.Cp);
}

CCT_INLINE void add(float* total, const float* v, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(total + i, load(total + i) + load(v + i));
  for (; i < n; ++i) total[i] += v[i];
}

// dW += dconv^T im2col(x) over the convolved rows `own`; dconv has room for 32 pixels behind them.
template <typename X, typename T>
void add_weight_gradient(const ConvArgs& a, int64_t b, Range own, T* dconv, const ConvGradients& g, char* scratch) {
  const int64_t pixels = (own.last - own.first) * a.Wc, run = a.conv.kw * a.Cin, ld = a.columns;
  T *image = take<T>(scratch, a.image_size), *columns = take<T>(scratch, (a.block + 32) * ld);
  T* transposed = take<T>(scratch, a.transpose_columns ? a.block * ld : (a.part_pixels + 32) * a.Cp);
  T *pairs = take<T>(scratch, a.block * (a.transpose_columns ? ld : a.Cp)), *panel = take<T>(scratch, a.block * kPanel);
  const Range y = rows_under(own, a.conv.kh, a.conv.sh, a.conv.ph, a.H);
  load_image<X>(a, b, y, image);
  zero(dconv + pixels * a.Cp, (round_up(pixels, 32) - pixels) * a.Cp);
  for (int64_t ky = 0; ky < a.conv.kh; ky += a.chunk) {
    const Range chunk{ky, least(ky + a.chunk, a.conv.kh)};
    const int64_t k0 = ky * run, width = (chunk.last - ky) * run;
    for (int64_t m = 0; m < pixels; m += a.block) {
      const int64_t R = least(a.block, pixels - m), depth = round_up(R, 32);
      T* d = dconv + m * a.Cp;
      im2col(a, image, y.first, own.first, m, R, chunk, columns, ld);
      zero(columns + R * ld, (depth - R) * ld);
      if (a.transpose_columns) {
        transpose(columns, ld, transposed, depth, depth, round_up(width, 16), pairs);
        for (int64_t p = 0; p < panels(a.C); ++p) {
          pack_rows(d + p * kPanel, a.Cp, panel, depth);
          product_blocks(width, depth, transposed, depth, panel_of(panel, depth), [&](int64_t i, int rows, float* tile) {
            for (int j = 0; j < rows; ++j)
              add(g.dweight + (k0 + i + j) * g.weight_stride + p * kPanel, tile + j * kPanel, kPanel);
          });
        }
      } else {
        T* dT = transposed + m * a.Cp;
        if (ky == 0) transpose(d, a.Cp, dT, depth, depth, a.Cp, pairs);
        for (int64_t p = 0; p < panels(width); ++p) {
          pack_rows(columns + p * kPanel, ld, panel, depth);
          product_blocks(a.C, depth, dT, depth, panel_of(panel, depth), [&](int64_t i, int rows, float* tile) {
            for (int j = 0; j < rows; ++j)
              add(g.dweight + (i + j) * g.weight_stride + k0 + p * kPanel, tile + j * kPanel, kPanel);
          });
        }
      }
    }
  }
}

// The input rows y of dx = col2im(dconv W); dconv holds the convolved rows r, all that see these input rows.
template <typename X, typename T>
void input_gradient(const ConvArgs& a, int64_t b, Range y, Range r, const T* dconv, char* scratch) {
  float* dx = take<float>(scratch, a.dx_size);
  const int64_t line = a.W * a.Cin, run = a.conv.kw * a.Cin;
  zero(dx, (y.last - y.first) * line);
  for (int64_t p = 0; p < panels(a.K); ++p) {
    const int64_t k0 = p * kPanel, k1 = least(a.K, k0 + kPanel);
    const Panel<T> weight = weight_panel<T>(a.weight_back, p, a.C);
    product_blocks((r.last - r.first) * a.Wc, a.C, dconv, a.Cp, weight, [&](int64_t i, int rows, float* tile) {
      int64_t row = r.first + i / a.Wc, c = i % a.Wc;
      for (int j = 0; j < rows; ++j) {
        const int64_t x = (c * a.conv.sw - a.conv.pw) * a.Cin;  // where the window's left edge is in its line
        for (int64_t ky = k0 / run; ky * run < k1; ++ky) {
          const int64_t iy = row * a.conv.sh - a.conv.ph + ky;
          const int64_t from = most(most(k0 - ky * run, 0), -x), to = least(least(k1 - ky * run, run), line - x);
          if (iy >= y.first && iy < y.last && from < to)
            add(dx + (iy - y.first) * line + x + from, tile + j * kPanel + ky * run + from - k0, to - from);
        }
        if (++c == a.Wc) c = 0, ++row;
      }
    });
  }
  store_image<X>(a, b, y, dx);
}

// Both of the above by winograd.h: dW over the convolved rows `own`, dx of the input rows y, which the rows `seeing` see. dconv
// holds the convolved rows from `start` on.
template <typename X, typename T>
void winograd_gradients(const ConvArgs& a, int64_t b, Range own, Range seeing, Range y, int64_t start, const T* dconv,
                        const ConvGradients& g, char* scratch) {
  const int64_t rows = backward_tiles(a), pairs = kGroup<T> > 1 ? 16 * rows * a.Cin : 0;
  float *image = take<float>(scratch, a.image_size), *dx = take<float>(scratch, a.dx_size);
  const bool need_x = a.dx && y.first < y.last, together = need_x && own.first == seeing.first && own.last == seeing.last;
  WinogradPass<T> w{};
  w.line = take<float>(scratch, 2 * most(a.Cin, kPanel)), w.dV = take<float>(scratch, 16 * rows * round_up64(a.Cin));
  w.V = take<T>(scratch, 16 * rows * a.Cin), w.Z = take<T>(scratch, 16 * rows * kPanel);
  w.pairs = take<T>(scratch, pairs), w.panel = take<T>(scratch, pairs ? rows * kPanel : 0);
  auto pass = [&](Range r, bool dweight, bool dx_too) {
    w.dconv = dconv + (r.first - start) * a.Wc * a.Cp, w.r0 = r.first, w.r1 = r.last;
    w.dweight = dweight ? g.dweight : nullptr, w.dx = dx_too ? dx : nullptr;
    winograd_backward(a, w);
  };
  if (g.dweight) {
    const Range rows = input_rows_of(a, tiles_over(own));
    load_image<X>(a, b, rows, image);
    w.image = image, w.y0 = rows.first;
  }
  if (need_x) {
    zero(dx, (y.last - y.first) * a.W * a.Cin);
    w.dx0 = y.first, w.dx1 = y.last;
  }
  if (g.dweight) pass(own, true, together);
  if (need_x && !(g.dweight && together)) pass(seeing, false, true);
  if (need_x) store_image<X>(a, b, y, dx);
}

// The first input row of a part that begins with convolved row r.
CCT_INLINE int64_t input_row(const ConvArgs& a, int64_t r) {
  return r == 0 ? 0 : r == a.Hc ? a.H : most(0, least(a.H, r * a.conv.sh - a.conv.ph));
}

template <typename X, typename T>
void backward_parts(const ConvArgs& a, int64_t first, int64_t last, const ConvGradients& g, char* scratch) {
  const TileScope tiles;
  float* part = take<float>(scratch, 2 * a.Cp);
  zero(part, 2 * a.Cp);
  T* dconv = take<T>(scratch, (a.part_pixels + 32) * a.Cp);
  for (int64_t item = first; item < last; ++item) {
    const int64_t b = item / a.parts;
    const Range own = share(a.Hc, item % a.parts, a.parts), y{input_row(a, own.first), input_row(a, own.last)};
    Range seeing = own;  // the convolved rows that see the input rows y; they end with the own ones at most
    if (a.dx && y.first < y.last) seeing = windows_over(y, a.conv.kh, a.conv.sh, a.conv.ph, a.Hc);
    if (seeing.first >= seeing.last) seeing = own;
    const int64_t start = least(own.first, seeing.first);
    unpool<X>(a, b, {start, own.last}, own, dconv, part, g.dbias);
    if constexpr (!kTiled<T>)
      if (a.winograd) {
        winograd_gradients<X>(a, b, own, seeing, y, start, dconv, g, scratch);
        continue;
      }
    if (g.dweight) add_weight_gradient<X>(a, b, own, dconv + (own.first - start) * a.Wc * a.Cp, g, scratch);
    if (a.dx && y.first < y.last) input_gradient<X>(a, b, y, seeing, dconv + (seeing.first - start) * a.Wc * a.Cp, scratch);
  }
}

template <typename X>
void forward_any(const ConvArgs& a, int64_t first, int64_t last, char* scratch) {
#if defined(CCT_BF16_PRODUCT)
  if (a.bf16) return forward_bands<X, BFloat16>(a, first, last, scratch);
#endif
  forward_bands<X, float>(a, first, last, scratch);
}

template <typename X>
void backward_any(const ConvArgs& a, int64_t first, int64_t last, const ConvGradients& g, char* scratch) {
#if defined(CCT_BF16_PRODUCT)
  if (a.bf16) return backward_parts<X, BFloat16>(a, first, last, g, scratch);
#endif
  backward_parts<X, float>(a, first, last, g, scratch);
}

}  // namespace

void conv_tokenizer_forward_bands(const ConvArgs& a, int64_t first, int64_t last, char* scratch) {
  a.x_bf16 ? forward_any<BFloat16>(a, first, last, scratch) : forward_any<float>(a, first, last, scratch);
}

void conv_tokenizer_backward_parts(const ConvArgs& a, int64_t first, int64_t last, const ConvGradients& g, char* scratch) {
  a.x_bf16 ? backward_any<BFloat16>(a, first, last, g, scratch) : backward_any<float>(a, first, last, g, scratch);
}

}  // namespace cct::CCT_ISA

#else  // ----------------------------------------------------------------------------------------- checks, threads,
       // registration
#include "forward.h"

namespace cct {
namespace {

constexpr const char* kOp = "conv_tokenizer";

void check_ints(const char* name, at::IntArrayRef values, size_t count, int64_t least) {
  TORCH_CHECK_VALUE(values.size() == count, kOp, ": ", name, " has ", values.size(), " values; expected ", count);
  for (int64_t v : values)
    TORCH_CHECK_VALUE(v >= least && v <= INT32_MAX, kOp, ": ", name, " is ", values, "; expected ints from ", least,
                      " to 2^31 - 1");
}

int64_t output_size(const char* what, int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
  TORCH_CHECK_VALUE(size + 2 * padding >= kernel, kOp, ": ", what, " is ", kernel,
                    "; expected at most the image with padding, ", size + 2 * padding);
  return (size + 2 * padding - kernel) / stride + 1;
}

// The arguments of one call, with the tensors that they point into.
struct ConvCall {
  ConvArgs a{};
  at::Tensor x, packed, bias;
  int64_t B;
  bool channels_last;  // strides of x

  ConvCall(const at::Tensor& x_in, const at::Tensor& weight, at::IntArrayRef stride, at::IntArrayRef padding, bool relu,
           at::IntArrayRef pool, at::ScalarType compute) {
    TORCH_CHECK_VALUE(x_in.dim() == 4, kOp, ": x has ", x_in.dim(), " dimensions; expected 4");
    TORCH_CHECK_VALUE(weight.dim() == 4, kOp, ": weight has ", weight.dim(), " dimensions; expected 4");
    check_dtype(kOp, "x", x_in);
    check_dtype(kOp, "weight", weight);
    B = x_in.size(0);
    a.Cin = x_in.size(1), a.H = x_in.size(2), a.W = x_in.size(3), a.C = weight.size(0);
    check_tensor(kOp, "x", x_in, x_in.sizes(), x_in.scalar_type());
    check_tensor(kOp, "weight", weight, {a.C, a.Cin, weight.size(2), weight.size(3)}, weight.scalar_type());
    TORCH_CHECK_VALUE(a.Cin > 0 && a.H > 0 && a.W > 0, kOp, ": x has shape ", x_in.sizes(), "; expected a channel and a pixel");
    TORCH_CHECK_VALUE(weight.numel() > 0, kOp, ": weight has shape ", weight.sizes(), "; expected no empty dimension");
    check_ints("stride", stride, 2, 1);
    check_ints("padding", padding, 2, 0);
    check_ints("pool", pool, 6, 0);
    check_ints("pool kernel and stride", pool.slice(0, 4), 4, 1);
    a.conv = {weight.size(2), weight.size(3), stride[0], stride[1], padding[0], padding[1]};
    a.pool = {pool[0], pool[1], pool[2], pool[3], pool[4], pool[5]};
    TORCH_CHECK_VALUE(2 * pool[4] <= pool[0] && 2 * pool[5] <= pool[1], kOp, ": pool padding is ", pool.slice(4),
                      "; expected at most half the pool kernel ", pool.slice(0, 2));
    TORCH_CHECK_VALUE(pool[0] * pool[1] <= kNoWinner, kOp, ": pool kernel is ", pool.slice(0, 2), "; expected at most ",
                      int(kNoWinner), " pixels");
    TORCH_CHECK_VALUE(double(a.H) * double(a.W) * double(a.Cin) < 0x1p40 && weight.numel() < int64_t(1) << 40, kOp,
                      ": x has shape ", x_in.sizes(), " and weight ", weight.sizes(),
                      "; expected fewer than 2^40 elements in an image and the weight");
    a.Hc = output_size("weight height", a.H, a.conv.kh, a.conv.sh, a.conv.ph);
    a.Wc = output_size("weight width", a.W, a.conv.kw, a.conv.sw, a.conv.pw);
    a.Cp = round_up64(a.C);
    TORCH_CHECK_VALUE(double(a.Hc) * double(a.Wc) * double(a.Cp) < 0x1p40, kOp, ": the convolved image is ", a.Hc, " x ", a.Wc,
                      " pixels of ", a.C, " channels; expected fewer than 2^40 elements");
    a.Ho = output_size("pool kernel", a.Hc, pool[0], pool[2], pool[4]);
    a.Wo = output_size("pool kernel", a.Wc, pool[1], pool[3], pool[5]);
    TORCH_CHECK_VALUE(double(B) * double(a.Ho) * double(a.Wo) * double(a.Cp) < 0x1p50, kOp, ": the result is ", B, " x ", a.Ho,
                      " x ", a.Wo, " x ", a.C, "; expected fewer than 2^50 elements");
    a.K = a.conv.kh * a.conv.kw * a.Cin;
    a.relu = relu;
    a.x_bf16 = x_in.scalar_type() == at::kBFloat16;
    a.bf16 = bf16_products(compute);
    a.winograd = suits_winograd(a, isa() == Isa::kAmx);
    a.by_rows = suits_rows(a);
    channels_last = !x_in.is_contiguous() && x_in.is_contiguous(at::MemoryFormat::ChannelsLast);
    x = channels_last ? x_in : x_in.contiguous();
    a.channels_last = channels_last || a.Cin == 1;
    a.x = x.const_data_ptr();
  }
};

}  // namespace

std::tuple<at::Tensor, at::Tensor> conv_tokenizer_forward(const at::Tensor& x, const at::Tensor& weight,
                                                          const OptionalTensor& bias, at::IntArrayRef stride,
                                                          at::IntArrayRef padding, bool relu, at::IntArrayRef pool,
                                                          at::ScalarType compute, bool keep) {
  ConvCall call(x, weight, stride, padding, relu, pool, compute);
  ConvArgs& a = call.a;
  const int64_t B = call.B;
  check_tensor(kOp, "bias", bias, {a.C}, weight.scalar_type());
  const bool choice = relu || a.pool.kh * a.pool.kw > 1;
  at::Tensor out = pooled_empty({B, a.Ho * a.Wo, a.C}, x.scalar_type());
  at::Tensor winner = pooled_empty({keep && choice ? B : 0, a.Ho * a.Wo, a.Cp}, at::kByte);
  if (B == 0) return {out, winner};
  call.packed = a.winograd ? pack_winograd(weight, true, a.bf16) : pack_weight(weight, true, 0, a.bf16);
  call.bias = padded_vector(bias, a.C);
  a.weight = call.packed.const_data_ptr();
  a.bias = call.bias.const_data_ptr<float>();
  a.out = out.data_ptr();
  a.winner = keep && choice ? winner.data_ptr<uint8_t>() : nullptr;

  const int64_t bytes = plan_forward(a, B, at::get_num_threads());
  for_slices(B * a.bands * a.slices, kForwardSlices, [&](int64_t first, int64_t last, int64_t) {
    CCT_CALL(conv_tokenizer_forward_bands, a, first, last, thread_scratch(bytes));
  });
  return {out, winner};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> conv_tokenizer_backward(const at::Tensor& dout_in, const at::Tensor& x,
                                                                       const at::Tensor& weight, const at::Tensor& winner_in,
                                                                       at::IntArrayRef stride, at::IntArrayRef padding,
                                                                       bool relu, at::IntArrayRef pool, at::ScalarType compute,
                                                                       std::array<bool, 3> output_mask) {
  ConvCall call(x, weight, stride, padding, relu, pool, compute);
  ConvArgs& a = call.a;
  const int64_t B = call.B;
  const auto [need_x, need_weight, need_bias] = output_mask;
  const bool choice = relu || a.pool.kh * a.pool.kw > 1;
  check_tensor(kOp, "dout", dout_in, {B, a.Ho * a.Wo, a.C}, x.scalar_type());
  check_tensor(kOp, "winner", winner_in, {choice ? B : 0, a.Ho * a.Wo, a.Cp}, at::kByte);
  const at::Tensor dout = dout_in.contiguous(), winner = winner_in.contiguous();
  a.dout = dout.const_data_ptr();
  a.winner = choice ? static_cast<uint8_t*>(winner.data_ptr()) : nullptr;
  at::Tensor dx = at::empty({0}, x.options());
  if (need_x) {
    dx = call.channels_last ? pooled_empty({B, a.H, a.W, a.Cin}, x.scalar_type()).permute({0, 3, 1, 2})
                            : pooled_empty(x.sizes(), x.scalar_type());
    call.packed = a.winograd ? pack_winograd(weight, false, a.bf16) : pack_weight(weight, false, 0, a.bf16);
    a.weight_back = call.packed.const_data_ptr();
    a.dx = dx.data_ptr();
  }
  const int64_t threads = at::get_num_threads(), bytes = plan_backward(a, B, threads), stride_w = weight_gradient_stride(a);
  const int64_t dw = need_weight ? weight_gradient_rows(a) * stride_w : 0;
  at::Tensor sums = pooled_zeros({count_slices(B * a.parts, backward_slices()), dw + a.Cp}, at::kFloat);
  for_slices(B * a.parts, backward_slices(), [&](int64_t first, int64_t last, int64_t slot) {
    float* s = sums.data_ptr<float>() + slot * sums.size(1);
    const ConvGradients g{need_weight ? s : nullptr, need_bias ? s + dw : nullptr, stride_w};
    CCT_CALL(conv_tokenizer_backward_parts, a, first, last, g, thread_scratch(bytes));
  });
  const at::Tensor total = sums.size(0) == 1 ? sums[0] : sums.sum(0);
  at::Tensor dweight = at::empty({0}, weight.options()), dbias = at::empty({0}, weight.options());
  if (need_weight) {
    at::Tensor d = total.narrow(0, 0, dw).view({-1, stride_w});
    if (a.winograd) d = exact_mm(winograd_matrix().t(), d.view({16, -1})).view({9 * a.Cin, stride_w});
    d = a.winograd || a.transpose_columns ? d.narrow(1, 0, a.C).t() : d.narrow(1, 0, a.K);
    dweight = d.reshape({a.C, a.conv.kh, a.conv.kw, a.Cin}).permute({0, 3, 1, 2}).to(weight.scalar_type()).contiguous();
  }
  if (need_bias) dbias = total.narrow(0, dw, a.C).to(weight.scalar_type(), false, true);
  return {dx, dweight, dbias};
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) {
  m.impl("conv_tokenizer_forward", TORCH_FN(cct::conv_tokenizer_forward));
  m.impl("conv_tokenizer_backward", TORCH_FN(cct::conv_tokenizer_backward));
}
#endif
