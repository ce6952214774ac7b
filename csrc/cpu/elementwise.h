// exp, GELU and the counter-based dropout masks on vectors.
#pragma once

#include "dropout.h"
#include "simd.h"

namespace cct::CCT_ISA {

constexpr float kLog2e = 1.44269504f;
constexpr float kLowest = -3.4028235e38f;

// 2^x for x <= 0, as softmax needs it: absolute error below 1e-7 (degree 5), or 1e-4 for a result that becomes BFloat16
// (degree 3). Below -124 the result stays near 1e-37. Minimax polynomials of 2^f on |f| <= 1/2.
template <typename T>
CCT_INLINE Vec exp2_negative(Vec x) {
  const Vec t = max(set(-124.f), x);  // in this order NaN passes
#if defined(__AVX512F__)
  const Vec f = (Vec)_mm512_reduce_ps((__m512)t, 8);  // t - round(t)
#else
  const Vec magic = set(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  const Vec shifted = t + magic;
  const Vec f = t - (shifted - magic);
#endif
  Vec p;
  if constexpr (sizeof(T) == 2) {
    p = f * 0.0550886838f + 0.242604051f;
    p = p * f + 0.693276242f;
    p = p * f + 0.99992894f;
  } else {
    p = f * 0.0013266970f + 0.0096754597f;
    p = p * f + 0.055507426f;
    p = p * f + 0.24022122f;
    p = p * f + 0.69314695f;
    p = p * f + 1.00000007f;
  }
#if defined(__AVX512F__)
  return (Vec)_mm512_scalef_ps((__m512)p, (__m512)(t - f));
#else
  return (Vec)((VecI)p + ((VecI)shifted << 23));  // the low bits of `shifted` are the integer
#endif
}

template <typename T>
CCT_INLINE Vec exp_negative(Vec x) {
  return exp2_negative<T>(x * kLog2e);
}

// Phi(-a) for a >= 0, given e = exp(-a^2 / 2): erf by Abramowitz and Stegun 7.1.26, absolute error 1.5e-7.
CCT_INLINE Vec normal_tail(Vec a, Vec e) {
  const Vec t = 1.f / (a * (0.3275911f * 0.70710678f) + 1.f);
  Vec p = t * 1.061405429f + -1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t + -0.284496736f;
  p = p * t + 0.254829592f;
  return p * t * e * 0.5f;
}

// GELU(x) = x Phi(x), exact (erf) form, and its derivative Phi(x) + x phi(x).
//   float: normal_tail
//   BFloat16 results: odd polynomials on [-4, 4], zero below, absolute error below 4e-4 of the largest value
template <typename T>
CCT_INLINE Vec gelu(Vec x) {
  if constexpr (sizeof(T) == 2) {
    const Vec c = min(max(x, set(-4.f)), set(4.f)), u = c * c;
    Vec p = u * -1.30122102e-09f + 1.0419176e-07f;
    p = p * u + -3.65703229e-06f;
    p = p * u + 7.48538322e-05f;
    p = p * u + -0.00100648242f;
    p = p * u + 0.00950537055f;
    p = p * u + -0.0658877978f;
    p = p * u + 0.398673369f;
    return select(x < -4.f, Vec{}, x * (p * c + 0.5f));
  } else {
    const Vec a = min(set(64.f), max(x, -x));  // the tail vanishes long before; not infinite times zero
    return max(x, Vec{}) - normal_tail(a, exp_negative<float>(x * x * -0.5f)) * a;
  }
}

template <typename T>
CCT_INLINE Vec gelu_derivative(Vec x) {
  if constexpr (sizeof(T) == 2) {
    const Vec c = min(max(x, set(-4.f)), set(4.f)), u = c * c;
    Vec p = u * 9.79559616e-10f + -8.21851708e-08f;
    p = p * u + 3.02827552e-06f;
    p = p * u + -6.49566125e-05f;
    p = p * u + 0.000907319372f;
    p = p * u + -0.00871628994f;
    p = p * u + 0.0584560332f;
    p = p * u + -0.264826468f;
    p = p * u + 0.797609532f;
    return select(x < -4.f, Vec{}, p * c + 0.5f);
  } else {
    const Vec e = exp_negative<float>(x * x * -0.5f), tail = normal_tail(max(x, -x), e);
    return select(x < 0.f, tail, 1.f - tail) + x * e * 0.39894228f;
  }
}

// High and low halves of the 32 x 32 bit products.
CCT_INLINE void multiply_wide(VecU a, uint32_t b, VecU& hi, VecU& lo) {
  typedef uint64_t VecL __attribute__((vector_size(4 * kLanes)));
#if defined(__AVX512F__)
  const __m512i m = _mm512_set1_epi32(int(b));
  const VecL even = (VecL)_mm512_mul_epu32((__m512i)a, m), odd = (VecL)_mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), m);
#elif defined(__AVX2__)
  const __m256i m = _mm256_set1_epi32(int(b));
  const VecL even = (VecL)_mm256_mul_epu32((__m256i)a, m), odd = (VecL)_mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), m);
#else
  const VecL even = ((VecL)a & 0xffffffffull) * b, odd = ((VecL)a >> 32) * b;
#endif
  hi = (VecU)((even >> 32) | (odd & 0xffffffff00000000ull));
  lo = (VecU)((even & 0xffffffffull) | (odd << 32));
}

// The masks of cct_kernels/philox.py.
struct Dropout {
  uint32_t key0, key1, offset, site, threshold;  // keep where the random word >= threshold
  float scale;                                   // 1 / (1 - p)

  Dropout(const DropoutArgs& a, uint32_t site)
      : key0(uint32_t(a.seed)),
        key1(uint32_t(a.seed >> 32)),
        offset(a.offset),
        site(site),
        threshold(a.threshold),
        scale(a.scale) {}

  CCT_INLINE bool active() const { return threshold != 0; }

  // Four words for each lane: counter (c0, row, offset, site).
  CCT_INLINE void words(VecU c0, VecU row, VecU (&out)[4]) const {
    VecU c1 = row, c2 = VecU{} + offset, c3 = VecU{} + site;
    uint32_t k0 = key0, k1 = key1;
    for (int round = 0; round < 10; ++round) {
      VecU hi0, lo0, hi1, lo1;
      multiply_wide(c0, 0xD2511F53u, hi0, lo0);
      multiply_wide(c2, 0xCD9E8D57u, hi1, lo1);
      c0 = hi1 ^ c1 ^ k0;
      c1 = lo1;
      c2 = hi0 ^ c3 ^ k1;
      c3 = lo0;
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
  }

  // values[c] for the 64 columns of group `group` of a row: 0 where dropped, else scaled.
  CCT_INLINE void apply(float* values, uint32_t row, uint32_t group) const {
    for (int l = 0; l < 16; l += kLanes) {
      VecU lane;
      for (int i = 0; i < kLanes; ++i) lane[i] = 16 * group + l + i;
      VecU word[4];
      words(lane, VecU{} + row, word);
      for (int w = 0; w < 4; ++w) {
        float* v = values + 16 * w + l;
        store(v, select((VecI)(word[w] >= VecU{} + threshold), load(v) * scale, Vec{}));
      }
    }
  }
};

}  // namespace cct::CCT_ISA
