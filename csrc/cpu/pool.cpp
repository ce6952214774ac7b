#include "pool.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <cmath>
#include <cstdlib>
#include <map>
#include <mutex>

#include "fork.h"

namespace cct {
namespace {

constexpr size_t kSmallest = size_t{1} << 20, kPage = 4096;

std::mutex g_lock;
[[maybe_unused]] const bool g_held = hold_in_forks<g_lock>();
std::multimap<size_t, void*> g_free;  // by size in bytes

void* acquire(size_t bytes) {
  {
    const std::lock_guard<std::mutex> guard(g_lock);
    const auto found = g_free.find(bytes);
    if (found != g_free.end()) {
      void* block = found->second;
      g_free.erase(found);
      return block;
    }
  }
  void* block = std::aligned_alloc(kPage, bytes);
  TORCH_CHECK(block, "cct_kernels: out of memory for ", bytes, " bytes");
  return block;
}

int64_t release_memory() {
  const std::lock_guard<std::mutex> guard(g_lock);
  int64_t bytes = 0;
  for (const auto& [size, block] : g_free) {
    bytes += int64_t(size);
    std::free(block);
  }
  g_free.clear();
  return bytes;
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  const size_t bytes = (size_t(c10::multiply_integers(sizes)) * c10::elementSize(dtype) + kPage - 1) / kPage * kPage;
  if (bytes < kSmallest) return at::empty(sizes, dtype);
  void* block = acquire(bytes);
  auto give_back = [bytes](void* p) {
    const std::lock_guard<std::mutex> guard(g_lock);
    g_free.emplace(bytes, p);
  };
  at::Tensor out = at::from_blob(block, sizes, give_back, at::TensorOptions().dtype(dtype));
  // as at::empty does when asked to make unwritten elements visible
  if (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory())
    at::isFloatingType(dtype) ? out.fill_(std::nan("")) : out.fill_(255);
  return out;
}

}  // namespace cct

TORCH_LIBRARY_FRAGMENT(cct_kernels, m) {
  m.def("release_memory() -> int", [] { return cct::release_memory(); });
}
