// LayerNorm of one row, forward and backward, for the kernels that fold it in.
#pragma once

#include "simd.h"

namespace cct::CCT_ISA {

// x as float32 into row, zeros from C up to the next whole vector; returns the sum.
template <typename T>
CCT_INLINE float load_row(const T* x, int64_t C, float* row) {
  Vec total = {};
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes) {
    Vec v = load(x + c);
    store(row + c, v);
    total += v;
  }
  if (c < C) {
    Vec v = load_part(x + c, int(C - c));
    store(row + c, v);
    total += v;
  }
  return sum(total);
}

template <typename T>
CCT_INLINE void store_row(T* x, int64_t C, const float* row) {
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes) store(x + c, load(row + c));
  if (c < C) store_part(x + c, load(row + c), int(C - c));
}

CCT_INLINE float rstd_of(const float* row, int64_t C, float mean, float eps) {
  Vec squares = {};
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes) {
    Vec d = load(row + c) - mean;
    squares += d * d;
  }
  float total = sum(squares);
  for (; c < C; ++c) total += (row[c] - mean) * (row[c] - mean);
  return 1.f / __builtin_sqrtf(total / float(C) + eps);
}

// row = xhat = (row - mean) * rstd; what lies behind C stays as it is.
CCT_INLINE void normalise(float* row, int64_t C, float mean, float rstd) {
  int64_t c = 0;
  for (; c + kLanes <= C; c += kLanes) store(row + c, (load(row + c) - mean) * rstd);
  for (; c < C; ++c) row[c] = (row[c] - mean) * rstd;
}

// y = LN(x) of one row, as T and, unless z is null, as float; zeros from C to Cp, as gamma and beta have them. xhat: its C
// values, unless null. Statistics computed and returned: three passes over a row that is in the first-level cache.
template <typename X, typename T>
CCT_INLINE void layernorm_row(const X* x, int64_t C, int64_t Cp, float eps, const float* gamma, const float* beta,
                              BFloat16* xhat, float* z, T* y, float& mean, float& rstd) {
  const int64_t whole = C / kLanes * kLanes;
  const Vec tail = C > whole ? load_part(x + whole, int(C - whole)) : Vec{};
  Vec total = tail;
  for (int64_t c = 0; c < whole; c += kLanes) total += load(x + c);
  mean = sum(total) / float(C);
  alignas(64) float inside[kLanes] = {};  // 1 for the lanes of the tail
  for (int64_t c = whole; c < C; ++c) inside[c - whole] = 1.f;
  const Vec tail_centred = (tail - mean) * load(inside);
  Vec squares = tail_centred * tail_centred;
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Vec d = load(x + c) - mean;
    squares += d * d;
  }
  rstd = 1.f / __builtin_sqrtf(sum(squares) / float(C) + eps);
  auto out = [&](int64_t c, Vec h) {
    const Vec v = h * load(gamma + c) + load(beta + c);
    if (z) store(z + c, v);
    store(y + c, v);
  };
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Vec h = (load(x + c) - mean) * rstd;
    if (xhat) store(xhat + c, h);
    out(c, h);
  }
  if (C > whole) {
    if (xhat) store_part(xhat + whole, tail_centred * rstd, int(C - whole));
    out(whole, tail_centred * rstd);
  }
  for (int64_t c = round_up(C, kLanes); c < Cp; c += kLanes) out(c, Vec{});
}

// xhat of row i into `row` (zeros behind C up to the next vector): what forward kept, or of x with the saved statistics.
template <typename X, typename Args>
CCT_INLINE void saved_xhat(const Args& a, int64_t i, float* row) {
  if (a.xhat) {
    load_row(static_cast<const BFloat16*>(a.xhat) + i * a.C, a.C, row);
    return;
  }
  load_row(static_cast<const X*>(a.x) + i * a.C, a.C, row);
  normalise(row, a.C, a.mean[i], a.rstd[i]);
}

// row = xhat in, y = xhat * gamma + beta out, as float and as T; zeros from C to Cp, as gamma and beta have them.
template <typename T>
CCT_INLINE void affine(float* row, T* y, const float* gamma, const float* beta, int64_t C, int64_t Cp) {
  for (int64_t c = round_up(C, kLanes); c < Cp; c += kLanes) store(row + c, Vec{});
  for (int64_t c = 0; c < Cp; c += kLanes) {
    const Vec v = load(row + c) * load(gamma + c) + load(beta + c);
    store(row + c, v);
    store(y + c, v);
  }
}

// Sums over rows in two levels: a long chain of float32 additions would lose digits. `part` goes into `total` every 32 rows.
constexpr int64_t kSumRows = 32;
CCT_INLINE void flush_sums(float* part, float* total, int64_t width) {
  for (int64_t c = 0; c < width; c += kLanes) {
    store(total + c, load(total + c) + load(part + c));
    store(part + c, Vec{});
  }
}

// dx = rstd (g dy - mean(g dy) - xhat mean(g dy xhat)), added to what dx holds; dgamma += dy xhat, dbeta += dy.
// All rows are padded with zeros to `width`, whole vectors.
CCT_INLINE void backward_row(const float* xhat, const float* dy, const float* gamma, int64_t C, int64_t width, float rstd,
                             float* dx, float* dgamma, float* dbeta) {
  Vec total = {}, product = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    const Vec h = load(xhat + c), d = load(dy + c), g = d * load(gamma + c);
    store(dgamma + c, load(dgamma + c) + d * h);
    store(dbeta + c, load(dbeta + c) + d);
    total += g;
    product += g * h;
  }
  const float a = sum(total) / float(C), b = sum(product) / float(C);
  for (int64_t c = 0; c < width; c += kLanes)
    store(dx + c, load(dx + c) + (load(dy + c) * load(gamma + c) - a - load(xhat + c) * b) * rstd);
}

}  // namespace cct::CCT_ISA
