// Vectors of kLanes floats and the elementwise mathematics of the kernels, written once with the compiler's vector types and
// compiled for each instruction set. CCT_ISA names the namespace; only kernel files include this header, and they include
// no PyTorch header in such a build: a template of PyTorch compiled for AVX-512 could be linked into the baseline.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#define CCT_INLINE inline __attribute__((always_inline))

namespace cct::CCT_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t VecI __attribute__((vector_size(4 * kLanes)));
typedef uint32_t VecU __attribute__((vector_size(4 * kLanes)));
typedef uint16_t VecH __attribute__((vector_size(2 * kLanes)));

struct BFloat16 {  // storage only
  uint16_t bits;
};

CCT_INLINE constexpr int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// The next `count` elements of a thread's scratch, which the host sized with scratch_bytes.
template <typename T>
CCT_INLINE T* take(char*& scratch, int64_t count) {
  T* out = reinterpret_cast<T*>(scratch);
  scratch += round_up(count * sizeof(T), 4096) + 256;  // not all buffers on the same cache sets
#if defined(__SANITIZE_ADDRESS__)  // rows may end in a whole vector; what lies behind it up to the next buffer is nobody's
  char* end = reinterpret_cast<char*>(out + count) + sizeof(Vec);
  __asan_unpoison_memory_region(out, end - reinterpret_cast<char*>(out));
  __asan_poison_memory_region(end, scratch - end);
#endif
  return out;
}

CCT_INLINE Vec set(float value) { return Vec{} + value; }

CCT_INLINE Vec load(const float* p) {
  Vec v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
CCT_INLINE void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }

CCT_INLINE Vec load(const BFloat16* p) {
#if defined(__AVX512F__)  // GCC 12 widens in two halves by itself
  return (Vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#else
  VecH half;
  std::memcpy(&half, p, sizeof half);
  return (Vec)(__builtin_convertvector(half, VecU) << 16);
#endif
}

// Round to nearest even; NaN stays NaN.
CCT_INLINE void store(BFloat16* p, Vec v) {
#if defined(__AVX512BF16__)
  __m256bh half = _mm512_cvtneps_pbh((__m512)v);
  std::memcpy(p, &half, sizeof half);
#else
  VecU bits = (VecU)v;
  VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  VecU nan = (VecU)(v != v);
  VecH half = __builtin_convertvector((rounded & ~nan) | (nan & 0x7fc0u), VecH);
  std::memcpy(p, &half, sizeof half);
#endif
}

// Between lanes and bytes; GCC 12 makes single elements of __builtin_convertvector here.
CCT_INLINE VecI load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return (VecI)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  return (VecI)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
#else
  return VecI{p[0], p[1], p[2], p[3]};
#endif
}
CCT_INLINE void store_bytes(uint8_t* p, VecI v) {
#if defined(__AVX512F__)
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8((__m512i)v));
#elif defined(__AVX2__)
  const __m256i low = _mm256_set1_epi32(0x0c080400);  // the first byte of each lane of a half
  const __m256i bytes = _mm256_shuffle_epi8((__m256i)v, low);
  const __m128i pair = _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256(bytes, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), pair);
#else
  for (int i = 0; i < kLanes; ++i) p[i] = uint8_t(v[i]);
#endif
}
// A bit for each lane, from lanes of zeros or of ones alone; and back.
CCT_INLINE uint32_t lane_bits(VecI v) {
#if defined(__AVX512F__)
  return _mm512_movepi32_mask((__m512i)v);
#elif defined(__AVX2__)
  return uint32_t(_mm256_movemask_ps((__m256)v));
#else
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= uint32_t(v[i] & 1) << i;
  return bits;
#endif
}
CCT_INLINE VecI bit_lanes(uint32_t bits) {
  VecU one;
  for (int i = 0; i < kLanes; ++i) one[i] = 1u << i;
  return (VecI)((one & bits) != 0);
}
CCT_INLINE float to_float(float value) { return value; }
CCT_INLINE float to_float(BFloat16 value) {
  uint32_t bits = uint32_t(value.bits) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// The first n < kLanes elements, zeros behind.
template <typename T>
CCT_INLINE Vec load_part(const T* p, int n) {
  T part[kLanes] = {};
  std::memcpy(part, p, n * sizeof(T));
  return load(part);
}
template <typename T>
CCT_INLINE void store_part(T* p, Vec v, int n) {
  T part[kLanes];
  store(part, v);
  std::memcpy(p, part, n * sizeof(T));
}

CCT_INLINE Vec select(VecI mask, Vec yes, Vec no) { return (Vec)((mask & (VecI)yes) | (~mask & (VecI)no)); }

// The second operand where one is NaN.
CCT_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#else
  return select(a > b, a, b);
#endif
}
CCT_INLINE Vec min(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#else
  return select(a < b, a, b);
#endif
}

CCT_INLINE float sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)v);
#else
  float part[kLanes];
  store(part, v);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) part[i] += part[i + half];
  return part[0];
#endif
}
CCT_INLINE float highest(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float part[kLanes];
  store(part, v);
  for (int i = 1; i < kLanes; ++i) part[0] = part[i] > part[0] ? part[i] : part[0];
  return part[0];
#endif
}

// exp(x), relative error below 2e-7; 0 below -87.3, inf above 88.7. Cody-Waite reduction, degree-6 polynomial on |r| <= ln2/2.
CCT_INLINE Vec exp(Vec x) {
  const Vec magic = set(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer
  Vec clamped = min(max(x, set(-87.3f)), set(88.7f));
  Vec shifted = clamped * 1.44269504f + magic;
  Vec n = shifted - magic;
  Vec r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  Vec p = set(1.38888889e-3f);
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.f;
  p = p * r + 1.f;
  // 2^n in two factors: n reaches 128
  VecI e = (VecI)shifted - 0x4b400000;
  VecI half = e >> 1;
  Vec scaled = p * (Vec)((half + 127) << 23) * (Vec)((e - half + 127) << 23);
  scaled = select(x < -87.3f, set(0.f), scaled);
  scaled = select(x > 88.72f, set(__builtin_inff()), scaled);
  return select(x != x, x, scaled);
}

}  // namespace cct::CCT_ISA
