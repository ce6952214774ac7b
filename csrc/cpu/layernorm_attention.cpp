// q, k, v = heads(LN(x) Wqkv^T + b);  out = x + s * drop(proj(drop(softmax(q k^T / sqrt(hd))) v)), forward and backward.
//
// One image at a time: its q, k, v and head outputs stay in the second-level cache, scores exist for 32 queries at a time, in
// backward for 512 keys, and nothing of size N x N is stored. Backward works on the transposed scores, so that no N x N
// transpose is needed either:
//   P^T = exp(K Q^T / sqrt(hd) - lse)     dP^T = V dO^T     dS^T = P^T * (mask * dP^T - delta) / sqrt(hd)
//   delta = rowsum(dO * O)     dV = (mask * P)^T dO     dK = dS^T Q     dQ^T = K^T dS^T
#include "layernorm_attention.h"

#if defined(CCT_ISA)  // ------------------------------------------------------------------------------ kernels, once per set
#include "elementwise.h"
#include "layernorm.h"
#include "pack.h"
#include "weights.h"

namespace cct::CCT_ISA {
namespace {

template <typename T>
CCT_INLINE T* head_rows(const AttentionArgs& a, int64_t slot, int64_t part, int64_t head) {  // part 0 q, 1 k, 2 v
  return static_cast<T*>(a.qkv) + ((slot * 3 + part) * a.heads + head) * a.Nr * a.hdp;
}

template <typename T>
CCT_INLINE T* head_outputs(const AttentionArgs& a, int64_t slot) {
  return static_cast<T*>(a.o) + slot * a.Nr * a.Cp;
}

template <typename From, typename To>
CCT_INLINE void convert(const From* from, To* to, int64_t n) {  // n: whole vectors
  for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i));
}
CCT_INLINE BFloat16* kept_qkv(const AttentionArgs& a, int64_t b) {
  return static_cast<BFloat16*>(a.kept_qkv) + b * 3 * a.heads * a.N * a.hdp;
}
CCT_INLINE BFloat16* kept_o(const AttentionArgs& a, int64_t b) { return static_cast<BFloat16*>(a.kept_o) + b * a.N * a.Cp; }

// Rows [first, last) of q, k and v of all heads of image b, and of their outputs: to what is kept of them, and back.
template <typename T>
CCT_INLINE void keep_rows(const AttentionArgs& a, int64_t b, const T* qkv, const T* o, int64_t first, int64_t last) {
  for (int64_t h = 0; h < 3 * a.heads; ++h)
    convert(qkv + (h * a.Nr + first) * a.hdp, kept_qkv(a, b) + (h * a.N + first) * a.hdp, (last - first) * a.hdp);
  convert(o + first * a.Cp, kept_o(a, b) + first * a.Cp, (last - first) * a.Cp);
}
template <typename T>
CCT_INLINE void load_kept_rows(const AttentionArgs& a, int64_t b, T* qkv, T* o, int64_t first, int64_t last) {
  for (int64_t h = 0; h < 3 * a.heads; ++h)
    convert(kept_qkv(a, b) + (h * a.N + first) * a.hdp, qkv + (h * a.Nr + first) * a.hdp, (last - first) * a.hdp);
  convert(kept_o(a, b) + first * a.Cp, o + first * a.Cp, (last - first) * a.Cp);
}

CCT_INLINE float score_scale(const AttentionArgs& a) { return 1.f / __builtin_sqrtf(float(a.hd)); }

// The panels of K^T for k (rows, hdp), 64 rows a panel; the columns of rows that do not exist are zero.
template <typename T>
CCT_INLINE void pack_all_columns(const T* k, int64_t rows, int64_t hdp, T* out) {
  for (int64_t j = 0; j < rows; j += kPanel) {
    T* panel = out + j * hdp;
    const int64_t n = rows - j < kPanel ? rows - j : kPanel;
    if (n < kPanel) std::memset((void*)panel, 0, kPanel * hdp * sizeof(T));
    pack_columns(k + j * hdp, hdp, panel, n, hdp, hdp);
  }
}

// values[0 .. 64) of a tile row to `count` elements of T.
template <typename T>
CCT_INLINE void store_columns(T* out, const float* values, int64_t count) {
  store_row(out, count < kPanel ? count : kPanel, values);
}

template <typename T>
CCT_INLINE void zero_rows(T* rows, int64_t first, int64_t last, int64_t stride) {
  if (last > first) std::memset((void*)(rows + first * stride), 0, (last - first) * stride * sizeof(T));
}

// y = LN(x) of `rows` rows from row `token` of all images on.
template <typename X, typename T>
CCT_INLINE void layernorm_rows(const AttentionArgs& a, int64_t token, int64_t rows, T* y) {
  for (int64_t i = 0; i < rows; ++i, ++token) {
    float mean, rstd;
    BFloat16* xhat = a.xhat ? static_cast<BFloat16*>(a.xhat) + token * a.C : nullptr;
    layernorm_row(static_cast<const X*>(a.x) + token * a.C, a.C, a.Cp, a.eps, a.gamma, a.beta, xhat,
                  static_cast<float*>(nullptr), y + i * a.Cp, mean, rstd);
    if (a.mean) a.mean[token] = mean;
    if (a.rstd) a.rstd[token] = rstd;
  }
}

// Panel p of q, k and v, of the R rows from `row` on whose LayerNorm is y.
template <typename T>
CCT_INLINE void qkv_panel(const AttentionArgs& a, int64_t slot, int64_t p, const T* y, int64_t row, int64_t R,
                          const Panel<T>& weight) {
  const int64_t per_head = a.hdp / kPanel, part = p / per_head / a.heads, head = p / per_head % a.heads;
  T* out = head_rows<T>(a, slot, part, head) + row * a.hdp + p % per_head * kPanel;
  const float* bias = a.bqkv + p * kPanel;
  product_blocks(R, a.C, y, a.Cp, weight, [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r)
      for (int c = 0; c < kPanel; c += kLanes) store(out + (i + r) * a.hdp + c, load(tile + r * kPanel + c) + load(bias + c));
  });
}

template <typename X, typename T>
void qkv_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last, char* scratch) {
  const TileScope tiles;
  T* y = take<T>(scratch, kPassRows * a.Cp);
  for (int64_t row = first, R; row < last; row += R) {
    R = pass_rows<T>(last - row, a.Cp * sizeof(T));
    layernorm_rows<X>(a, b * a.N + row, R, y);
    for (int64_t p = 0; p < 3 * a.heads * (a.hdp / kPanel); ++p)
      qkv_panel(a, slot, p, y, row, R, weight_panel<T>(a.wqkv, p, a.C));
  }
  if (last == a.N)
    for (int64_t h = 0; h < 3 * a.heads; ++h) zero_rows(head_rows<T>(a, slot, 0, h), a.N, a.Nr, a.hdp);
}

// The weights of one query: exp(scale (s - max s)) of N scores, not normalised, as T into p with zeros up to Nr; returns their
// sum and, in `lse`, scale max(s) + log(sum). The scores may be overwritten, also those behind N.
template <typename T>
CCT_INLINE float softmax_row(const AttentionArgs& a, const Dropout& dropout, float* s, T* p, int64_t b, int64_t head,
                             int64_t query, float* lse) {
  const uint8_t* mask = a.mask ? a.mask + b * a.N : nullptr;
  const int64_t width = round_up(a.N, kLanes);
  const float scale = score_scale(a);
  if (mask && !mask[query])
    for (int64_t j = 0; j < a.N; ++j) s[j] = 0.f;  // a row without a pair is uniform
  else if (mask)
    for (int64_t j = 0; j < a.N; ++j) s[j] = mask[j] ? s[j] : kLowest;
  for (int64_t k = a.N; k < a.Nr; ++k) s[k] = kLowest;
  Vec even = set(kLowest), odd = even;  // two chains: a maximum or an addition takes four cycles
  int64_t j = 0;
  for (; j + 2 * kLanes <= width; j += 2 * kLanes) even = max(even, load(s + j)), odd = max(odd, load(s + j + kLanes));
  if (j < width) even = max(even, load(s + j));
  const float top = highest(max(even, odd)), slope = scale * kLog2e;
  const bool plain = !mask && !dropout.active();  // the weights are final as they come
  auto weight = [&](int64_t k) {                  // the difference first: it is exact for the weights that matter
    const Vec e = exp2_negative<T>((load(s + k) - top) * slope);
    plain ? store(p + k, e) : store(s + k, e);
    return e;
  };
  even = odd = Vec{};
  for (j = 0; j + 2 * kLanes <= width; j += 2 * kLanes) even += weight(j), odd += weight(j + kLanes);
  if (j < width) even += weight(j);
  const float total = sum(even + odd);
  if (lse) *lse = top * scale + __builtin_logf(total);
  if (!plain) {
    if (mask && mask[query])
      for (int64_t k = 0; k < a.N; ++k) s[k] = mask[k] ? s[k] : 0.f;
    const int64_t row = (b * a.heads + head) * a.N + query, words = a.Np / kPanel;
    for (int64_t g = 0; dropout.active() && g < words; ++g) {
      const uint64_t bits = dropout.apply(s + g * kPanel, uint32_t(row), uint32_t(g));
      if (a.pairs) a.pairs[row * words + g] = bits;
    }
    for (j = 0; j < width; j += kLanes) store(p + j, load(s + j));
  }
  for (j = a.N; j < a.Nr; ++j) p[j] = T{};
  return total;
}

template <typename T>
void head_rows_forward(const AttentionArgs& a, int64_t b, int64_t slot, int64_t head, int64_t first, int64_t last,
                       char* scratch) {
  const TileScope tiles;
  const Dropout dropout(a.weights_dropout, kAttentionSite);
  const T *q = head_rows<T>(a, slot, 0, head), *k = head_rows<T>(a, slot, 1, head), *v = head_rows<T>(a, slot, 2, head);
  T* o = head_outputs<T>(a, slot);
  T *kt = take<T>(scratch, a.Np * a.hdp), *vp = take<T>(scratch, a.Nr * a.hdp), *p = take<T>(scratch, kBlockRows * a.Np);
  float* s = take<float>(scratch, kBlockRows * a.Np);
  pack_all_columns(k, a.Nr, a.hdp, kt);
  for (int64_t c = 0; c < a.hdp; c += kPanel) pack_unless_panel(v + c, a.hdp, vp + c * a.Nr, a.Nr);
  float inverse[kBlockRows];
  for (int64_t i = first, R; i < last; i += R) {
    R = block_rows<T>(last - i);
    for (int64_t j = 0; j < a.N; j += kPanel)
      product<false>(R, a.hd, q + i * a.hdp, a.hdp, panel_of(kt + j * a.hdp, a.hdp), s + j, a.Np, smaller(kPanel, a.N - j));
    for (int64_t r = 0; r < R; ++r) {
      float* lse = a.lse ? a.lse + (b * a.heads + head) * a.N + i + r : nullptr;
      inverse[r] = 1.f / softmax_row(a, dropout, s + r * a.Np, p + r * a.Np, b, head, i + r, lse);
    }
    for (int64_t c = 0; c < a.hd; c += kPanel)
      product_blocks(R, a.N, p, a.Np, panel_of_rows(v + c, a.hdp, vp + c * a.Nr, a.Nr), [&](int64_t, int rows, float* tile) {
        for (int r = 0; r < rows; ++r) {
          float* t = tile + r * kPanel;
          for (int l = 0; l < kPanel; l += kLanes) store(t + l, load(t + l) * inverse[r]);
          store_columns(o + (i + r) * a.Cp + head * a.hd + c, t, a.hd - c);
        }
      });
  }
}

// out = x + s * drop(o Wproj^T + b): panel p of the R rows from `row` on. line: scratch (64).
template <typename X, typename T>
CCT_INLINE void projection_panel(const AttentionArgs& a, int64_t b, int64_t slot, int64_t p, int64_t row, int64_t R,
                                 const Panel<T>& weight, const Dropout& dropout, float* line) {
  const int64_t left = a.C - p * kPanel, count = left < kPanel ? left : kPanel;
  const float s = a.path_scale ? a.path_scale[b] : 1.f;
  product_blocks(R, a.C, head_outputs<T>(a, slot) + row * a.Cp, a.Cp, weight, [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r) {
      const int64_t token = b * a.N + row + i + r;
      float* t = tile + r * kPanel;
      for (int c = 0; c < kPanel; c += kLanes) store(t + c, load(t + c) + load(a.bproj + p * kPanel + c));
      if (dropout.active()) dropout.apply(t, uint32_t(token), uint32_t(p));
      load_row(static_cast<const X*>(a.x) + token * a.C + p * kPanel, count, line);
      for (int c = 0; c < count; c += kLanes) store(t + c, load(line + c) + load(t + c) * s);
      store_row(static_cast<X*>(a.out) + token * a.C + p * kPanel, count, t);
    }
  });
}

template <typename X, typename T>
void projection_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last, char* scratch) {
  const TileScope tiles;
  const Dropout dropout(a.projection_dropout, kProjectionSite);
  float* line = take<float>(scratch, kPanel);
  T* o = head_outputs<T>(a, slot);
  if (a.C < a.Cp)
    for (int64_t i = first; i < last; ++i) std::memset((void*)(o + i * a.Cp + a.C), 0, (a.Cp - a.C) * sizeof(T));
  if (last == a.N) zero_rows(o, a.N, a.Nr, a.Cp);
  if constexpr (sizeof(T) == 4)
    if (a.kept_qkv) keep_rows(a, b, head_rows<T>(a, slot, 0, 0), o, first, last);
  for (int64_t row = first, R; row < last; row += R) {
    R = pass_rows<T>(last - row, a.Cp * sizeof(T));
    for (int64_t p = 0; p < panels(a.C); ++p)
      projection_panel<X>(a, b, slot, p, row, R, weight_panel<T>(a.wproj, p, a.C), dropout, line);
  }
}

// The bits of a.pairs for the keys j0 to j1, transposed: (keys, Np / 64), a bit for each query. j0 is a multiple of 64.
CCT_INLINE void transposed_pairs(const AttentionArgs& a, int64_t b, int64_t head, int64_t j0, int64_t j1, uint64_t* out) {
  const int64_t words = a.Np / kPanel;
  const uint64_t* pairs = a.pairs + (b * a.heads + head) * a.N * words;
  for (int64_t i = 0; i < a.N; i += kPanel)
    for (int64_t j = j0; j < j1; j += kPanel) {
      uint64_t block[kPanel] = {};
      for (int64_t q = 0; q < smaller(kPanel, a.N - i); ++q) block[q] = pairs[(i + q) * words + j / kPanel];
      transpose_bits(block);
      for (int64_t k = 0; k < smaller(kPanel, j1 - j); ++k) out[(j - j0 + k) * words + i / kPanel] = block[k];
    }
}

template <typename T>
struct BackwardBuffers {
  T *da, *daT, *dO, *dqkv, *y, *yT;  // of an image, shared by its phases
  float* dxn;
  T *qkv, *o;  // what forward kept
  T *pairs, *panel;
  float *line, *xhat, *part;
  // of one head
  T *q_columns, *do_columns, *q_rows, *do_rows, *kT, *ds_rows, *pT, *dsT;
  float *delta, *lse, *valid, *st, *dpt, *dq;
  uint64_t* pairs_of_keys;

  const T* head(const AttentionArgs& a, int64_t part, int64_t h) const { return qkv + (part * a.heads + h) * a.Nr * a.hdp; }

  BackwardBuffers(const AttentionArgs& a, int64_t b, char* shared, char* scratch) {
    da = take<T>(shared, a.Nr * a.Cp), daT = take<T>(shared, a.Nr * a.Cp);
    dO = take<T>(shared, a.heads * a.Nr * a.hdp), dqkv = take<T>(shared, a.Nr * a.Qp);
    y = take<T>(shared, a.Nr * a.Cp), yT = take<T>(shared, a.Nr * a.Cp), dxn = take<float>(shared, a.Nr * a.Cp);
    const int64_t all_heads = 3 * a.heads * a.Nr * a.hdp;
    qkv = a.kept_qkv ? take<T>(shared, all_heads) : static_cast<T*>(a.qkv) + b * all_heads;
    o = a.kept_qkv ? take<T>(shared, a.Nr * a.Cp) : head_outputs<T>(a, b);
    pairs = take<T>(scratch, a.Nr * (a.Cp > a.hdp ? a.Cp : a.hdp)), panel = take<T>(scratch, a.Nr * kPanel);
    line = take<float>(scratch, a.Qp), xhat = take<float>(scratch, a.Cp), part = take<float>(scratch, 2 * a.Cp + kPanel);
    q_columns = take<T>(scratch, a.Np * a.hdp), do_columns = take<T>(scratch, a.Np * a.hdp);
    q_rows = take<T>(scratch, a.Nr * a.hdp), do_rows = take<T>(scratch, a.Nr * a.hdp);
    kT = take<T>(scratch, a.Nr * a.hdp), ds_rows = take<T>(scratch, backward_keys(a) * a.Np);
    pT = take<T>(scratch, kBlockRows * a.Np), dsT = take<T>(scratch, kBlockRows * a.Np);
    delta = take<float>(scratch, a.Np), lse = take<float>(scratch, a.Np), valid = take<float>(scratch, a.Np);
    st = take<float>(scratch, kBlockRows * kPanel), dpt = take<float>(scratch, kBlockRows * kPanel);
    dq = take<float>(scratch, a.N > kBackwardKeys ? a.hdp * a.Np : 0);
    pairs_of_keys = take<uint64_t>(scratch, a.weights_dropout.threshold ? smaller(a.Np, kBackwardKeys) * a.Np / kPanel : 0);
  }
};

// For the keys j0 to j1 of a head: dV and dK, and dS for backward_queries.
template <typename T>
void backward_scores(const AttentionArgs& a, int64_t b, int64_t head, int64_t j0, int64_t j1, const BackwardBuffers<T>& w) {
  const Dropout dropout(a.weights_dropout, kAttentionSite);
  const T *k = w.head(a, 1, head), *v = w.head(a, 2, head);
  const uint8_t* mask = a.mask ? a.mask + b * a.N : nullptr;
  const float scale = score_scale(a);
  const int64_t keys = backward_keys(a);
  for (int64_t j = j0, R; j < j1; j += R) {  // a block of keys
    R = smaller(j1 - j, round_up(block_rows<T>(j1 - j), kGroup<T>));
    T* dsT = kRowsArePanels<T> ? w.ds_rows + (j - j0) * a.Np : w.dsT;
    for (int64_t i = 0; i < a.Np; i += kPanel) {  // a panel of queries
      const int64_t columns = smaller(kPanel, a.N - i);
      product<false>(R, a.hd, k + j * a.hdp, a.hdp, panel_of(w.q_columns + i * a.hdp, a.hdp), w.st, kPanel, columns);
      product<false>(R, a.hd, v + j * a.hdp, a.hdp, panel_of(w.do_columns + i * a.hdp, a.hdp), w.dpt, kPanel, columns);
      for (int64_t r = 0; r < R; ++r) {
        const bool key_valid = !mask || mask[j + r];
        const uint64_t kept_pairs = dropout.active() ? w.pairs_of_keys[((j - j0 + r) * a.Np + i) / kPanel] : 0;
        T *pT = w.pT + r * a.Np + i, *out = dsT + r * a.Np + i;
        int c = 0;
        for (; c < columns; c += kLanes) {
          const Vec valid = load(w.valid + i + c);
          Vec s = load(w.st + r * kPanel + c) * scale, dp = load(w.dpt + r * kPanel + c);
          const VecI real = valid > 0.f;
          if (mask) s = select(real, s, Vec{});  // the row of an invalid query is uniform: lse = log N
          Vec p = exp_negative<T>(s - load(w.lse + i + c));
          if (!key_valid) p = select(real, Vec{}, p);  // lse knows nothing of this score: p may be infinite
          Vec kept = p;
          if (dropout.active()) {
            const Vec m = select(bit_lanes(uint32_t(kept_pairs >> c)), set(dropout.scale), Vec{});
            kept = p * m;
            dp = dp * m;
          }
          Vec ds = p * (dp - load(w.delta + i + c)) * scale;
          if (mask) ds = key_valid ? ds * valid : Vec{};
          store(pT + c, kept);
          store(out + c, ds);
        }
        for (; c < kPanel; c += kLanes) store(pT + c, Vec{}), store(out + c, Vec{});
      }
      if constexpr (!kRowsArePanels<T>) {
        const int64_t packed = kTiled<T> ? kBlockRows : round_up(R, kGroup<T>);
        for (int64_t r = R; r < packed; ++r) std::memset((void*)(dsT + r * a.Np + i), 0, kPanel * sizeof(T));
        pack_rows(dsT + i, a.Np, panel_row(w.ds_rows + i * keys, j - j0), packed, keys);
      }
    }
    for (int64_t c = 0; c < a.hd; c += kPanel) {
      T* out = w.dqkv + head * a.hd + c;
      const Panel<T> dO = panel_of_rows(w.dO + head * a.Nr * a.hdp + c, a.hdp, w.do_rows + c * a.Nr, a.Nr);
      const Panel<T> q = panel_of_rows(w.head(a, 0, head) + c, a.hdp, w.q_rows + c * a.Nr, a.Nr);
      product_blocks(R, a.N, w.pT, a.Np, dO, [&](int64_t, int rows, float* tile) {
        for (int r = 0; r < rows; ++r) store_columns(out + (j + r) * a.Qp + 2 * a.C, tile + r * kPanel, a.hd - c);
      });
      product_blocks(R, a.N, dsT, a.Np, q, [&](int64_t, int rows, float* tile) {
        for (int r = 0; r < rows; ++r) store_columns(out + (j + r) * a.Qp + a.C, tile + r * kPanel, a.hd - c);
      });
    }
  }
}

// dQ of a head: what the keys j0 to j1 add to it. The sums of several such ranges stand transposed in w.dq.
template <typename T>
void backward_queries(const AttentionArgs& a, int64_t head, int64_t j0, int64_t j1, const BackwardBuffers<T>& w) {
  alignas(64) float turned[kPanel * kBlockRows];
  const int64_t keys = backward_keys(a);
  for (int64_t i = 0; i < a.N; i += kPanel) {
    const int64_t columns = smaller(kPanel, a.N - i);
    const Panel<T> ds = kRowsArePanels<T> ? Panel<T>{w.ds_rows + i, kStrip, a.Np} : panel_of(w.ds_rows + i * keys, keys);
    product_blocks(
        a.hd, j1 - j0, w.kT + j0, a.Nr, ds,
        [&](int64_t d, int rows, float* tile) {
          for (int r = 0; a.N > keys && r < rows; ++r) {
            float *sum = w.dq + (d + r) * a.Np + i, *line = tile + r * kPanel;
            for (int c = 0; c < columns; c += kLanes) {
              if (j0) store(line + c, load(line + c) + load(sum + c));
              store(sum + c, load(line + c));
            }
          }
          if (j1 < a.N) return;
          transpose_words(tile, kPanel, turned, kBlockRows, kBlockRows, round_up(columns, 16));
          for (int64_t n = 0; n < columns; ++n)
            store_row(w.dqkv + (i + n) * a.Qp + head * a.hd + d, rows, turned + n * kBlockRows);
        },
        columns);
  }
}

template <typename X, typename T>
void backward_head(const AttentionArgs& a, int64_t b, int64_t head, const BackwardBuffers<T>& w) {
  const Dropout dropout(a.weights_dropout, kAttentionSite);
  const T *q = w.head(a, 0, head), *k = w.head(a, 1, head), *o = w.o;
  T* dO = w.dO + head * a.Nr * a.hdp;
  const uint8_t* mask = a.mask ? a.mask + b * a.N : nullptr;

  pack_all_columns(q, a.Nr, a.hdp, w.q_columns);
  pack_all_columns(dO, a.Nr, a.hdp, w.do_columns);
  for (int64_t c = 0; c < a.hdp; c += kPanel) {
    pack_unless_panel(q + c, a.hdp, w.q_rows + c * a.Nr, a.Nr);
    pack_unless_panel(dO + c, a.hdp, w.do_rows + c * a.Nr, a.Nr);
  }
  transpose(k, a.hdp, w.kT, a.Nr, a.Nr, a.hdp, w.pairs);
  for (int64_t i = 0; i < a.Np; ++i) {  // queries that do not exist: a probability that vanishes
    w.lse[i] = i < a.N ? a.lse[(b * a.heads + head) * a.N + i] : 1e30f;
    w.valid[i] = i < a.N && (!mask || mask[i]) ? 1.f : 0.f;
    w.delta[i] = 0.f;
    if (i >= a.N) continue;
    Vec total = {};
    load_row(o + i * a.Cp + head * a.hd, a.hd, w.line);
    for (int64_t c = 0; c < a.hd; c += kLanes) total += load(dO + i * a.hdp + c) * load(w.line + c);
    w.delta[i] = sum(total);
  }

  const int64_t keys = backward_keys(a);
  for (int64_t j0 = 0; j0 < a.N; j0 += keys) {
    const int64_t j1 = smaller(a.N, j0 + keys);
    if (dropout.active()) transposed_pairs(a, b, head, j0, j1, w.pairs_of_keys);
    backward_scores<T>(a, b, head, j0, j1, w);
    backward_queries<T>(a, head, j0, j1, w);
  }
}

// da = s * mask * dout and y = LN(x), both also transposed, and what was kept in the products' type: rows [first, last),
// multiples of 32 but for N.
template <typename X, typename T>
void backward_begin(const AttentionArgs& a, int64_t b, int64_t first, int64_t last, const AttentionGradients& g,
                    const BackwardBuffers<T>& w) {
  const Dropout dropout(a.projection_dropout, kProjectionSite);
  const X* dout = static_cast<const X*>(a.dout) + b * a.N * a.C;
  const float s = a.path_scale ? a.path_scale[b] : 1.f;
  for (int64_t i = first; i < last; ++i) {
    load_row(dout + i * a.C, a.C, w.line);
    for (int64_t c = round_up(a.C, kLanes); c < a.Cp; c += kLanes) store(w.line + c, Vec{});
    if (dropout.active())
      for (int64_t p = 0; p < panels(a.C); ++p) dropout.apply(w.line + p * kPanel, uint32_t(b * a.N + i), uint32_t(p));
    for (int64_t c = 0; c < a.Cp; c += kLanes) {
      const Vec d = load(w.line + c) * s;
      store(w.part + c, load(w.part + c) + d);
      store(w.da + i * a.Cp + c, d);
    }
    if ((i + 1) % kSumRows == 0 || i + 1 == last) flush_sums(w.part, g.dbproj, a.Cp);
    std::memset((void*)(w.dqkv + i * a.Qp + 3 * a.C), 0, (a.Qp - 3 * a.C) * sizeof(T));
    if (!a.need_qkv) continue;
    saved_xhat<X>(a, b * a.N + i, w.xhat);
    affine(w.xhat, w.y + i * a.Cp, a.gamma, a.beta, a.C, a.Cp);
  }
  const int64_t end = round_up(last, 32);
  if constexpr (sizeof(T) == 4)
    if (a.kept_qkv) {
      load_kept_rows(a, b, w.qkv, w.o, first, last);
      for (int64_t h = 0; h < 3 * a.heads; ++h) zero_rows(w.qkv + h * a.Nr * a.hdp, last, end, a.hdp);
      zero_rows(w.o, last, end, a.Cp);
    }
  zero_rows(w.dqkv, last, end, a.Qp);
  auto turn = [&](T* rows, T* columns) {
    zero_rows(rows, last, end, a.Cp);
    transpose(rows + first * a.Cp, a.Cp, columns + first, a.Nr, end - first, a.Cp, w.pairs);
  };
  if (a.need_proj) turn(w.da, w.daT);
  if (a.need_qkv) turn(w.y, w.yT);
}

// Item p: panel p of dWproj, then panels of dO = da Wproj by head.
template <typename T>
void backward_projection(const AttentionArgs& a, int64_t item, const AttentionGradients& g, const BackwardBuffers<T>& w) {
  if (item < panels(a.C)) {
    if (!a.need_proj) return;
    const T* o = w.o + item * kPanel;
    pack_unless_panel(o, a.Cp, w.panel, a.Nr);
    return product<true>(a.C, a.N, w.daT, a.Nr, panel_of_rows(o, a.Cp, w.panel, a.Nr), g.dwproj + item * kPanel, a.Cp);
  }
  const int64_t p = item - panels(a.C), per_head = a.hdp / kPanel, column = p % per_head * kPanel;
  T* dO = w.dO + p / per_head * a.Nr * a.hdp;
  product_blocks(a.N, a.C, w.da, a.Cp, weight_panel<T>(a.wproj_back, p, a.C), [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r) store_row(dO + (i + r) * a.hdp + column, kPanel, tile + r * kPanel);
  });
  for (int64_t i = a.N; i < a.Nr; ++i) std::memset((void*)(dO + i * a.hdp + column), 0, kPanel * sizeof(T));
}

// Item p: panel p of dWqkv and dbqkv, then panels of the gradient of LN(x), dqkv Wqkv.
template <typename T>
void backward_qkv(const AttentionArgs& a, int64_t item, const AttentionGradients& g, const BackwardBuffers<T>& w) {
  if (item < a.Qp / kPanel) {
    const T* d = w.dqkv + item * kPanel;
    if (a.need_qkv) {
      pack_unless_panel(d, a.Qp, w.panel, a.Nr);
      product<true>(a.C, a.N, w.yT, a.Nr, panel_of_rows(d, a.Qp, w.panel, a.Nr), g.dwqkv + item * a.Cp * kPanel, kPanel);
    }
    float* part = w.part + 2 * a.Cp;
    for (int64_t i = 0; i < a.N && g.dbqkv; ++i) {
      for (int64_t c = 0; c < kPanel; c += kLanes) store(part + c, load(part + c) + load(d + i * a.Qp + c));
      if ((i + 1) % kSumRows == 0 || i + 1 == a.N) flush_sums(part, g.dbqkv + item * kPanel, kPanel);
    }
    return;
  }
  const int64_t p = item - a.Qp / kPanel;
  product_blocks(a.N, 3 * a.C, w.dqkv, a.Qp, weight_panel<T>(a.wqkv_back, p, 3 * a.C), [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r) std::memcpy(w.dxn + (i + r) * a.Cp + p * kPanel, tile + r * kPanel, kPanel * sizeof(float));
  });
}

// dx = dout + the gradient through the LayerNorm, of rows [first, last).
template <typename X, typename T>
void backward_norm(const AttentionArgs& a, int64_t b, int64_t first, int64_t last, const AttentionGradients& g,
                   const BackwardBuffers<T>& w) {
  const int64_t width = round_up(a.C, kLanes);
  for (int64_t i = first; i < last; ++i) {
    const int64_t token = b * a.N + i;
    load_row(static_cast<const X*>(a.dout) + token * a.C, a.C, w.line);
    saved_xhat<X>(a, token, w.xhat);
    backward_row(w.xhat, w.dxn + i * a.Cp, a.gamma, a.C, width, a.rstd[token], w.line, w.part, w.part + a.Cp);
    if ((i + 1) % kSumRows == 0 || i + 1 == last) {
      flush_sums(w.part, g.dgamma, width);
      flush_sums(w.part + a.Cp, g.dbeta, width);
    }
    store_row(static_cast<X*>(a.dx) + token * a.C, a.C, w.line);
  }
}

template <typename X, typename T>
void backward_phase(const AttentionArgs& a, int64_t b, int phase, int64_t first, int64_t last, const AttentionGradients& g,
                    char* shared, char* scratch) {
  const TileScope tiles;
  const BackwardBuffers<T> w(a, b, shared, scratch);
  std::memset(w.part, 0, (2 * a.Cp + kPanel) * sizeof(float));
  const int64_t row = first * 32, end = smaller(last * 32, a.N);
  if (phase == kRowsPhase) return backward_begin<X>(a, b, row, end, g, w);
  if (phase == kNormPhase) return backward_norm<X>(a, b, row, end, g, w);
  for (int64_t item = first; item < last; ++item)
    phase == kProjectionPhase ? backward_projection(a, item, g, w)
    : phase == kHeadsPhase    ? backward_head<X, T>(a, b, item, w)
                              : backward_qkv(a, item, g, w);
}

}  // namespace

void attention_qkv_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last, char* scratch) {
  CCT_TYPED(qkv_rows, a, b, slot, first, last, scratch);
}
void attention_head_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t head, int64_t first, int64_t last,
                         char* scratch) {
#if defined(CCT_BF16_PRODUCT)
  if (a.bf16) return head_rows_forward<BFloat16>(a, b, slot, head, first, last, scratch);
#endif
  head_rows_forward<float>(a, b, slot, head, first, last, scratch);
}
void attention_projection_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last, char* scratch) {
  CCT_TYPED(projection_rows, a, b, slot, first, last, scratch);
}
void attention_backward_phase(const AttentionArgs& a, int64_t b, int phase, int64_t first, int64_t last,
                              const AttentionGradients& g, char* shared, char* scratch) {
  CCT_TYPED(backward_phase, a, b, phase, first, last, g, shared, scratch);
}

}  // namespace cct::CCT_ISA

#else  // ----------------------------------------------------------------------------------------- checks, threads,
       // registration
namespace cct {

static constexpr const char* kOp = "layernorm_attention";

AttentionCall::AttentionCall(const at::Tensor& x_in, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                             const at::Tensor& qkv_weight, const at::Tensor& proj_weight, const OptionalTensor& proj_bias,
                             int64_t num_heads, const OptionalTensor& qkv_bias, const OptionalTensor& mask_in,
                             double attn_dropout, double dropout, const OptionalTensor& drop_path_scale,
                             const OptionalTensor& seed, double eps, at::ScalarType compute) {
  TORCH_CHECK_VALUE(x_in.dim() == 3, kOp, ": x has ", x_in.dim(), " dimensions; expected 3");
  check_dtype(kOp, "x", x_in);
  check_tensor(kOp, "x", x_in, x_in.sizes(), x_in.scalar_type());
  B = x_in.size(0);
  const int64_t N = x_in.size(1), C = x_in.size(2);
  TORCH_CHECK_VALUE(N > 0 && C > 0, kOp, ": x has shape ", x_in.sizes(), "; expected at least one token and one channel");
  TORCH_CHECK_VALUE(num_heads > 0 && C % num_heads == 0, kOp, ": num_heads is ", num_heads, "; expected a divisor of ", C);
  check_dtype(kOp, "qkv_weight", qkv_weight);
  const auto dtype = qkv_weight.scalar_type();
  check_tensor(kOp, "norm_weight", norm_weight, {C}, dtype);
  check_tensor(kOp, "norm_bias", norm_bias, {C}, dtype);
  check_tensor(kOp, "qkv_weight", qkv_weight, {3 * C, C}, dtype);
  check_tensor(kOp, "qkv_bias", qkv_bias, {3 * C}, dtype);
  check_tensor(kOp, "proj_weight", proj_weight, {C, C}, dtype);
  check_tensor(kOp, "proj_bias", proj_bias, {C}, dtype);
  check_tensor(kOp, "mask", mask_in, {B, N}, at::kBool);
  if (drop_path_scale)
    TORCH_CHECK_VALUE(drop_path_scale->sizes() == at::IntArrayRef({B}), kOp, ": drop_path_scale has shape ",
                      drop_path_scale->sizes(), "; expected [", B, "]");
  x = x_in.contiguous();
  a.N = N;
  a.C = C;
  a.heads = num_heads;
  a.hd = C / num_heads;
  a.Cp = round_up64(C);
  a.hdp = round_up64(a.hd);
  a.Np = round_up64(N);
  a.Nr = (N + 31) / 32 * 32;
  a.Qp = round_up64(3 * C);
  a.eps = float(eps);
  a.x_bf16 = x.scalar_type() == at::kBFloat16;
  a.bf16 = bf16_products(compute);
  products = a.bf16 ? at::kBFloat16 : at::kFloat;
  kept = kept_dtype(compute);
  a.x = x.const_data_ptr();
  a.weights_dropout = dropout_args(kOp, seed, attn_dropout);
  a.projection_dropout = dropout_args(kOp, seed, dropout);
  gamma = norm_weight ? padded_vector(norm_weight, C) : padded_vector(at::ones({C}), C);
  beta = padded_vector(norm_bias, C);
  bproj = padded_vector(proj_bias, C);
  bqkv = zeros(3 * a.heads * a.hdp);
  if (qkv_bias) {
    bqkv = at::zeros({3 * a.heads, a.hdp}, at::kFloat);
    bqkv.narrow(1, 0, a.hd).copy_(qkv_bias->reshape({3 * a.heads, a.hd}));
  }
  a.gamma = gamma.const_data_ptr<float>();
  a.beta = beta.const_data_ptr<float>();
  a.bproj = bproj.const_data_ptr<float>();
  a.bqkv = bqkv.const_data_ptr<float>();
  if (mask_in) {
    mask = mask_in->contiguous();
    a.mask = static_cast<const uint8_t*>(mask.const_data_ptr());
  }
  if (drop_path_scale) {
    scale = drop_path_scale->to(at::kFloat).contiguous();
    a.path_scale = scale.const_data_ptr<float>();
  }
}

namespace {

// Work that is cut into `items`: whole images while every thread has one, the rows and heads of an image for the rest.
void forward(const AttentionCall& call, bool keep_slots) {
  const AttentionArgs& a = call.a;
  const int64_t threads = at::get_num_threads(), whole = call.B / threads * threads;
  const int64_t bytes = attention_forward_scratch(a);
  for_slices(whole, kForwardSlices, [&](int64_t first, int64_t last, int64_t s) {
    char* scratch = thread_scratch(bytes);
    for (int64_t b = first; b < last; ++b) {
      const int64_t slot = keep_slots ? b : s;
      CCT_CALL(attention_qkv_rows, a, b, slot, 0, a.N, scratch);
      for (int64_t h = 0; h < a.heads; ++h) CCT_CALL(attention_head_rows, a, b, slot, h, 0, a.N, scratch);
      CCT_CALL(attention_projection_rows, a, b, slot, 0, a.N, scratch);
    }
  });
  const int64_t unit = row_unit(a), blocks = (a.N + unit - 1) / unit;
  const int64_t parts = std::min(blocks, (threads + a.heads - 1) / a.heads);
  for (int64_t b = whole; b < call.B; ++b) {
    const int64_t slot = keep_slots ? b : 0;
    for_slices(blocks, [&](int64_t first, int64_t last, int64_t) {
      CCT_CALL(attention_qkv_rows, a, b, slot, first * unit, std::min(last * unit, a.N), thread_scratch(bytes));
    });
    for_slices(a.heads * parts, [&](int64_t first, int64_t last, int64_t) {
      for (int64_t i = first; i < last; ++i) {
        const int64_t p = i % parts;
        CCT_CALL(attention_head_rows, a, b, slot, i / parts, p * blocks / parts * unit,
                 std::min((p + 1) * blocks / parts * unit, a.N), thread_scratch(bytes));
      }
    });
    for_slices(blocks, [&](int64_t first, int64_t last, int64_t) {
      CCT_CALL(attention_projection_rows, a, b, slot, first * unit, std::min(last * unit, a.N), thread_scratch(bytes));
    });
  }
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>
layernorm_attention_forward(const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                            const at::Tensor& qkv_weight, const at::Tensor& proj_weight, const OptionalTensor& proj_bias,
                            int64_t num_heads, const OptionalTensor& qkv_bias, const OptionalTensor& mask, double attn_dropout,
                            double dropout, const OptionalTensor& drop_path_scale, const OptionalTensor& seed, double eps,
                            at::ScalarType compute, bool keep) {
  AttentionCall call(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask, attn_dropout,
                     dropout, drop_path_scale, seed, eps, compute);
  AttentionArgs& a = call.a;
  call.wqkv = pack_weight(qkv_weight, true, a.hd, a.bf16);
  call.wproj = pack_weight(proj_weight, true, 0, a.bf16);
  a.wqkv = call.wqkv.const_data_ptr();
  a.wproj = call.wproj.const_data_ptr();
  const auto f32 = x.options().dtype(at::kFloat);
  const bool converted = keep && call.converted(), keep_slots = keep && !converted;
  const bool keep_xhat = keep && keeps_xhat(call.x, compute);
  const int64_t B = call.B, slots = keep_slots ? B : count_slices(B, kForwardSlices), images = keep ? B : 0;
  at::Tensor out = pooled_empty(call.x.sizes(), call.x.scalar_type()), rstd = at::empty({images, a.N}, f32),
             mean = at::empty({keep_xhat ? 0 : images, a.N}, f32);
  at::Tensor kept_x = keep_xhat ? pooled_empty(call.x.sizes(), at::kBFloat16) : at::empty({0}, x.options());
  const at::Tensor qkv = pooled_empty(call.qkv_shape(slots), call.products),
                   o = pooled_empty(call.o_shape(slots), call.products);
  const at::Tensor kept_qkv = keep_slots ? qkv : pooled_empty(call.kept_qkv_shape(images), call.kept);
  const at::Tensor kept_o = keep_slots ? o : pooled_empty(call.kept_o_shape(images), call.kept);
  at::Tensor lse = at::empty({images, a.heads, a.N}, f32);
  const at::Tensor pairs = pooled_empty(call.pairs_shape(keep), at::kLong);
  a.out = out.data_ptr();
  a.mean = keep && !keep_xhat ? mean.data_ptr<float>() : nullptr;
  a.rstd = keep ? rstd.data_ptr<float>() : nullptr;
  a.xhat = keep_xhat ? kept_x.data_ptr() : nullptr;
  a.qkv = qkv.data_ptr();
  a.o = o.data_ptr();
  a.lse = keep ? lse.data_ptr<float>() : nullptr;
  a.pairs = pairs.numel() ? static_cast<uint64_t*>(pairs.data_ptr()) : nullptr;
  if (converted) a.kept_qkv = kept_qkv.data_ptr(), a.kept_o = kept_o.data_ptr();
  forward(call, keep_slots);
  return {out, mean, rstd, kept_qkv, kept_o, lse, pairs, kept_x};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> layernorm_attention_backward(
    const at::Tensor& dout_in, const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
    const at::Tensor& qkv_weight, const at::Tensor& proj_weight, const OptionalTensor& proj_bias, int64_t num_heads,
    const OptionalTensor& qkv_bias, const OptionalTensor& mask, double attn_dropout, double dropout,
    const OptionalTensor& drop_path_scale, const OptionalTensor& seed, double eps, at::ScalarType compute,
    const at::Tensor& mean_in, const at::Tensor& rstd_in, const at::Tensor& qkv_in, const at::Tensor& o_in,
    const at::Tensor& lse_in, const at::Tensor& pairs_in, std::array<bool, 2> need_weights) {
  const auto [need_qkv, need_proj] = need_weights;
  AttentionCall call(x, norm_weight, norm_bias, qkv_weight, proj_weight, proj_bias, num_heads, qkv_bias, mask, attn_dropout,
                     dropout, drop_path_scale, seed, eps, compute);
  AttentionArgs& a = call.a;
  const int64_t B = call.B;
  const bool from_xhat = is_xhat(x, dout_in, compute);
  check_tensor(kOp, "dout", dout_in, x.sizes(), from_xhat ? at::kFloat : x.scalar_type());
  check_tensor(kOp, "mean", mean_in, {from_xhat ? 0 : B, a.N}, at::kFloat);
  check_tensor(kOp, "rstd", rstd_in, {B, a.N}, at::kFloat);
  check_tensor(kOp, "qkv", qkv_in, call.kept_qkv_shape(B), call.kept);
  check_tensor(kOp, "o", o_in, call.kept_o_shape(B), call.kept);
  check_tensor(kOp, "lse", lse_in, {B, a.heads, a.N}, at::kFloat);
  check_tensor(kOp, "pairs", pairs_in, call.pairs_shape(true), at::kLong);
  const at::Tensor dout = dout_in.contiguous(), mean = mean_in.contiguous(), rstd = rstd_in.contiguous();
  const at::Tensor qkv = qkv_in.contiguous(), o = o_in.contiguous(), lse = lse_in.contiguous(), pairs = pairs_in.contiguous();
  const at::Tensor wqkv_back = pack_backward(qkv_weight, 0, a.hd, a.bf16, need_qkv),
                   wproj_back = pack_backward(proj_weight, a.hd, 0, a.bf16, need_proj);
  a.wqkv_back = wqkv_back.const_data_ptr();
  a.wproj_back = wproj_back.const_data_ptr();
  if (from_xhat) a.xhat = call.x.data_ptr(), a.x = nullptr, a.x_bf16 = false;
  a.mean = mean.data_ptr<float>();
  a.rstd = rstd.data_ptr<float>();
  (call.converted() ? a.kept_qkv : a.qkv) = qkv.data_ptr();
  (call.converted() ? a.kept_o : a.o) = o.data_ptr();
  a.lse = lse.data_ptr<float>();
  a.pairs = static_cast<uint64_t*>(pairs.data_ptr());
  at::Tensor dx = pooled_empty(call.x.sizes(), dout.scalar_type());
  a.dout = dout.const_data_ptr();
  a.dx = dx.data_ptr();
  a.need_qkv = need_qkv;
  a.need_proj = need_proj;

  const int64_t C = a.C, Cp = a.Cp, Qp = a.Qp;
  // whole images while every thread has one, or where the threads would take longer to meet; of the rest the phases are divided
  const bool divide = a.N * C * C >= 1 << 22;
  const int64_t threads = at::get_num_threads(), whole = divide ? B / threads * threads : B;
  const int64_t slots = std::max(count_slices(whole, backward_slices()), whole < B ? threads : 1);
  const int64_t dwqkv = need_qkv ? Qp * Cp : 0, dwproj = need_proj ? Cp * Cp : 0;
  at::Tensor sums = pooled_zeros({slots, dwqkv + dwproj + Qp + 3 * Cp}, at::kFloat);
  auto gradients = [&](int64_t slot) {
    float* s = sums.data_ptr<float>() + slot * sums.size(1);
    float* biases = s + dwqkv + dwproj;
    return AttentionGradients{s, s + dwqkv, qkv_bias ? biases : nullptr, biases + Qp, biases + Qp + Cp, biases + Qp + 2 * Cp};
  };
  const int64_t own = attention_backward_scratch(a), image = attention_backward_shared(a);
  for_slices(whole, backward_slices(), [&](int64_t first, int64_t last, int64_t slot) {
    char* scratch = thread_scratch(image + own);
    for (int64_t b = first; b < last; ++b)
      for (int phase = 0; phase < kAttentionPhases; ++phase)
        CCT_CALL(attention_backward_phase, a, b, phase, 0, phase_items(a, phase), gradients(slot), scratch, scratch + image);
  });
  const at::Tensor shared = pooled_empty({whole < B ? image + 4096 : 0}, at::kByte);
  for (int64_t b = whole; b < B; ++b)
    for (int phase = 0; phase < kAttentionPhases; ++phase)
      for_slices(phase_items(a, phase), [&](int64_t first, int64_t last, int64_t slot) {
        char* memory = reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data_ptr()) + 4095) / 4096 * 4096);
        CCT_CALL(attention_backward_phase, a, b, phase, first, last, gradients(slot), memory, thread_scratch(own));
      });
  const at::Tensor total = sums.size(0) == 1 ? sums[0] : sums.sum(0);
  const auto dtype = qkv_weight.scalar_type();
  auto vector = [&](int64_t start, int64_t n) { return total.narrow(0, dwqkv + dwproj + start, n).to(dtype, false, true); };
  at::Tensor dqkv_weight = at::empty({0}, qkv_weight.options()), dproj_weight = at::empty({0}, qkv_weight.options());
  if (need_qkv)
    dqkv_weight = total.narrow(0, 0, dwqkv)
                      .view({Qp / 64, Cp, 64})
                      .transpose(1, 2)
                      .reshape({Qp, Cp})
                      .narrow(0, 0, 3 * C)
                      .narrow(1, 0, C)
                      .to(dtype, false, true)
                      .contiguous();
  if (need_proj)
    dproj_weight =
        total.narrow(0, dwqkv, dwproj).view({Cp, Cp}).narrow(0, 0, C).narrow(1, 0, C).to(dtype, false, true).contiguous();
  const at::Tensor dqkv_bias = qkv_bias ? vector(0, 3 * C) : at::empty({0}, qkv_weight.options());
  return {dx, vector(Qp + Cp, C), vector(Qp + 2 * Cp, C), dqkv_weight, dproj_weight, vector(Qp, C), dqkv_bias};
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) {
  m.impl("layernorm_attention_forward", TORCH_FN(cct::layernorm_attention_forward));
  m.impl("layernorm_attention_backward", TORCH_FN(cct::layernorm_attention_backward));
}
#endif
