// Argument checks of the native CPU ops: every message names op, argument, expected and got, and becomes a ValueError.
#pragma once

#include <ATen/core/Tensor.h>

#include <initializer_list>

namespace cct {

// A dense tensor of this shape, dtype and device.
inline void check_tensor(const char* op, const char* name, const at::Tensor& t, at::IntArrayRef shape, at::ScalarType dtype) {
  TORCH_CHECK_VALUE(t.sizes() == shape, op, ": ", name, " has shape ", t.sizes(), "; expected ", shape);
  TORCH_CHECK_VALUE(t.scalar_type() == dtype, op, ": ", name, " has dtype ", t.scalar_type(), "; expected ", dtype);
  TORCH_CHECK_VALUE(t.device().is_cpu(), op, ": ", name, " is on ", t.device(), "; expected cpu");
}

inline void check_tensor(const char* op, const char* name, const std::optional<at::Tensor>& t, at::IntArrayRef shape,
                         at::ScalarType dtype) {
  if (t) check_tensor(op, name, *t, shape, dtype);
}

// The dtypes the CPU kernels compute in.
inline void check_dtype(const char* op, const char* name, const at::Tensor& t) {
  TORCH_CHECK_VALUE(t.scalar_type() == at::kFloat || t.scalar_type() == at::kBFloat16, op, ": ", name, " has dtype ",
                    t.scalar_type(), "; expected float32 or bfloat16");
}

}  // namespace cct
