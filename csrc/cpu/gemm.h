// The matrix product of all CPU kernels: 32 rows at a time against a packed panel of 64 columns, with the epilogue run on the
// result while it is in the first-level cache.
//
// T is the compute type: float everywhere, BFloat16 where the instruction set multiplies it (AVX-512 BF16, AMX). Operands:
//   A      row-major (M, K), leading dimension lda >= padded_k(K), zeros between K and padded_k(K); for AMX the memory of the
//          rows up to the next multiple of 16 must exist (their values do not matter)
//   panel  columns [64 p, 64 p + 64) of B in strips of kStrip columns, [64 / strip][depth / group][strip][group] with group = 2
//          for BFloat16 (VNNI), 1 for float, and depth the rows packed: what the registers go over is one piece of memory,
//          which the hardware sees coming; for AMX whole tiles one after the other, [depth / 32][4][16][16][2]
// Sums are float32.
#pragma once

#include "scratch.h"
#include "simd.h"

#if defined(__AVX512BF16__)
#define CCT_BF16_PRODUCT  // this set multiplies BFloat16
#endif

// fn<X, T>(...) for the storage X and the compute type T that the arguments `a` of an op ask for.
#if defined(CCT_BF16_PRODUCT)
#define CCT_TYPED(fn, ...)                                                                      \
  (a.x_bf16 ? (a.bf16 ? fn<BFloat16, BFloat16>(__VA_ARGS__) : fn<BFloat16, float>(__VA_ARGS__)) \
            : (a.bf16 ? fn<float, BFloat16>(__VA_ARGS__) : fn<float, float>(__VA_ARGS__)))
#else
#define CCT_TYPED(fn, ...) (a.x_bf16 ? fn<BFloat16, float>(__VA_ARGS__) : fn<float, float>(__VA_ARGS__))
#endif

namespace cct::CCT_ISA {

constexpr int kPanel = 64;              // columns
constexpr int kBlockRows = 32;          // rows of one epilogue call
constexpr int kVecs = kPanel / kLanes;  // vectors in a row of a tile

template <typename T>
constexpr int kGroup = 1;
template <>
constexpr int kGroup<BFloat16> = 2;

#if defined(__AMX_BF16__)
template <typename T>
constexpr int kStepK = 1;
template <>
constexpr int kStepK<BFloat16> = 32;  // one tile row
#else
template <typename T>
constexpr int kStepK = kGroup<T>;
#endif

template <typename T>
constexpr bool kTiled = kStepK<T> == 32;  // panels of tiles

template <typename T>
CCT_INLINE constexpr int64_t padded_k(int64_t K) {
  return round_up(K, kStepK<T>);
}
CCT_INLINE constexpr int64_t panels(int64_t columns) { return (columns + kPanel - 1) / kPanel; }
CCT_INLINE constexpr int64_t panel_size(int64_t K) { return round_up(K, 32) * kPanel; }  // elements, for every set and type

// MR rows x NV vectors in registers: 6 x 4 of the 32 registers of AVX-512, 6 x 2 of 16 with AVX2, 4 x 2 with SSE or NEON.
#if defined(__AVX512F__)
constexpr int kRows = 6, kColumns = 4;
#elif defined(__AVX2__)
constexpr int kRows = 6, kColumns = 2;
#else
constexpr int kRows = 4, kColumns = 2;
#endif

constexpr int kStrip = kColumns * kLanes < 16 ? 16 : kColumns * kLanes;  // columns; a multiple of a transposed block
// What Intel's servers run (others with AVX-512 multiply bfloat16 too): weights come from a third-level cache that is far away.
#if defined(__AMX_BF16__) || (defined(__AVX512F__) && !defined(__AVX512BF16__))
constexpr bool kFarWeights = true;
#else
constexpr bool kFarWeights = false;
#endif
constexpr bool kAsksAhead = kFarWeights || kLanes == 8;  // narrow vectors outrun the hardware's prefetching of weights

// A packed panel. While it is multiplied the `bytes` from `next` on, those of the panel after it, are asked for.
template <typename T>
struct Panel {
  const T* data;
  int64_t strip, row;  // elements from a strip to the next, from a row to the next
  const char* next = nullptr;
  int64_t bytes = 0;

  CCT_INLINE Panel from(int64_t k) const { return {data + k * (row / kGroup<T>), strip, row, next, bytes}; }  // rows from k on
  CCT_INLINE Panel ahead(int64_t part, int64_t parts) const {  // the share of such a part of the product
    if (!kAsksAhead) return *this;
    return {data, strip, row, next + part * bytes / parts, bytes / parts};
  }
};

// The panel that starts at `data`, `depth` rows of it packed.
template <typename T>
CCT_INLINE Panel<T> panel_of(const T* data, int64_t depth) {
  return {data, depth * kStrip, kStrip * kGroup<T>};
}
// Row-major floats (K, 64) as they are.
CCT_INLINE Panel<float> panel_of_rows(const float* data) { return {data, kStrip, kPanel}; }
// Panel p of a packed weight (K, columns).
template <typename T>
CCT_INLINE Panel<T> weight_panel(const void* weight, int64_t p, int64_t K) {
  Panel<T> panel = panel_of(static_cast<const T*>(weight) + p * panel_size(K), round_up(K, 32));
  panel.next = reinterpret_cast<const char*>(panel.data + panel_size(K));
  panel.bytes = panel_size(K) * int64_t(sizeof(T));
  return panel;
}
// Where row k of a panel begins, in its first strip.
template <typename T>
CCT_INLINE T* panel_row(T* panel, int64_t k) {
  return panel + k * kStrip;
}

#if defined(__AMX_BF16__)
// All eight tiles 16 rows of 64 bytes. A static object: GCC's intrinsic declares only the first 8 bytes as read.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static const TileConfig kTileConfig;
#endif

// Tile registers are configured once for each thread's share of an op.
struct TileScope {
#if defined(__AMX_BF16__)
  TileScope() { _tile_loadconfig(&kTileConfig); }
  ~TileScope() { _tile_release(); }
#else
  TileScope() {}
  ~TileScope() {}  // so that a scope is never an unused variable
#endif
  TileScope(const TileScope&) = delete;
};

#if defined(CCT_BF16_PRODUCT)
CCT_INLINE Vec multiply_add(Vec c, const BFloat16* a, Vec b) {  // two products a lane
  uint32_t pair;
  std::memcpy(&pair, a, 4);
  return (Vec)_mm512_dpbf16_ps((__m512)c, (__m512bh)_mm512_set1_epi32(int(pair)), (__m512bh)b);
}
#endif
CCT_INLINE Vec multiply_add(Vec c, const float* a, Vec b) { return c + b * *a; }

// Element (i, k) of A; transposed, A is stored as (K / group, lda, group).
template <bool kTransposed, typename T>
CCT_INLINE const T* element(const T* A, int64_t lda, int64_t i, int64_t k) {
  return kTransposed ? A + k * lda + i * kGroup<T> : A + i * lda + k;
}

// What is still to be asked for, so many bytes a row of B, or a row of tiles.
struct Ahead {
  const char* next;
  int64_t step;
};

template <int MR, int NV, bool kAdd, bool kTransposed, typename T>
CCT_INLINE void register_block(int64_t K, const T* A, int64_t lda, const T* B, int64_t row, float* C, int64_t ldc,
                               Ahead& ahead) {
  Vec acc[MR][NV];
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) acc[i][j] = Vec{};
  const float* b = reinterpret_cast<const float*>(B);
  const int64_t stride = row / kGroup<T>;
  const char* next = ahead.next;
  for (int64_t k = 0; k < K; k += kGroup<T>, b += stride) {
    if constexpr (kAsksAhead) __builtin_prefetch(next, 0, 2), next += ahead.step;
    Vec bv[NV];
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) bv[j] = load(b + j * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[i][j] = multiply_add(acc[i][j], element<kTransposed>(A, lda, i, k), bv[j]);
  }
  ahead.next = next;
#pragma GCC unroll 8
  for (int i = 0; i < MR; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) {
      float* c = C + i * ldc + j * kLanes;
      store(c, kAdd ? load(c) + acc[i][j] : acc[i][j]);  // added last: a sum of sums keeps more digits than one long chain
    }
}

// register_block of `rows` rows, 1 to MR.
template <int MR, int NV, bool kAdd, bool kTransposed, typename T>
CCT_INLINE void few_rows(int64_t rows, int64_t K, const T* A, int64_t lda, const T* B, int64_t row, float* C, int64_t ldc,
                         Ahead& ahead) {
  if constexpr (MR > 1)
    if (rows < MR) return few_rows<MR - 1, NV, kAdd, kTransposed>(rows, K, A, lda, B, row, C, ldc, ahead);
  register_block<MR, NV, kAdd, kTransposed>(K, A, lda, B, row, C, ldc, ahead);
}

// NV vectors of columns, in nearly equal parts of 4 to 6 rows: the additions of one or two are too few to hide their latency.
template <int NV, bool kAdd, bool kTransposed, typename T>
CCT_INLINE void column_product(int64_t M, int64_t K, const T* A, int64_t lda, const T* B, int64_t row, float* C, int64_t ldc,
                               Ahead& ahead) {
  int64_t parts = (M + kRows - 1) / kRows;
  for (int64_t i = 0, rows; i < M; i += rows, --parts) {
    rows = (M - i + parts - 1) / parts;
    few_rows<kRows, NV, kAdd, kTransposed>(rows, K, element<kTransposed>(A, lda, i, 0), lda, B, row, C + i * ldc, ldc, ahead);
  }
}

// The last `vectors` < kColumns of columns, so seldom that it is no part of its callers.
template <int NV, bool kAdd, bool kTransposed, typename T>
__attribute__((noinline)) void last_columns(int64_t vectors, int64_t M, int64_t K, const T* A, int64_t lda, const T* B,
                                            int64_t row, float* C, int64_t ldc, Ahead& ahead) {
  if constexpr (NV > 1)
    if (vectors < NV) return last_columns<NV - 1, kAdd, kTransposed>(vectors, M, K, A, lda, B, row, C, ldc, ahead);
  column_product<NV, kAdd, kTransposed>(M, K, A, lda, B, row, C, ldc, ahead);
}

template <bool kAdd, bool kTransposed, typename T>
CCT_INLINE void vector_product(int64_t M, int64_t K, const T* A, int64_t lda, const Panel<T>& panel, float* C, int64_t ldc,
                               int64_t columns) {
  constexpr int kWidth = kColumns * kLanes;
  const int64_t count = (M + kRows - 1) / kRows;
  // nothing to ask for: a line that is there, as the address 0 would be looked up each time
  Ahead ahead{panel.bytes ? panel.next : reinterpret_cast<const char*>(panel.data), 0};
  if (kAsksAhead && panel.bytes) ahead.step = panel.bytes / (count * ((columns + kWidth - 1) / kWidth) * K) + 1;
  for (int64_t c = 0; c < columns; c += kWidth) {
    const T* B = panel.data + c / kStrip * panel.strip + c % kStrip * kGroup<T>;
    const int64_t vectors = (columns - c + kLanes - 1) / kLanes;
    if (vectors < kColumns)
      last_columns<kColumns - 1, kAdd, kTransposed>(vectors, M, K, A, lda, B, panel.row, C + c, ldc, ahead);
    else
      column_product<kColumns, kAdd, kTransposed>(M, K, A, lda, B, panel.row, C + c, ldc, ahead);
  }
}

// Without fused multiply-add every product is rounded as well; sums in pieces of 32 keep the error of the other sets.
template <bool kAdd, bool kTransposed, typename T>
CCT_INLINE void float_product(int64_t M, int64_t K, const T* A, int64_t lda, const Panel<T>& panel, float* C, int64_t ldc,
                              int64_t columns) {
#if defined(__FMA__)
  vector_product<kAdd, kTransposed>(M, K, A, lda, panel, C, ldc, columns);
#else
  constexpr int64_t kPiece = 32;
  vector_product<kAdd, kTransposed>(M, K < kPiece ? K : kPiece, A, lda, panel, C, ldc, columns);
  for (int64_t k = kPiece; k < K; k += kPiece)
    vector_product<true, kTransposed>(M, K - k < kPiece ? K - k : kPiece, element<kTransposed>(A, lda, 0, k), lda,
                                      panel.from(k), C, ldc, columns);
#endif
}

#if defined(__AMX_BF16__)
// 32 rows: two tiles down, two across, for each half of the panel.
template <bool kAdd>
CCT_INLINE void tile_rows32(int64_t K, const BFloat16* A, int64_t lda, const BFloat16* panel, float* C, int64_t ldc,
                            Ahead& ahead) {
  const char* next = ahead.next;
  const int64_t a_stride = lda * 2, c_stride = ldc * 4;
  for (int half = 0; half < kPanel; half += 32) {
    float* c = C + half;
    if (kAdd) {
      _tile_loadd(0, c, c_stride);
      _tile_loadd(1, c + 16, c_stride);
      _tile_loadd(2, c + 16 * ldc, c_stride);
      _tile_loadd(3, c + 16 * ldc + 16, c_stride);
    } else {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
    }
    const BFloat16* b = panel + half * 32;
    for (int64_t k = 0; k < K; k += 32, b += 32 * kPanel) {
      _tile_loadd(4, A + k, a_stride);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      _tile_loadd(7, b + 512, 64);
      _tile_dpbf16ps(1, 4, 7);
      for (const char* end = next + ahead.step; next < end; next += 64) __builtin_prefetch(next, 0, 2);
      _tile_loadd(5, A + 16 * lda + k, a_stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, c_stride);
    _tile_stored(1, c + 16, c_stride);
    _tile_stored(2, c + 16 * ldc, c_stride);
    _tile_stored(3, c + 16 * ldc + 16, c_stride);
  }
  ahead.next = next;
}

// 16 rows: four tiles across.
template <bool kAdd>
CCT_INLINE void tile_rows16(int64_t K, const BFloat16* A, int64_t lda, const BFloat16* b, float* c, int64_t ldc,
                            const Ahead& ahead) {
  const char* next = ahead.next;
  const int64_t c_stride = ldc * 4;
  if (kAdd) {
    _tile_loadd(0, c, c_stride);
    _tile_loadd(1, c + 16, c_stride);
    _tile_loadd(2, c + 32, c_stride);
    _tile_loadd(3, c + 48, c_stride);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < K; k += 32, b += 32 * kPanel) {
    _tile_loadd(4, A + k, lda * 2);
    _tile_loadd(5, b, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b + 512, 64);
    _tile_dpbf16ps(1, 4, 6);
    for (const char* end = next + 2 * ahead.step; next < end; next += 64) __builtin_prefetch(next, 0, 2);
    _tile_loadd(7, b + 1024, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, b + 1536, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, c, c_stride);
  _tile_stored(1, c + 16, c_stride);
  _tile_stored(2, c + 32, c_stride);
  _tile_stored(3, c + 48, c_stride);
}

template <bool kAdd>
CCT_INLINE void tile_product(int64_t M, int64_t K, const BFloat16* A, int64_t lda, const Panel<BFloat16>& panel, float* C,
                             int64_t ldc) {
  Ahead ahead{panel.next, 0};
  if (panel.bytes) ahead.step = (panel.bytes / ((M + 31) / 32 * 2 * (K / 32)) + 63) / 64 * 64;
  asm volatile("" ::: "memory");  // the intrinsics that load tiles do not say that they read memory
  int64_t i = 0;
  for (; i + 17 <= M; i += 32) tile_rows32<kAdd>(K, A + i * lda, lda, panel.data, C + i * ldc, ldc, ahead);
  if (i < M) tile_rows16<kAdd>(K, A + i * lda, lda, panel.data, C + i * ldc, ldc, ahead);
}
#endif

// C (M, 64) = or += A panel, or at least the first `columns` of it: more of the 64 may be written. With AMX, C and A reach to
// the next multiple of 16 rows.
template <bool kAdd, typename T>
CCT_INLINE void product(int64_t M, int64_t K, const T* A, int64_t lda, const Panel<T>& panel, float* C, int64_t ldc,
                        int64_t columns = kPanel) {
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) return tile_product<kAdd>(M, padded_k<T>(K), A, lda, panel, C, ldc);
#endif
  float_product<kAdd, false>(M, padded_k<T>(K), A, lda, panel, C, ldc, columns);
}

// The same for A^T with A stored as (K / group, lda, group), K a multiple of the group. Not for tiles.
template <bool kAdd, typename T>
CCT_INLINE void transposed_product(int64_t M, int64_t K, const T* A, int64_t lda, const Panel<T>& panel, float* C,
                                   int64_t ldc) {
  static_assert(!kTiled<T>);
  float_product<kAdd, true>(M, K, A, lda, panel, C, ldc, kPanel);
}

// Floats are summed in two levels, so many products at a time: one long chain of additions would lose digits.
template <typename T>
constexpr int64_t kSumDepth = sizeof(T) == 4 ? 256 : int64_t(1) << 62;

// Rows of the next block of `left` of them, at most kBlockRows: nearly equal ones, where tiles do not want whole blocks.
template <typename T>
CCT_INLINE int64_t block_rows(int64_t left) {
  if (kTiled<T>) return left < kBlockRows ? left : kBlockRows;
  constexpr int64_t kMost = kBlockRows / kRows * kRows;  // whole register blocks
  const int64_t blocks = (left + kMost - 1) / kMost;
  return (left + blocks - 1) / blocks;
}

// Rows of the next pass of `left` of them by all panels of a weight: nearly equal ones, at most kPassRows. What is kept
// meanwhile takes `row_bytes` a row; it shall stay in the second-level cache.
template <typename T>
CCT_INLINE int64_t pass_rows(int64_t left, int64_t row_bytes) {
  constexpr int64_t kBudget = kFarWeights ? 2 * 1024 * 1024 : 0;
  const int64_t most = larger(kBlockRows, smaller(kPassRows, kBudget / row_bytes / kBlockRows * kBlockRows));
  const int64_t passes = (left + most - 1) / most, rows = (left + passes - 1) / passes;
  return kTiled<T> && passes > 1 ? round_up(rows, kBlockRows) : rows;
}

// epilogue(i, rows, tile): tile[r * 64 + c] is element (i + r, c) of A panel, for `rows` rows from i on; the epilogue may
// write to the tile, which has kBlockRows rows. Only the first `columns` need to be there.
template <typename T, typename Epilogue>
CCT_INLINE void product_blocks(int64_t M, int64_t K, const T* A, int64_t lda, const Panel<T>& panel, Epilogue epilogue,
                               int64_t columns = kPanel) {
  alignas(64) float tile[kBlockRows * kPanel], part[kBlockRows * kPanel];
  const int64_t blocks = (M + kBlockRows - 1) / kBlockRows, pieces = (K - 1) / kSumDepth<T> + 1;
  for (int64_t i = 0, step = 0, rows; i < M; i += rows) {
    rows = block_rows<T>(M - i);
    for (int64_t k = 0; k < K; k += kSumDepth<T>, ++step) {
      const int64_t depth = K - k < kSumDepth<T> ? K - k : kSumDepth<T>;
      product<false>(rows, depth, A + i * lda + k, lda, panel.from(k).ahead(step, blocks * pieces), k ? part : tile, kPanel,
                     columns);
      for (int c = 0; k && c < rows * kPanel; c += kLanes) store(tile + c, load(tile + c) + load(part + c));
    }
    epilogue(i, int(rows), tile);
  }
}

}  // namespace cct::CCT_ISA
