// What kernels over rows of channels share: elements, rows in registers as 16-byte vectors, sums over threads and over rows.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

namespace cct {

__host__ __device__ inline float to_float(float v) { return v; }
__host__ __device__ inline float to_float(__half v) { return __half2float(v); }
__host__ __device__ inline float to_float(__nv_bfloat16 v) { return __bfloat162float(v); }

template <typename T>
__host__ __device__ inline T from_float(float v) {
  if constexpr (std::is_same_v<T, __half>)
    return __float2half_rn(v);
  else if constexpr (std::is_same_v<T, __nv_bfloat16>)
    return __float2bfloat16_rn(v);
  else
    return v;
}

template <typename T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T values[kSize];
};

// A row of C <= G * E elements over the G threads of a group, E each: thread `lane` holds vectors lane, lane + G, ...
template <typename T, int G, int E>
struct Row {
  static constexpr int kSize = Vector<T>::kSize;
  static constexpr int kVectors = E / kSize;
  Vector<T> vectors[kVectors];

  static __device__ int channel(int i, int lane) { return (i / kSize * G + lane) * kSize + i % kSize; }

  // Zeros behind C. `vectorised`: C fills whole vectors and p is aligned to 16 bytes.
  __device__ void load(const T* p, int C, int lane, bool vectorised) {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int c = channel(k * kSize, lane);
      if (vectorised && c < C) {
        vectors[k] = *reinterpret_cast<const Vector<T>*>(p + c);
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j) vectors[k].values[j] = c + j < C ? p[c + j] : from_float<T>(0.f);
      }
    }
  }

  __device__ void store(T* p, int C, int lane, bool vectorised) const {
#pragma unroll
    for (int k = 0; k < kVectors; ++k) {
      const int c = channel(k * kSize, lane);
      if (vectorised && c < C) {
        *reinterpret_cast<Vector<T>*>(p + c) = vectors[k];
      } else {
#pragma unroll
        for (int j = 0; j < kSize; ++j)
          if (c + j < C) p[c + j] = vectors[k].values[j];
      }
    }
  }

  __device__ float get(int i) const { return to_float(vectors[i / kSize].values[i % kSize]); }
  __device__ void set(int i, float v) { vectors[i / kSize].values[i % kSize] = from_float<T>(v); }
};

// values[k] = their sums over the G threads of a group, the same bits in each. G: a power of two below a warp, or the block.
// Every thread of the warp (G <= 32) or of the block must call it.
template <int G, int K>
__device__ void group_sum(float (&values)[K]) {
#pragma unroll
  for (int mask = (G < 32 ? G : 32) / 2; mask > 0; mask /= 2)
#pragma unroll
    for (int k = 0; k < K; ++k) values[k] += __shfl_xor_sync(0xffffffffu, values[k], mask);
  if constexpr (G > 32) {
    __shared__ float warps[K][G / 32];
    __syncthreads();  // the last call has been read
    if (threadIdx.x % 32 == 0)
      for (int k = 0; k < K; ++k) warps[k][threadIdx.x / 32] = values[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      values[k] = 0.f;
      for (int w = 0; w < G / 32; ++w) values[k] += warps[k][w];
    }
  }
}

// ---- sums of columns, in two levels and a fixed order ----

constexpr int kSumColumns = 32, kSumRows = 8;       // block of both levels
constexpr int kRowsPerSlice = 32, kMaxSlices = 64;  // of the first level

// Blocks of the first level along the rows; 0 when the second can take them all.
inline int slices_of(int rows) { return rows <= kRowsPerSlice ? 0 : std::min(kMaxSlices, rows / kRowsPerSlice); }
inline unsigned sum_blocks(int64_t width) { return unsigned((width + kSumColumns - 1) / kSumColumns); }

// The sum of column c over rows [r0, r1) of an array of `width` columns, in threads with threadIdx.y == 0.
inline __device__ float column_sum(const float* values, int r0, int r1, int64_t width, int64_t c) {
  __shared__ float parts[kSumRows][kSumColumns];
  float sum = 0.f;
  if (c < width)
    for (int r = r0 + threadIdx.y; r < r1; r += kSumRows) sum += values[r * width + c];
  __syncthreads();  // the last call has been read
  parts[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  sum = 0.f;
  for (int r = 0; r < kSumRows; ++r) sum += parts[r][threadIdx.x];
  return sum;
}

// (rows, width) -> (gridDim.y, width): each slice of rows added up.
static __global__ void __launch_bounds__(kSumColumns* kSumRows)
    slice_sums_kernel(const float* values, int rows, int width, float* out) {
  const int c = blockIdx.x * kSumColumns + threadIdx.x, slice = blockIdx.y;
  const float sum =
      column_sum(values, int(int64_t(slice) * rows / gridDim.y), int(int64_t(slice + 1) * rows / gridDim.y), width, c);
  if (threadIdx.y == 0 && c < width) out[int64_t(slice) * width + c] = sum;
}

}  // namespace cct
