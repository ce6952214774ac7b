// What every CUDA op shares on the host: argument checks, new tensors, the device it runs on and launches.
// PyTorch is reached through the LibTorch stable ABI alone (functions of 2.11 and older): nvcc is enough to compile this.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

#ifndef CCT_NAMESPACE  // the tests compile the same files for the host, see tests/cuda_emulation.h
#define CCT_NAMESPACE cct_kernels
#define CCT_DISPATCH CUDA
#define CCT_DYNAMIC_SHARED(name) extern __shared__ uint4 name[]
#include <torch/csrc/stable/accelerator.h>
#endif

namespace cct {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;
using torch::headeronly::ScalarType;

// ---- argument checks: every message names op, argument, got and expected, and becomes a ValueError ----

template <typename... Parts>
void check(bool good, const Parts&... parts) {
  if (good) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());
}

template <typename Sizes>
std::string shape_text(const Sizes& sizes) {
  std::ostringstream text;
  const char* separator = "(";
  for (int64_t size : sizes) text << separator << size, separator = ", ";
  text << (sizes.size() == 0 ? "()" : sizes.size() == 1 ? ",)" : ")");
  return text.str();
}

inline const char* dtype_text(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Double:
      return "float64";
    default:
      return "another dtype";
  }
}

// A tensor of this shape and dtype on the device of x.
inline void check_tensor(const char* op, const char* name, const Tensor& t, std::initializer_list<int64_t> shape,
                         ScalarType dtype, const Tensor& x) {
  const auto sizes = t.sizes();
  bool same = sizes.size() == shape.size();
  for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape.begin()[i];
  check(same, op, ": ", name, " has shape ", shape_text(sizes), "; expected ", shape_text(shape));
  check(t.scalar_type() == dtype, op, ": ", name, " has dtype ", dtype_text(t.scalar_type()), "; expected ", dtype_text(dtype));
  check(t.is_cpu() == x.is_cpu() && t.get_device_index() == x.get_device_index(), op, ": ", name, " is on ",
        t.is_cpu() ? "the CPU" : "another GPU", "; expected the device of x");
}

inline void check_tensor(const char* op, const char* name, const OptionalTensor& t, std::initializer_list<int64_t> shape,
                         ScalarType dtype, const Tensor& x) {
  if (t) check_tensor(op, name, *t, shape, dtype, x);
}

inline OptionalTensor contiguous(const OptionalTensor& t) {
  return t ? OptionalTensor(torch::stable::contiguous(*t)) : OptionalTensor();
}

// An uninitialised tensor of this shape beside x, in its dtype or another.
inline Tensor empty(const Tensor& x, std::initializer_list<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  return torch::stable::new_empty(x, shape, dtype);
}

inline float* floats(const Tensor& t) { return static_cast<float*>(t.mutable_data_ptr()); }
inline const void* data(const Tensor& t) { return t.const_data_ptr(); }
inline const void* data(const OptionalTensor& t) { return t ? t->const_data_ptr() : nullptr; }

// Whether 16-byte loads of rows of C elements are allowed at all of these pointers (nullptr is).
inline bool vectors_allowed(int64_t row_bytes, std::initializer_list<const void*> pointers) {
  uintptr_t bits = uintptr_t(row_bytes);
  for (const void* p : pointers) bits |= reinterpret_cast<uintptr_t>(p);
  return bits % 16 == 0;
}

#if defined(__CUDACC__)
// ---- the device of a tensor, made current as long as this lives, and the stream PyTorch uses on it ----
class Device {
 public:
  explicit Device(const Tensor& t) : index_(t.get_device_index()), guard_(index_) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(index_, &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  int multiprocessors() const { return attribute(cudaDevAttrMultiProcessorCount); }
  int shared_bytes() const { return attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor); }

  // kernel<<<blocks, threads, shared, stream>>>(args...), nothing for an empty grid.
  template <typename... Parameters, typename... Args>
  void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, Args... args) const {
    if (blocks.x * blocks.y == 0) return;
    if (shared > 0)  // it and the static part together may pass the 48 KiB that need no leave
      STD_CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    kernel<<<blocks, threads, shared, stream_>>>(args...);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }

 private:
  int attribute(cudaDeviceAttr name) const {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, name, index_));
    return value;
  }
  int index_;
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};
#endif

}  // namespace cct
