// The forward passes of the ops as functions, for those that call several of them in one op: see the file of each.
#pragma once

#include "op.h"

namespace cct {

std::tuple<at::Tensor, at::Tensor> conv_tokenizer_forward(const at::Tensor& x, const at::Tensor& weight,
                                                          const OptionalTensor& bias, at::IntArrayRef stride,
                                                          at::IntArrayRef padding, bool relu, at::IntArrayRef pool,
                                                          at::ScalarType compute, bool keep);

constexpr int64_t kBlockTensors = 11;  // in `blocks`
at::Tensor encoder_forward(const at::Tensor& x, at::TensorList blocks, int64_t num_heads, const OptionalTensor& mask,
                           double eps, at::ScalarType compute);

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> seqpool_forward(const at::Tensor& x, const at::Tensor& weight,
                                                                           const OptionalTensor& norm_weight,
                                                                           const OptionalTensor& norm_bias, double eps);

}  // namespace cct
