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
CCT_INLINE void gelu_with_derivative(Vec x, Vec& value, Vec& derivative) {
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
    derivative = select(x < -4.f, Vec{}, p * c + 0.5f);
    value = gelu<T>(x);
  } else {
    const Vec a = min(set(64.f), max(x, -x)), e = exp_negative<float>(x * x * -0.5f), tail = normal_tail(a, e);
    derivative = select(x < 0.f, tail, 1.f - tail) + x * e * 0.39894228f;
    value = max(x, Vec{}) - tail * a;
  }
}

typedef uint64_t VecL __attribute__((vector_size(4 * kLanes)));

// The product of the lower 32 bits of each lane, 64 bits.
CCT_INLINE VecL multiply_low(VecL a, VecL b) {
#if defined(__AVX512F__)
  return (VecL)_mm512_mul_epu32((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
  return (VecL)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (VecL)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffffull) * (b & 0xffffffffull);
#endif
}
CCT_INLINE VecL multiply_low(VecL a, uint32_t b) { return multiply_low(a, VecL{} + uint64_t(b)); }

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

  // The four words of the lanes first, first + 1, ... of counter word 0, in row `row`.
  //
  // Every other lane stands in a lane of 64 bits of its own, where a product is one instruction; what is above its lower half
  // is never looked at. Until the third round half of the words are the same in all lanes.
  CCT_INLINE void words(uint32_t first, uint32_t row, VecU (&out)[4]) const {
    constexpr uint32_t kRoundA = 0xD2511F53, kRoundB = 0xCD9E8D57, kKeyA = 0x9E3779B9, kKeyB = 0xBB67AE85;
    VecU lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = uint32_t(i);
    lane += first;
    const uint64_t b1 = uint64_t(offset) * kRoundB, a2 = uint64_t(uint32_t(b1 >> 32) ^ row ^ key0) * kRoundA;
    VecL c[2][4];
    for (int half = 0; half < 2; ++half) {
      const VecL a1 = multiply_low(half ? (VecL)lane >> 32 : (VecL)lane, kRoundA);
      const VecL b2 = multiply_low((a1 >> 32) ^ uint64_t(site ^ key1), kRoundB);
      c[half][0] = (b2 >> 32) ^ uint64_t(uint32_t(b1) ^ (key0 + kKeyA));
      c[half][1] = b2;
      c[half][2] = a1 ^ uint64_t(uint32_t(a2 >> 32) ^ (key1 + kKeyB));
      c[half][3] = VecL{} + a2;
    }
    for (int round = 2; round < 10; ++round) {
      const VecL x0 = VecL{} + uint64_t(key0 + round * kKeyA), x1 = VecL{} + uint64_t(key1 + round * kKeyB);
      for (VecL(&h)[4] : c) {
        const VecL a = multiply_low(h[0], kRoundA), b = multiply_low(h[2], kRoundB);
        h[0] = (b >> 32) ^ h[1] ^ x0, h[1] = b;
        h[2] = (a >> 32) ^ h[3] ^ x1, h[3] = a;
      }
    }
    for (int w = 0; w < 4; ++w) out[w] = (VecU)((c[0][w] & 0xffffffffull) | (c[1][w] << 32));
  }

  // values[c] for the 64 columns of group `group` of a row: 0 where dropped, else scaled. Returns a bit for each column, 1
  // where it is kept.
  CCT_INLINE uint64_t apply(float* values, uint32_t row, uint32_t group) const {
    uint64_t bits = 0;
    for (int l = 0; l < 16; l += kLanes) {
      VecU word[4];
      words(16 * group + l, row, word);
      for (int w = 0; w < 4; ++w) {
        float* v = values + 16 * w + l;
        const VecI kept = (VecI)(word[w] >= VecU{} + threshold);
        store(v, select(kept, load(v) * scale, Vec{}));
        bits |= uint64_t(lane_bits(kept)) << (16 * w + l);
      }
    }
    return bits;
  }
};

}  // namespace cct::CCT_ISA
