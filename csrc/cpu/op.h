// What the host side of every CPU op uses: scratch that stays warm, packed weights, dropout arguments.
#pragma once

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <optional>
#include <vector>

#include "../check.h"
#include "dropout.h"
#include "isa.h"
#include "pool.h"
#include "scratch.h"
#include "threads.h"
#include "weights.h"

namespace cct {

using OptionalTensor = std::optional<at::Tensor>;

// At least `bytes` of this thread's scratch, on a page boundary. It lives as long as the thread: memory touched for the first
// time is ten times slower than warm memory.
inline char* thread_scratch(size_t bytes) {
  struct Free {
    void operator()(char* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<char, Free> memory;
  thread_local size_t size = 0;
  if (size < bytes) {
    const size_t pages = (bytes + 4095) / 4096 * 4096;
    memory.reset(), size = 0;
    memory.reset(static_cast<char*>(std::aligned_alloc(4096, pages)));
    TORCH_CHECK(memory, "cct_kernels: out of memory for ", pages, " bytes of scratch");
    size = pages;
  }
  return memory.get();
}

// The panels of gemm.h for a weight (see PackArgs); group 0: no groups.
at::Tensor pack_weight(const at::Tensor& weight, bool transposed, int64_t group, bool bf16);
at::Tensor pack_weight(const at::Tensor& weight, bool transposed, int64_t group, bool bf16, uint64_t checksum);
// The panels of the weight, not transposed, for a backward pass. Where it makes a gradient of the weight (trained), the
// optimizer will change the weight next: neither these panels are kept nor any longer those of forward (of forward_group).
// Where it has a gradient already a step adds up several, and all is kept, as inside `constant_weights`.
at::Tensor pack_backward(const at::Tensor& weight, int64_t group, int64_t forward_group, bool bf16, bool trained);
at::Tensor pack_winograd(const at::Tensor& weight, bool transposed, bool bf16);  // U of winograd.h, one matrix after the other

// A product in the dtype of its operands: autocast is still on inside an op, and would round them to bfloat16.
inline at::Tensor exact_mm(const at::Tensor& a, const at::Tensor& b) {
  const c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastCPU);
  return a.mm(b);
}

at::Tensor winograd_matrix();                             // (16, 9): U's elements from those of a 3 x 3 kernel
std::vector<uint64_t> checksums(at::TensorList weights);  // by all threads at once

// At least n zeros, for the biases that are not there.
inline at::Tensor zeros(int64_t n) {
  thread_local at::Tensor kept = at::zeros({4096}, at::kFloat);
  return n <= kept.numel() ? kept : kept = at::zeros({n}, at::kFloat);
}

// A vector as float32, padded with zeros to a multiple of 64; zeros for none. Most need no copy.
inline at::Tensor padded_vector(const OptionalTensor& v, int64_t n) {
  if (!v) return zeros(round_up64(n));
  if (n % 64 == 0 && v->scalar_type() == at::kFloat && v->is_contiguous()) return *v;
  at::Tensor out = at::zeros({round_up64(n)}, at::kFloat);
  out.narrow(0, 0, n).copy_(*v);
  return out;
}

// Products in BFloat16: asked for, and the CPU multiplies it; else the same storage with float32 arithmetic.
inline bool bf16_products(at::ScalarType compute) { return compute == at::kBFloat16 && isa() >= Isa::kAvx512Bf16; }

// The dtype of what is kept for backward: bfloat16 also where it is multiplied in float32, for half the memory.
inline at::ScalarType kept_dtype(at::ScalarType compute) { return compute == at::kBFloat16 ? at::kBFloat16 : at::kFloat; }

// Backward of a LayerNorm needs x only as xhat = (x - mean) * rstd. Where what is kept is smaller than x, forward keeps xhat,
// so that x can be freed. Backward then has xhat in the place of x, and knows it by the dtype of dout.
inline bool keeps_xhat(const at::Tensor& x, at::ScalarType compute) {
  return x.scalar_type() == at::kFloat && kept_dtype(compute) == at::kBFloat16;
}
inline bool is_xhat(const at::Tensor& x, const at::Tensor& dout, at::ScalarType compute) {
  return x.scalar_type() == at::kBFloat16 && keeps_xhat(dout, compute);
}

// seed (2,) int64 = (seed, offset), needed when p > 0.
inline DropoutArgs dropout_args(const char* op, const OptionalTensor& seed, double p) {
  DropoutArgs d{};
  TORCH_CHECK_VALUE(p >= 0.0 && p < 1.0, op, ": dropout is ", p, "; expected 0 <= p < 1");
  if (p == 0.0) return d;
  TORCH_CHECK_VALUE(seed.has_value(), op, ": dropout is ", p, " but seed is missing; expected an int64 tensor (2,)");
  check_tensor(op, "seed", *seed, {2}, at::kLong);
  const at::Tensor values = seed->contiguous();
  d.seed = uint64_t(values.const_data_ptr<int64_t>()[0]);
  d.offset = uint32_t(values.const_data_ptr<int64_t>()[1]);
  d.threshold = uint32_t(std::min(std::nearbyint(p * 4294967296.0), 4294967295.0));
  d.scale = float(1.0 / (1.0 - p));
  return d;
}

}  // namespace cct
