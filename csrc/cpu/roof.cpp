// The micro-kernel alone, on operands in the second-level cache: a roof for bench/roof.py, beside those of libraries.
#include <cstdint>

#include "isa.h"
#include "scratch.h"

namespace cct {

constexpr int64_t kHotRows = 96, kHotDepth = 512, kHotColumns = 64;

CCT_DECLARE(void multiply_hot(int64_t times, bool bf16, char* scratch))

}  // namespace cct

#if defined(CCT_ISA)
#include "gemm.h"

namespace cct::CCT_ISA {
namespace {

template <typename T>
void multiply(int64_t times, char* scratch) {
  const TileScope tiles;
  T *a = take<T>(scratch, kHotRows * kHotDepth), *panel = take<T>(scratch, panel_size(kHotDepth));
  float* out = take<float>(scratch, kHotRows * kHotColumns);
  for (int64_t i = 0; i < kHotRows * kHotDepth; i += kLanes) store(a + i, set(1.f));
  for (int64_t i = 0; i < panel_size(kHotDepth); i += kLanes) store(panel + i, set(1.f));
  for (int64_t t = 0; t < times; ++t) {
    product<false>(kHotRows, kHotDepth, a, kHotDepth, panel_of(panel, kHotDepth), out, kHotColumns);
    asm volatile("" ::"r"(out) : "memory");  // each product counts
  }
}

}  // namespace

void multiply_hot(int64_t times, [[maybe_unused]] bool bf16, char* scratch) {
#if defined(CCT_BF16_PRODUCT)
  if (bf16) return multiply<BFloat16>(times, scratch);
#endif
  multiply<float>(times, scratch);
}

}  // namespace cct::CCT_ISA

#else
#include "op.h"

namespace cct {
namespace {

int64_t multiply_hot_on_all_threads(int64_t times, bool bf16) {
  TORCH_CHECK_VALUE(times >= 0, "multiply_hot: times is ", times, "; expected at least 0");
  const int64_t threads = at::get_num_threads(), a = kHotRows * kHotDepth, panel = kHotDepth * kHotColumns;
  const int64_t bytes = scratch_bytes({a, panel, kHotRows * kHotColumns});
  parallel(threads, [&](int64_t) { CCT_CALL(multiply_hot, times, bf16 && isa() >= Isa::kAvx512Bf16, thread_scratch(bytes)); });
  return threads * times * 2 * a * kHotColumns;
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_FRAGMENT(cct_kernels, m) {
  m.def("multiply_hot(int times, bool bf16) -> int", &cct::multiply_hot_on_all_threads);  // returns the operations
}
#endif
