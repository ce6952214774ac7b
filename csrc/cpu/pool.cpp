#include "pool.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <list>
#include <mutex>

#include "fork.h"

namespace cct {
namespace {

constexpr size_t kSmallest = size_t{1} << 20, kPage = 4096;

std::mutex g_lock;
[[maybe_unused]] const bool g_safe = hold_in_forks<g_lock>();
struct Block {
  size_t bytes;
  void* memory;
};
std::list<Block> g_held;  // the one that was given back last first
size_t g_held_bytes = 0, g_used_bytes = 0, g_most_used = 0;

// Frees what was given back longest ago until `bytes` are held at most.
size_t free_beyond(size_t bytes) {
  size_t freed = 0;
  for (; !g_held.empty() && g_held_bytes > bytes; g_held.pop_back()) {
    g_held_bytes -= g_held.back().bytes, freed += g_held.back().bytes;
    std::free(g_held.back().memory);
  }
  return freed;
}

void use(size_t bytes) {
  g_used_bytes += bytes;
  g_most_used = std::max(g_most_used, g_used_bytes);
  free_beyond(2 * g_most_used - g_used_bytes);
}

// At least `bytes`: a block as large as that, else the smallest that is held of those an eighth larger at most.
Block acquire(size_t bytes) {
  {
    const std::lock_guard<std::mutex> guard(g_lock);
    auto found = g_held.end();
    for (auto block = g_held.begin(); block != g_held.end(); ++block)
      if (block->bytes >= bytes && block->bytes <= bytes + bytes / 8 && (found == g_held.end() || block->bytes < found->bytes))
        found = block;
    if (found != g_held.end()) {
      const Block block = *found;
      g_held.erase(found);
      g_held_bytes -= block.bytes;
      use(block.bytes);
      return block;
    }
  }
  void* memory = std::aligned_alloc(kPage, bytes);
  const std::lock_guard<std::mutex> guard(g_lock);
  if (!memory && free_beyond(0) > 0) memory = std::aligned_alloc(kPage, bytes);
  TORCH_CHECK(memory, "cct_kernels: out of memory for ", bytes, " bytes");
  use(bytes);
  return {bytes, memory};
}

void give_back(Block block) {
  const std::lock_guard<std::mutex> guard(g_lock);
  g_used_bytes -= block.bytes, g_held_bytes += block.bytes;
  g_held.push_front(block);
  free_beyond(2 * g_most_used - g_used_bytes);
}

int64_t release_memory() {
  const std::lock_guard<std::mutex> guard(g_lock);
  g_most_used = g_used_bytes;
  return int64_t(free_beyond(0));
}

}  // namespace

at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype) {
  const size_t bytes = (size_t(c10::multiply_integers(sizes)) * c10::elementSize(dtype) + kPage - 1) / kPage * kPage;
  if (bytes < kSmallest) return at::empty(sizes, dtype);
  const Block block = acquire(bytes);
  at::Tensor out = at::for_blob(block.memory, sizes)
                       .deleter([block](void*) { give_back(block); })
                       .options(at::TensorOptions().dtype(dtype))
                       .allocator(c10::GetAllocator(c10::kCPU))  // who wants more than these sizes gets it from PyTorch
                       .resizeable_storage()
                       .make_tensor();
  // as at::empty does when asked to make unwritten elements visible
  if (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory())
    at::isFloatingType(dtype) ? out.fill_(std::nan("")) : out.fill_(255);
  return out;
}

}  // namespace cct

TORCH_LIBRARY_FRAGMENT(cct_kernels, m) {
  m.def("release_memory() -> int", [] { return cct::release_memory(); });
}
