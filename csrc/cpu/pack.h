// Rearrangements between row-major matrices and the operands of gemm.h, in blocks of 16 x 16 words of 32 bits: a word is a
// float or two neighbouring BFloat16.
#pragma once

#include "gemm.h"

namespace cct::CCT_ISA {

// dst[w * dst_stride + r] = src[r * src_stride + w] for 16 rows r and 16 words w; strides in words.
CCT_INLINE void transpose16(const uint32_t* src, int64_t src_stride, uint32_t* dst, int64_t dst_stride) {
#if defined(__AVX512F__)
  VecU r[16], t[16];
  for (int i = 0; i < 16; ++i) std::memcpy(&r[i], src + i * src_stride, sizeof(VecU));
#define CCT_LOW32 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29
#define CCT_HIGH32 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31
#define CCT_LOW64 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29
#define CCT_HIGH64 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31
#define CCT_EVEN128 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27
#define CCT_ODD128 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], CCT_LOW32);
    t[2 * i + 1] = __builtin_shufflevector(r[2 * i], r[2 * i + 1], CCT_HIGH32);
  }
  for (int i = 0; i < 4; ++i) {
    r[4 * i] = __builtin_shufflevector(t[4 * i], t[4 * i + 2], CCT_LOW64);
    r[4 * i + 1] = __builtin_shufflevector(t[4 * i], t[4 * i + 2], CCT_HIGH64);
    r[4 * i + 2] = __builtin_shufflevector(t[4 * i + 1], t[4 * i + 3], CCT_LOW64);
    r[4 * i + 3] = __builtin_shufflevector(t[4 * i + 1], t[4 * i + 3], CCT_HIGH64);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = __builtin_shufflevector(r[i], r[4 + i], CCT_EVEN128);
    t[4 + i] = __builtin_shufflevector(r[i], r[4 + i], CCT_ODD128);
    t[8 + i] = __builtin_shufflevector(r[8 + i], r[12 + i], CCT_EVEN128);
    t[12 + i] = __builtin_shufflevector(r[8 + i], r[12 + i], CCT_ODD128);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shufflevector(t[i], t[8 + i], CCT_EVEN128);
    r[8 + i] = __builtin_shufflevector(t[i], t[8 + i], CCT_ODD128);
    r[4 + i] = __builtin_shufflevector(t[4 + i], t[12 + i], CCT_EVEN128);
    r[12 + i] = __builtin_shufflevector(t[4 + i], t[12 + i], CCT_ODD128);
  }
#undef CCT_LOW32
#undef CCT_HIGH32
#undef CCT_LOW64
#undef CCT_HIGH64
#undef CCT_EVEN128
#undef CCT_ODD128
  for (int i = 0; i < 16; ++i) std::memcpy(dst + i * dst_stride, &r[i], sizeof(VecU));
#elif defined(__AVX2__)
  for (int w = 0; w < 16; w += 4)  // rows i and i + 4 in the halves of a vector: no shuffle crosses them
    for (int row = 0; row < 16; row += 8) {
      __m256 r[4];
      for (int i = 0; i < 4; ++i) {
        const float* from = reinterpret_cast<const float*>(src + (row + i) * src_stride + w);
        r[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(from)), _mm_loadu_ps(from + 4 * src_stride), 1);
      }
      const __m256 low0 = _mm256_unpacklo_ps(r[0], r[1]), low2 = _mm256_unpacklo_ps(r[2], r[3]);
      const __m256 high0 = _mm256_unpackhi_ps(r[0], r[1]), high2 = _mm256_unpackhi_ps(r[2], r[3]);
      float* to = reinterpret_cast<float*>(dst + w * dst_stride + row);
      _mm256_storeu_ps(to, _mm256_shuffle_ps(low0, low2, 0x44));
      _mm256_storeu_ps(to + dst_stride, _mm256_shuffle_ps(low0, low2, 0xee));
      _mm256_storeu_ps(to + 2 * dst_stride, _mm256_shuffle_ps(high0, high2, 0x44));
      _mm256_storeu_ps(to + 3 * dst_stride, _mm256_shuffle_ps(high0, high2, 0xee));
    }
#else
  for (int w = 0; w < 16; ++w)
    for (int r = 0; r < 16; ++r) dst[w * dst_stride + r] = src[r * src_stride + w];
#endif
}

// 64 x 64 bits transposed, the first column in the lowest bit: halves are exchanged, then halves of these (Warren, "Hacker's
// Delight", 7-3).
CCT_INLINE void transpose_bits(uint64_t (&w)[64]) {
  uint64_t low = 0xffffffff;
  for (int j = 32; j; j >>= 1, low ^= low << j)
    for (int base = 0; base < 64; base += 2 * j)
      for (int k = base; k < base + j; ++k) {
        const uint64_t t = ((w[k] >> j) ^ w[k + j]) & low;
        w[k] ^= t << j;
        w[k + j] ^= t;
      }
}

// Words (rows, words), both multiples of 16, transposed.
CCT_INLINE void transpose_words(const void* src, int64_t src_stride, void* dst, int64_t dst_stride, int64_t rows,
                                int64_t words) {
  const uint32_t* s = static_cast<const uint32_t*>(src);
  uint32_t* d = static_cast<uint32_t*>(dst);
  for (int64_t w = 0; w < words; w += 16)
    for (int64_t r = 0; r < rows; r += 16) transpose16(s + r * src_stride + w, src_stride, d + w * dst_stride + r, dst_stride);
}

// Rows 2t and 2t + 1 of BFloat16 become one row of pairs; floats are copied. `rows` is a multiple of the group, `columns`
// of 16.
CCT_INLINE void interleave_rows(const BFloat16* src, int64_t src_stride, BFloat16* dst, int64_t dst_stride, int64_t rows,
                                int64_t columns) {
  for (int64_t r = 0; r < rows; r += 2) {
    const BFloat16 *a = src + r * src_stride, *b = a + src_stride;
    BFloat16* d = dst + r / 2 * dst_stride;
    for (int64_t c = 0; c < columns; c += kLanes) {  // a BFloat16 is the upper half of its float
      const VecU pair = (VecU)load(a + c) >> 16 | (VecU)load(b + c);
      std::memcpy(static_cast<void*>(d + 2 * c), &pair, sizeof pair);
    }
  }
}
CCT_INLINE void interleave_rows(const float* src, int64_t src_stride, float* dst, int64_t dst_stride, int64_t rows,
                                int64_t columns) {
  for (int64_t r = 0; r < rows; ++r) std::memcpy(dst + r * dst_stride, src + r * src_stride, columns * sizeof(float));
}

// Where the words [16 t, 16 t + 16) x [16 c, 16 c + 16) of a panel of `depth` rows start, and the distance of its rows: see
// gemm.h.
template <typename T>
constexpr int64_t kPanelStride = kTiled<T> ? 16 : kStrip;
template <typename T>
CCT_INLINE uint32_t* panel_words(T* panel, int64_t t, int64_t c, int64_t depth) {
  uint32_t* words = reinterpret_cast<uint32_t*>(panel);
  if constexpr (kTiled<T>) return words + t * 16 * kPanel + c * 16 * 16;
  return words + c * 16 / kStrip * (depth / kGroup<T> * kStrip) + t * 16 * kStrip + c * 16 % kStrip;
}

// Rows [0, K) of the panel of B = src (K, 64), row-major, whose packed depth is `depth`: the rows run along K, which is a
// multiple of 32, or of the group where there are no tiles.
template <typename T>
CCT_INLINE void pack_rows(const T* src, int64_t src_stride, T* panel, int64_t K, int64_t depth) {
  if constexpr (kTiled<T>) {
    for (int64_t k = 0; k < K; k += 32)
      for (int64_t c = 0; c < kPanel; c += 16)
        interleave_rows(src + k * src_stride + c, src_stride, reinterpret_cast<T*>(panel_words(panel, k / 32, c / 16, depth)),
                        32, 32, 16);
  } else {
    for (int64_t c = 0; c < kPanel; c += kStrip)
      interleave_rows(src + c, src_stride, panel + c * depth, kStrip * kGroup<T>, K, kStrip);
  }
}
template <typename T>
CCT_INLINE void pack_rows(const T* src, int64_t src_stride, T* panel, int64_t K) {
  pack_rows(src, src_stride, panel, K, K);
}

// Whether the panel of a row-major (K, 64) is that itself.
template <typename T>
constexpr bool kRowsArePanels = kGroup<T> == 1 && kStrip == kPanel;

// The panel of src (K, 64): src itself, or `packed`, to which pack_unless_panel has brought it.
template <typename T>
CCT_INLINE void pack_unless_panel(const T* src, int64_t src_stride, T* packed, int64_t K) {
  if constexpr (!kRowsArePanels<T>) pack_rows(src, src_stride, packed, K);
}
template <typename T>
CCT_INLINE Panel<T> panel_of_rows(const T* src, int64_t src_stride, const T* packed, int64_t K) {
  if constexpr (kRowsArePanels<T>) return {src, kStrip, src_stride};
  return panel_of(packed, K);
}

// Rows [0, K) and columns [0, columns) of the panel of B = src^T for src (columns, K), row-major: the rows run along the
// columns of B. columns is a multiple of 16, K of 16 words.
template <typename T>
CCT_INLINE void pack_columns(const T* src, int64_t src_stride, T* panel, int64_t columns, int64_t K, int64_t depth) {
  const uint32_t* s = reinterpret_cast<const uint32_t*>(src);
  const int64_t stride = src_stride / kGroup<T>;
  for (int64_t t = 0; t < K / kGroup<T> / 16; ++t)
    for (int64_t c = 0; c < columns / 16; ++c)
      transpose16(s + c * 16 * stride + t * 16, stride, panel_words(panel, t, c, depth), kPanelStride<T>);
}

// dst (columns, rows) = src (rows, columns) transposed; rows a multiple of 32, columns of 16. `pairs` holds rows * columns.
template <typename T>
CCT_INLINE void transpose(const T* src, int64_t src_stride, T* dst, int64_t dst_stride, int64_t rows, int64_t columns,
                          T* pairs) {
  constexpr int64_t g = kGroup<T>;
  if constexpr (g == 1) {
    transpose_words(src, src_stride, dst, dst_stride, rows, columns);
  } else {
    interleave_rows(src, src_stride, pairs, columns * g, rows, columns);
    transpose_words(pairs, columns, dst, dst_stride / g, rows / g, columns);
  }
}

}  // namespace cct::CCT_ISA
