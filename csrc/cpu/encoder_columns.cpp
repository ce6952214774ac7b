// See encoder_columns.h. With W, the weights, (out, in) and X (in, tokens):
//   Y = LN(X)   [Q; K; V] = Wqkv Y + b   S^T = K^T Q   P^T = softmax over the keys   O = V P^T   X += Wproj O + b
//   Y = LN(X)   X = Y + W2 gelu(W1 Y + b1) + b2
// Sums over channels and keys run down the columns, so no vector is ever summed across its lanes.
#include "encoder_columns.h"

#include <utility>

#include "elementwise.h"
#include "layernorm.h"
#include "pack.h"

namespace cct::CCT_ISA {
namespace {

// A strip of no more columns is [column][channel]: they are rows, and their products are dot products with rows of the weights.
constexpr int64_t kFew = kLanes / 4;

// Columns of all images in order: strip s of an image, and what there is of it.
struct Strip {
  int64_t b, s, columns;
  CCT_INLINE bool few() const { return columns <= kFew; }
  CCT_INLINE int64_t width() const { return round_up(columns, kLanes); }
};
CCT_INLINE int64_t strips(int64_t N) { return (N + kStrip - 1) / kStrip; }
CCT_INLINE Strip strip_of(int64_t N, int64_t i) {
  const int64_t s = i % strips(N);
  return {i / strips(N), s, smaller(kStrip, N - s * kStrip)};
}

// Row `channel` of strip i of a sheet; column `column` of a strip that has few.
CCT_INLINE float* sheet(float* data, int64_t channels, int64_t i, int64_t channel) {
  return data + (i * channels + channel) * kStrip;
}
CCT_INLINE float* few_columns(float* data, int64_t channels, int64_t i, int64_t column) {
  return data + i * channels * kStrip + column * channels;
}

// The sum of each of `count` vectors, a power of two, in the first `count` lanes, or several times in a row.
template <int count>
CCT_INLINE Vec sums(const Vec* v) {
  if constexpr (count == 1) {
    return v[0];
  } else {
    const Vec a = sums<count / 2>(v), b = sums<count / 2>(v + count / 2);
    constexpr int half = kLanes / count;  // of the lanes that a vector's sum is still spread over
    return [&]<int... l>(std::integer_sequence<int, l...>) {
      return __builtin_shufflevector(a, b, (l / half * 2 * half + l % half)...) +
             __builtin_shufflevector(a, b, (l / half * 2 * half + l % half + half)...);
    }(std::make_integer_sequence<int, kLanes>());
  }
}

// y = A x with x (K): a column as a row. Columns that are too few for a vector would take a register block a whole one.
template <int R>
CCT_INLINE void dot_block(int64_t K, const float* A, int64_t lda, const float* x, float* y) {
  const int64_t whole = K / kLanes * kLanes;
  Vec part[R] = {};
  for (int64_t k = 0; k < whole; k += kLanes) {
    const Vec v = load(x + k);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) part[i] += load(A + i * lda + k) * v;
  }
  if constexpr (R == 1)
    *y = sum(part[0]);
  else
    store(y, sums<R>(part));
  for (int64_t k = whole; k < K; ++k)
    for (int i = 0; i < R; ++i) y[i] += A[i * lda + k] * x[k];
}
CCT_INLINE void dot_product(int64_t rows, int64_t K, const float* A, int64_t lda, const float* x, float* y) {
  int64_t r = 0;
  for (; r + kLanes <= rows; r += kLanes) dot_block<kLanes>(K, A + r * lda, lda, x, y + r);
  for (; r < rows; ++r) dot_block<1>(K, A + r * lda, lda, x, y + r);
}

// y = f(x, bias) of `count` elements.
template <typename F>
CCT_INLINE void map_row(int64_t count, const float* x, const float* bias, float* y, F f) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(y + i, f(load(x + i), load(bias + i)));
  if (i < count) store_part(y + i, f(load_part(x + i, int(count - i)), load_part(bias + i, int(count - i))), int(count - i));
}

// epilogue(row, rows, i, strip, tile): tile[r * kStrip + c] is element (row + r, column c of strip i) of W X, for the rows of
// W (all, K) in [first, last). few(row, rows, i, strip, c, tile): the same of column c of a strip that has few, in tile[r].
template <typename W, typename Epilogue, typename Few>
CCT_INLINE void weight_product(const ColumnArgs& a, const W* weight, int64_t K, int64_t all, float* X, int64_t first,
                               int64_t last, char* scratch, Epilogue epilogue, Few few) {
  const int64_t N = a.attention.N, count = a.B * strips(N), pieces = (K - 1) / kSumDepth<float> + 1;
  float* converted = take<float>(scratch, sizeof(W) == 2 ? kColumnBlock * K : 0);
  float* tile = take<float>(scratch, kColumnBlock * kStrip);
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
      for (int64_t c = 0; strip.few() && c < strip.columns; ++c) {
        dot_product(rows, K, A, K, few_columns(X, K, i, c), tile);
        few(row, rows, i, strip, c, tile);
      }
      if (strip.few()) continue;
      for (int64_t k = 0; k < K; k += kSumDepth<float>, ++step) {
        const int64_t depth = smaller(kSumDepth<float>, K - k);
        const Panel<float> part = panel.from(k).ahead(step, count * pieces);
        k ? float_product<true, false>(rows, depth, A + k, K, part, tile, kStrip, strip.columns)
          : float_product<false, false>(rows, depth, A + k, K, part, tile, kStrip, strip.columns);
      }
      epilogue(row, rows, i, strip, tile);
    }
  }
}
template <typename Epilogue, typename Few>
CCT_INLINE void weight_product(const ColumnArgs& a, const void* weight, bool bf16, int64_t K, int64_t all, float* X,
                               int64_t first, int64_t last, char* scratch, Epilogue epilogue, Few few) {
  bf16 ? weight_product(a, static_cast<const BFloat16*>(weight), K, all, X, first, last, scratch, epilogue, few)
       : weight_product(a, static_cast<const float*>(weight), K, all, X, first, last, scratch, epilogue, few);
}

// Group g of 16 columns: its image, first column and place in a sheet.
struct Group {
  int64_t b, column, columns, strip, offset;
  bool few;
};
CCT_INLINE Group group_of(int64_t N, int64_t g) {
  const int64_t groups = (N + kColumnGroup - 1) / kColumnGroup, b = g / groups, column = g % groups * kColumnGroup;
  const int64_t strip = b * strips(N) + column / kStrip;
  return {b, column, smaller(kColumnGroup, N - column), strip, column % kStrip, strip_of(N, strip).few()};
}

template <typename X>
CCT_INLINE void load_columns(const ColumnArgs& a, const Group& g) {
  const AttentionArgs& t = a.attention;
  const X* rows = static_cast<const X*>(t.x) + (g.b * t.N + g.column) * t.C;
  float* x = sheet(a.at.x, t.C, g.strip, 0) + g.offset;
  if (g.few) {
    for (int64_t i = 0; i < g.columns * t.C; ++i) x[i] = to_float(rows[i]);
    return;
  }
  int64_t c = 0;
  if constexpr (sizeof(X) == 4)
    for (; g.columns == 16 && c + 16 <= t.C; c += 16)
      transpose16(reinterpret_cast<const uint32_t*>(rows + c), t.C, reinterpret_cast<uint32_t*>(x + c * kStrip), kStrip);
  for (; c < t.C; ++c)
    for (int64_t i = 0; i < kColumnGroup; ++i) x[c * kStrip + i] = i < g.columns ? to_float(rows[i * t.C + c]) : 0.f;
}

template <typename X>
CCT_INLINE void store_columns(const ColumnArgs& a, const Group& g) {
  const int64_t C = a.attention.C, blocks = C / 16 * 16;
  X* rows = static_cast<X*>(a.mlp.out) + (g.b * a.attention.N + g.column) * C;
  const float* x = sheet(a.at.next, C, g.strip, 0) + g.offset;
  if (g.few) {
    for (int64_t i = 0; i < g.columns * C; ++i) store_part(rows + i, set(x[i]), 1);
    return;
  }
  alignas(64) float line[16 * 16];
  for (int64_t c = 0; c < blocks; c += 16) {
    transpose16(reinterpret_cast<const uint32_t*>(x + c * kStrip), kStrip, reinterpret_cast<uint32_t*>(line), 16);
    for (int64_t i = 0; i < g.columns; ++i)
      for (int l = 0; l < 16; l += kLanes) store(rows + i * C + c + l, load(line + i * 16 + l));
  }
  for (int64_t c = blocks; c < C; ++c)
    for (int64_t i = 0; i < g.columns; ++i) store_part(rows + i * C + c, set(x[c * kStrip + i]), 1);
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
  const float eps = first_of_block ? t.eps : a.mlp.eps;
  for (int64_t i = first; i < last; ++i) {
    const Group g = group_of(t.N, i);
    for (int64_t c = 0; g.few && c < g.columns; ++c) {  // one after the other: what follows C in y belongs to the next
      float mean, rstd, *none = nullptr;
      layernorm_row(few_columns(a.at.x, t.C, g.strip, c), t.C, t.C, eps, gamma, beta, nullptr, none,
                    few_columns(a.at.y, t.C, g.strip, c), mean, rstd);
    }
    if (!g.few)
      normalise_columns(sheet(a.at.x, t.C, g.strip, 0) + g.offset, t.C, eps, gamma, beta,
                        sheet(a.at.y, t.C, g.strip, 0) + g.offset);
  }
}

void qkv(const ColumnArgs& a, int64_t first, int64_t last, char* scratch) {
  const AttentionArgs& t = a.attention;
  weight_product(
      a, t.wqkv, t.weight_bf16, t.C, 3 * t.C, a.at.y, first, last, scratch,
      [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
        for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
          const int64_t c = r % t.C;
          float* kv = (r < 2 * t.C ? a.at.k : a.at.v) + (strip.b * t.C + c) * a.at.stride + strip.s * kStrip;
          float* out = r < t.C ? sheet(a.at.q, t.C, i, c) : kv;
          const float bias = t.bqkv[r / t.hd * t.hdp + r % t.hd];
          for (int64_t l = 0; l < strip.width(); l += kLanes) store(out + l, load(tile + l) + bias);
        }
      },
      [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, int64_t column, const float* tile) {
        for (int64_t r = row; r < row + rows; ++r, ++tile) {
          const int64_t c = r % t.C;
          float* kv = (r < 2 * t.C ? a.at.k : a.at.v) + (strip.b * t.C + c) * a.at.stride + strip.s * kStrip + column;
          *(r < t.C ? few_columns(a.at.q, t.C, i, column) + c : kv) = *tile + t.bqkv[r / t.hd * t.hdp + r % t.hd];
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

// The same of one query that is a row. real: whether it has pairs.
CCT_INLINE float softmax_row(const AttentionArgs& t, const uint8_t* mask, bool real, float* s) {
  const float slope = kLog2e / __builtin_sqrtf(float(t.hd));
  const int64_t end = round_up(t.N, kLanes);
  for (int64_t j = t.N; j < end; ++j) s[j] = kLowest;
  for (int64_t j = 0; mask && j < t.N; ++j) s[j] = !real ? 0.f : mask[j] ? s[j] : kLowest;
  Vec most = set(kLowest), total{};
  for (int64_t j = 0; j < end; j += kLanes) most = max(most, load(s + j));
  const float top = highest(most);
  for (int64_t j = 0; j < end; j += kLanes) store(s + j, exp2_negative<float>((load(s + j) - top) * slope));
  for (int64_t j = t.N; j < end; ++j) s[j] = 0.f;
  for (int64_t j = 0; mask && real && j < t.N; ++j)
    if (!mask[j]) s[j] = 0.f;
  for (int64_t j = 0; j < end; j += kLanes) total += load(s + j);
  return sum(total);
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
      for (int64_t c = 0; strip.few() && c < strip.columns; ++c) {
        const Panel<float> keys{k, kStrip, a.at.stride};
        float* out = few_columns(a.at.o, t.C, i, c) + channel;
        float_product<false, false>(1, t.hd, few_columns(a.at.q, t.C, i, c) + channel, t.hd, keys, s, 0, t.N);
        const float inverse = 1.f / softmax_row(t, mask, mask && mask[column + c], s);
        dot_product(t.hd, t.N, v, a.at.stride, s, out);
        for (int64_t d = 0; d < t.hd; ++d) out[d] *= inverse;
      }
      if (strip.few()) continue;
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

// to = before + W X + bias.
CCT_INLINE void residual(const ColumnArgs& a, const void* weight, bool bf16, int64_t K, float* X, float* before, float* to,
                         const float* bias, int64_t first, int64_t last, char* scratch) {
  const int64_t C = a.attention.C;
  weight_product(
      a, weight, bf16, K, C, X, first, last, scratch,
      [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
        for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
          float *x = sheet(before, C, i, r), *out = sheet(to, C, i, r);
          for (int64_t l = 0; l < strip.width(); l += kLanes) store(out + l, load(x + l) + (load(tile + l) + bias[r]));
        }
      },
      [&](int64_t row, int64_t rows, int64_t i, const Strip&, int64_t column, float* tile) {
        map_row(rows, tile, bias + row, tile, [](Vec v, Vec b) { return v + b; });
        map_row(rows, few_columns(before, C, i, column) + row, tile, few_columns(to, C, i, column) + row,
                [](Vec v, Vec w) { return v + w; });
      });
}

void hidden(const ColumnArgs& a, int64_t first, int64_t last, char* scratch) {
  const MlpArgs& m = a.mlp;
  weight_product(
      a, m.w1, m.weight_bf16, m.C, m.F, a.at.y, first, last, scratch,
      [&](int64_t row, int64_t rows, int64_t i, const Strip& strip, const float* tile) {
        for (int64_t r = row; r < row + rows; ++r, tile += kStrip) {
          float* out = sheet(a.at.h, m.F, i, r);
          for (int64_t l = 0; l < strip.width(); l += kLanes) store(out + l, gelu<float>(load(tile + l) + m.b1[r]));
        }
      },
      [&](int64_t row, int64_t rows, int64_t i, const Strip&, int64_t column, const float* tile) {
        map_row(rows, tile, m.b1 + row, few_columns(a.at.h, m.F, i, column) + row,
                [](Vec v, Vec b) { return gelu<float>(v + b); });
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
    case kQkvHeads:
      for (int64_t h = first; h < last; ++h) {
        for (int64_t row = h * t.hd; row < 3 * t.C; row += t.C) qkv(a, row, row + t.hd, scratch);
        const int64_t groups = (t.N + 63) / 64;
        for (int64_t b = 0; b < a.B; ++b) heads(a, (b * t.heads + h) * groups, (b * t.heads + h + 1) * groups, scratch);
      }
      return;
    case kProjection:
      return residual(a, t.wproj, t.weight_bf16, t.C, a.at.o, a.at.x, a.at.x, t.bproj, first * kColumnRows, rows(t.C), scratch);
    case kHidden:
      return hidden(a, first * kColumnRows, rows(m.F), scratch);
    case kOutput:
      return residual(a, m.w2, m.weight_bf16, m.F, a.at.h, a.at.y, a.at.next, m.b2, first * kColumnRows, rows(t.C), scratch);
    case kLoad:
      for (int64_t i = first; i < last; ++i) {
        const Group g = group_of(t.N, i);
        t.x_bf16 ? load_columns<BFloat16>(a, g) : load_columns<float>(a, g);
      }
      return;
    default:
      for (int64_t i = first; i < last; ++i) {
        const Group g = group_of(t.N, i);
        m.x_bf16 ? store_columns<BFloat16>(a, g) : store_columns<float>(a, g);
      }
  }
}

}  // namespace cct::CCT_ISA
