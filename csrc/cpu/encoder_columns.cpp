// See encoder_columns.h. With W, the weights, (out, in) and X (in, tokens):
//   Y = LN(X)   [Q; K; V] = Wqkv Y + b   S^T = K^T Q   P^T = softmax over the keys   O = V P^T   X += Wproj O + b
//   Y = LN(X)   X = Y + W2 gelu(W1 Y + b1) + b2
// Sums over channels and keys run down the columns, so no vector is ever summed across its lanes.
#include "encoder_columns.h"

#include "elementwise.h"
#include "pack.h"

namespace cct::CCT_ISA {
namespace {

// Columns of all images in order: strip s of an image, and what there is of it.
struct Strip {
  int64_t b, s, columns;
  CCT_INLINE int64_t width() const { return round_up(columns, kLanes); }
};
CCT_INLINE int64_t strips(int64_t N) { return (N + kStrip - 1) / kStrip; }
CCT_INLINE Strip strip_of(int64_t N, int64_t i) {
  const int64_t s = i % strips(N);
  return {i / strips(N), s, smaller(kStrip, N - s * kStrip)};
}

// Row `channel` of strip i of a sheet.
CCT_INLINE float* sheet(float* data, int64_t channels, int64_t i, int64_t channel) {
  return data + (i * channels + channel) * kStrip;
}

// A few columns of a strip, as dot products with rows of A: a register block would take a whole vector for them.
constexpr int64_t kDots = kLanes / 4;
CCT_INLINE void dot_columns(int64_t rows, int64_t K, const float* A, const float* x, int64_t columns, float* line,
                            float* tile) {
  const int64_t whole = K / kLanes * kLanes;
  for (int64_t c = 0; c < columns; ++c) {
    for (int64_t k = 0; k < K; ++k) line[k] = x[k * kStrip + c];
    for (int64_t r = 0; r < rows; r += 4) {
      const int64_t n = smaller(4, rows - r);
      const float* a[4];
      for (int64_t i = 0; i < 4; ++i) a[i] = A + (r + smaller(i, n - 1)) * K;
      Vec even[4] = {}, odd[4] = {};
      int64_t k = 0;
      for (; k + 2 * kLanes <= whole; k += 2 * kLanes) {
        const Vec y = load(line + k), z = load(line + k + kLanes);
        for (int i = 0; i < 4; ++i) even[i] += load(a[i] + k) * y, odd[i] += load(a[i] + k + kLanes) * z;
      }
      for (int64_t i = 0; i < n; ++i) {
        if (k < whole) even[i] += load(a[i] + k) * load(line + k);
        float total = sum(even[i] + odd[i]);
        for (int64_t j = whole; j < K; ++j) total += a[i][j] * line[j];
        tile[(r + i) * kStrip + c] = total;
      }
    }
  }
}

// epilogue(row, rows, i, strip, tile): tile[r * kStrip + c] is element (row + r, column c of strip i) of W X, for the rows of
// W (all, K) in [first, last).
template <typename W, typename Epilogue>
CCT_INLINE void weight_product(const ColumnArgs& a, const W* weight, int64_t K, int64_t all, float* X, int64_t first,
                               int64_t last, char* scratch, Epilogue epilogue) {
  const int64_t N = a.attention.N, count = a.B * strips(N), pieces = (K - 1) / kSumDepth<float> + 1;
  float* converted = take<float>(scratch, sizeof(W) == 2 ? kColumnBlock * K : 0);
  float *tile = take<float>(scratch, kColumnBlock * kStrip), *line = take<float>(scratch, K);
  std::memset(tile, 0, kColumnBlock * kStrip * sizeof(float));  // what lies behind the last column is computed along
  for (int64_t row = first, rows; row < last; row += rows) {
    rows = smaller(kColumnBlock, last - row);
    const float* A;
    if constexpr (sizeof(W) == 2) {
      const W* from = weight + row * K;
      int64_t j = 0;
      for (; j + kLanes <= rows * K; j += kLanes) store(converted + j, load(from + j));
      for (; j < rows * K; ++j) converted[j] = to_float(from[j]);
      A = converted;
    } else {
      A = weight + row * K;
    }
    Panel<float> panel{nullptr, 0, kStrip, reinterpret_cast<const char*>(weight + (row + rows) * K),
                       smaller(rows, all - row - rows) * K * int64_t(sizeof(W))};
    for (int64_t i = 0, step = 0; i < count; ++i) {
      const Strip strip = strip_of(N, i);
      panel.data = sheet(X, K, i, 0);
      if (strip.columns <= kDots) {
        dot_columns(rows, K, A, panel.data, strip.columns, line, tile);
      } else {
        for (int64_t k = 0; k < K; k += kSumDepth<float>, ++step) {
          const int64_t depth = smaller(kSumDepth<float>, K - k);
          const Panel<float> part = panel.from(k).ahead(step, count * pieces);
          k ? float_product<true, false>(rows, depth, A + k, K, part, tile, kStrip, strip.columns)
            : float_product<false, false>(rows, depth, A + k, K, part, tile, kStrip, strip.columns);
        }
      }
      epilogue(row, rows, i, strip, tile);
    }
  }
}
template <typename Epilogue>
CCT_INLINE void weight_product(const ColumnArgs& a, const void* weight, bool bf16, int64_t K, int64_t all, float* X,
                               int64_t first, int64_t last, char* scratch, Epilogue epilogue) {
  bf16 ? weight_product(a, static_cast<const BFloat16*>(weight), K, all, X, first, last, scratch, epilogue)
       : weight_product(a, static_cast<const float*>(weight), K, all, X, first, last, scratch, epilogue);
}

// Group g of 16 columns: its image, first column and place in a sheet.
struct Group {
  int64_t b, column, columns, strip, offset;
};
CCT_INLINE Group group_of(int64_t N, int64_t g) {
  const int64_t groups = (N + kColumnGroup - 1) / kColumnGroup, b = g / groups, column = g % groups * kColumnGroup;
  return {b, column, smaller(kColumnGroup, N - column), b * strips(N) + column / kStrip, column % kStrip};
}

template <typename X>
CCT_INLINE void load_columns(const AttentionArgs& t, const Group& g, float* x) {
  const X* rows = static_cast<const X*>(t.x) + (g.b * t.N + g.column) * t.C;
  int64_t c = 0;
  if constexpr (sizeof(X) == 4)
    for (; g.columns == 16 && c + 16 <= t.C; c += 16)
      transpose16(reinterpret_cast<const uint32_t*>(rows + c), t.C, reinterpret_cast<uint32_t*>(x + c * kStrip), kStrip);
  for (; c < t.C; ++c)
    for (int64_t i = 0; i < kColumnGroup; ++i) x[c * kStrip + i] = i < g.columns ? to_float(rows[i * t.C + c]) : 0.f;
}

template <typename X>
CCT_INLINE void store_group(const MlpArgs& m, const Group& g, const float* x, float* line) {
  X* rows = static_cast<X*>(m.out) + (g.b * m.N + g.column) * m.C;
  const int64_t blocks = m.C / 16 * 16;
  for (int64_t c = 0; c < blocks; c += 16) {
    transpose16(reinterpret_cast<const uint32_t*>(x + c * kStrip), kStrip, reinterpret_cast<uint32_t*>(line), 16);
    for (int64_t i = 0; i < g.columns; ++i)
      for (int l = 0; l < 16; l += kLanes) store(rows + i * m.C + c + l, load(line + i * 16 + l));
  }
  for (int64_t c = blocks; c < m.C; ++c)
    for (int64_t i = 0; i < g.columns; ++i) store_part(rows + i * m.C + c, set(x[c * kStrip + i]), 1);
}

// y = LN(x) of the columns of a group.
CCT_INLINE void normalise_columns(const float* x, int64_t C, float eps, const float* gamma, const float* beta, float* y) {
  for (int l = 0; l < kColumnGroup; l += kLanes, x += kLanes, y += kLanes) {
    auto mean_of = [&](auto f) {  // four chains of additions
      Vec part[4] = {};
      int64_t c = 0;
      for (; c + 4 <= C; c += 4)
        for (int j = 0; j < 4; ++j) part[j] += f(load(x + (c + j) * kStrip));
      for (; c < C; ++c) part[0] += f(load(x + c * kStrip));
      return ((part[0] + part[1]) + (part[2] + part[3])) / float(C);
    };
    const Vec mean = mean_of([](Vec v) { return v; });
    const Vec variance = mean_of([&](Vec v) { return (v - mean) * (v - mean); });
    alignas(64) float rstd[kLanes];
    for (int i = 0; i < kLanes; ++i) rstd[i] = 1.f / __builtin_sqrtf(variance[i] + eps);
    const Vec scale = load(rstd);
    for (int64_t c = 0; c < C; ++c) store(y + c * kStrip, (load(x + c * kStrip) - mean) * scale * gamma[c] + beta[c]);
  }
}

void norm(const ColumnArgs& a, bool first_of_block, int64_t first, int64_t last) {
  const AttentionArgs& t = a.attention;
  const float *gamma = first_of_block ? t.gamma : a.mlp.gamma, *beta = first_of_block ? t.beta : a.mlp.beta;
  for (int64_t i = first; i < last; ++i) {
    const Group g = group_of(t.N, i);
    float* x = sheet(a.at.x, t.C, g.strip, 0) + g.offset;
    if (first_of_block && t.x) t.x_bf16 ? load_columns<BFloat16>(t, g, x) : load_columns<float>(t, g, x);
    normalise_columns(x, t.C, first_of_block ? t.eps : a.mlp.eps, gamma, beta, sheet(a.at.y, t.C, g.strip, 0) + g.offset);
  }
}

void qkv(const ColumnArgs& a, int64_t first, int64_t last, char* scratch) {
  const AttentionArgs& t = a.attention;
  weight_product(a, t.wqkv, t.weight_bf16, t.C, 3 * t.C, a.at.y, first, last, scratch,
                 [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
                   for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
                     const int64_t c = r % t.C;
                     float* kv = (r < 2 * t.C ? a.at.k : a.at.v) + (strip.b * t.C + c) * a.at.stride + strip.s * kStrip;
                     float* out = r < t.C ? sheet(a.at.q, t.C, i, c) : kv;
                     const float bias = t.bqkv[r / t.hd * t.hdp + r % t.hd];
                     for (int64_t l = 0; l < strip.width(); l += kLanes) store(out + l, load(tile + l) + bias);
                   }
                 });
}

// The weights exp(scale (s - max s)) of a vector of queries, in place, not normalised; returns their sums.
// s: scores, a row a key. queries: their part of the mask, or null.
CCT_INLINE Vec softmax_columns(const AttentionArgs& t, const uint8_t* mask, const float* queries, float* s) {
  const float slope = kLog2e / __builtin_sqrtf(float(t.hd));
  if (mask) {  // a query without a pair is uniform
    const VecI real = load(queries) > 0.f;
    for (int64_t j = 0; j < t.N; ++j) store(s + j * kStrip, select(real, mask[j] ? load(s + j * kStrip) : set(kLowest), Vec{}));
  }
  Vec even = set(kLowest), odd = even;
  int64_t j = 0;
  for (; j + 2 <= t.N; j += 2) even = max(even, load(s + j * kStrip)), odd = max(odd, load(s + (j + 1) * kStrip));
  if (j < t.N) even = max(even, load(s + j * kStrip));
  const Vec top = max(even, odd);
  auto weight = [&](int64_t key) {
    const Vec e = exp2_negative<float>((load(s + key * kStrip) - top) * slope);
    store(s + key * kStrip, e);
    return e;
  };
  even = odd = Vec{};
  for (j = 0; j + 2 <= t.N; j += 2) even += weight(j), odd += weight(j + 1);
  if (j < t.N) even += weight(j);
  if (mask) {
    const VecI real = load(queries) > 0.f;
    for (j = 0; j < t.N; ++j)
      if (!mask[j]) store(s + j * kStrip, select(real, Vec{}, load(s + j * kStrip)));
  }
  return even + odd;
}

void heads(const ColumnArgs& a, int64_t first, int64_t last, char* scratch) {
  const AttentionArgs& t = a.attention;
  const int64_t groups = (t.N + 63) / 64;
  float* s = take<float>(scratch, t.N * kStrip);
  for (int64_t item = first; item < last; ++item) {
    const int64_t b = item / groups / t.heads, channel = item / groups % t.heads * t.hd, begin = item % groups * 64;
    const float *k = a.at.k + (b * t.C + channel) * a.at.stride, *v = a.at.v + (b * t.C + channel) * a.at.stride;
    const uint8_t* mask = t.mask ? t.mask + b * t.N : nullptr;
    for (int64_t column = begin; column < smaller(begin + 64, t.N); column += kStrip) {
      const int64_t i = b * strips(t.N) + column / kStrip;
      const Strip strip = strip_of(t.N, i);
      const Panel<float> q{sheet(a.at.q, t.C, i, channel), 0, kStrip};
      float* o = sheet(a.at.o, t.C, i, channel);
      float_product<false, true>(t.N, t.hd, k, a.at.stride, q, s, kStrip, strip.columns);
      alignas(64) float inverse[kStrip], queries[kStrip];
      for (int64_t l = 0; l < strip.width() && mask; ++l) queries[l] = l < strip.columns && mask[column + l] ? 1.f : 0.f;
      for (int64_t l = 0; l < strip.width(); l += kLanes)
        store(inverse + l, 1.f / softmax_columns(t, mask, queries + l, s + l));
      for (int64_t j = 0; j < t.N; j += kSumDepth<float>) {
        const int64_t depth = smaller(kSumDepth<float>, t.N - j);
        const Panel<float> p{s + j * kStrip, 0, kStrip};
        j ? float_product<true, false>(t.hd, depth, v + j, a.at.stride, p, o, kStrip, strip.columns)
          : float_product<false, false>(t.hd, depth, v, a.at.stride, p, o, kStrip, strip.columns);
      }
      for (int64_t c = 0; c < t.hd; ++c)
        for (int64_t l = 0; l < strip.width(); l += kLanes)
          store(o + c * kStrip + l, load(o + c * kStrip + l) * load(inverse + l));
    }
  }
}

// x = before + W X + bias.
CCT_INLINE void residual(const ColumnArgs& a, const void* weight, bool bf16, int64_t K, float* X, float* before,
                         const float* bias, int64_t first, int64_t last, char* scratch) {
  const int64_t C = a.attention.C;
  weight_product(a, weight, bf16, K, C, X, first, last, scratch,
                 [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
                   for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
                     float *from = sheet(before, C, i, r), *to = sheet(a.at.x, C, i, r);
                     for (int64_t l = 0; l < strip.width(); l += kLanes)
                       store(to + l, load(from + l) + (load(tile + l) + bias[r]));
                   }
                 });
}

void hidden(const ColumnArgs& a, int64_t first, int64_t last, char* scratch) {
  const MlpArgs& m = a.mlp;
  weight_product(a, m.w1, m.weight_bf16, m.C, m.F, a.at.y, first, last, scratch,
                 [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
                   for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
                     float* out = sheet(a.at.h, m.F, i, r);
                     for (int64_t l = 0; l < strip.width(); l += kLanes) store(out + l, gelu<float>(load(tile + l) + m.b1[r]));
                   }
                 });
}

}  // namespace

void column_phase(const ColumnArgs& a, int phase, int64_t first, int64_t last, char* scratch) {
  const AttentionArgs& t = a.attention;
  const MlpArgs& m = a.mlp;
  auto rows = [&](int64_t all) { return smaller(last * kColumnRows, all); };
  switch (phase) {
    case kFirstNorm:
    case kSecondNorm:
      return norm(a, phase == kFirstNorm, first, last);
    case kQkv:
      return qkv(a, first * kColumnRows, rows(3 * t.C), scratch);
    case kHeads:
      return heads(a, first, last, scratch);
    case kProjection:
      return residual(a, t.wproj, t.weight_bf16, t.C, a.at.o, a.at.x, t.bproj, first * kColumnRows, rows(t.C), scratch);
    case kHidden:
      return hidden(a, first * kColumnRows, rows(m.F), scratch);
    default:
      return residual(a, m.w2, m.weight_bf16, m.F, a.at.h, a.at.y, m.b2, first * kColumnRows, rows(t.C), scratch);
  }
}

void store_columns(const ColumnArgs& a, int64_t first, int64_t last) {
  const MlpArgs& m = a.mlp;
  alignas(64) float line[16 * 16];
  for (int64_t i = first; i < last; ++i) {
    const Group g = group_of(m.N, i);
    const float* x = sheet(a.at.x, m.C, g.strip, 0) + g.offset;
    m.x_bf16 ? store_group<BFloat16>(m, g, x, line) : store_group<float>(m, g, x, line);
  }
}

}  // namespace cct::CCT_ISA
