// Large tensors from memory that stays warm.
//
// The allocator of the C library gives blocks of 32 MB and more back to the system, and touching them again costs 2.6 GB/s in
// page faults against 30 for warm memory: every training step would pay that for its saved activations. Blocks of 1 MB and
// more come from here and return here; in use and held they are at most twice what was once in use at a time, so that sizes
// that vary do not pile up, and release_memory empties it.
#pragma once

#include <ATen/core/Tensor.h>

namespace cct {

// Uninitialised, contiguous, on the CPU.
at::Tensor pooled_empty(at::IntArrayRef sizes, at::ScalarType dtype);
inline at::Tensor pooled_zeros(at::IntArrayRef sizes, at::ScalarType dtype) { return pooled_empty(sizes, dtype).zero_(); }

}  // namespace cct
