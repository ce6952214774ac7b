// How much memory the host side gives a kernel. Static and free of PyTorch, so that the drivers in csrc/tests give exactly as
// much, and so that no copy compiled for a higher instruction set can be linked into the baseline.
#pragma once

#include <cstdint>
#include <initializer_list>

namespace cct {

[[maybe_unused]] static int64_t round_up64(int64_t n) { return (n + 63) / 64 * 64; }
[[maybe_unused]] static int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
[[maybe_unused]] static int64_t larger(int64_t a, int64_t b) { return a > b ? a : b; }

// Scratch for buffers of so many floats each, as `take` in simd.h deals it out.
[[maybe_unused]] static int64_t scratch_bytes(std::initializer_list<int64_t> floats) {
  int64_t bytes = 0;
  for (int64_t n : floats) bytes += (n * 4 + 4095) / 4096 * 4096 + 256;
  return bytes;
}

// Rows at most that pass by a weight at a time, so many that a weight from the third-level cache is worth its way.
constexpr int64_t kPassRows = 256;

}  // namespace cct
