// Images to logits in one call without gradients: for a small network at batch 1 the calls between its ops, each with its
// arguments checked in Python and its result wrapped, take as long as the arithmetic.
#include <ATen/autocast_mode.h>

#include "forward.h"

namespace cct {
namespace {

constexpr const char* kOp = "compact_transformer";

// Multiplications of a head for which the libraries wake no thread, in float32.
constexpr int64_t kSmallHead = 1 << 15;

// linear(t, weight, bias), as autocast has it; a small one in bfloat16 by the products of float32.
at::Tensor head(const at::Tensor& t, const at::Tensor& weight, const OptionalTensor& bias) {
  const bool autocast = at::autocast::is_autocast_enabled(at::kCPU);
  const auto dtype = autocast ? at::autocast::get_autocast_dtype(at::kCPU) : t.scalar_type();
  if (dtype != at::kBFloat16 || t.size(0) * weight.numel() > kSmallHead) return at::linear(t, weight, bias);
  const c10::impl::ExcludeDispatchKeyGuard as_it_is(c10::DispatchKey::AutocastCPU);
  auto rounded = [](const at::Tensor& values) { return values.to(at::kBFloat16).to(at::kFloat); };
  return at::linear(rounded(t), rounded(weight), bias ? OptionalTensor(rounded(*bias)) : bias).to(at::kBFloat16);
}

at::Tensor compact_transformer_forward(const at::Tensor& x, at::TensorList conv_weights,
                                       const c10::List<OptionalTensor>& conv_biases, at::IntArrayRef windows, bool relu,
                                       at::IntArrayRef pool, const OptionalTensor& class_token,
                                       const OptionalTensor& positional, at::TensorList blocks, int64_t num_heads,
                                       const at::Tensor& norm_weight, const at::Tensor& norm_bias,
                                       const OptionalTensor& pool_weight, const OptionalTensor& head_weight,
                                       const OptionalTensor& head_bias, double eps, at::ScalarType compute) {
  const size_t stages = conv_weights.size();
  TORCH_CHECK_VALUE(stages > 0, kOp, ": conv_weights is empty; expected a stage");
  TORCH_CHECK_VALUE(conv_biases.size() == stages, kOp, ": conv_biases has ", conv_biases.size(), " entries; expected ", stages);
  TORCH_CHECK_VALUE(windows.size() == 4 * stages, kOp, ": windows has ", windows.size(), " values; expected ", 4 * stages);
  const int64_t images = x.dim() > 0 ? x.size(0) : 0;                                                   // not checked yet
  const bool asleep = others_sleep() && (!head_weight || images * head_weight->numel() <= kSmallHead);  // as the call begins
  at::Tensor t = x;
  for (size_t s = 0; s < stages; ++s) {
    const auto window = windows.slice(4 * s, 4);
    const at::Tensor in = t;
    const double pixels = double(in.numel()) / (in.dim() > 1 ? std::max<int64_t>(1, in.size(1)) : 1);
    const Alone alone(asleep && pixels * double(conv_weights[s].numel()) < kNotWorthWaking);
    t = std::get<0>(conv_tokenizer_forward(in, conv_weights[s], conv_biases.get(s), window.slice(0, 2), window.slice(2, 2),
                                           relu, pool, compute, false));
    if (s + 1 == stages) break;
    auto size = [&](int64_t d) {  // checked by the stage
      const int64_t convolved = (in.size(d + 2) + 2 * window[2 + d] - conv_weights[s].size(d + 2)) / window[d] + 1;
      return (convolved + 2 * pool[4 + d] - pool[d]) / pool[2 + d] + 1;
    };
    t = t.view({t.size(0), size(0), size(1), t.size(2)}).permute({0, 3, 1, 2});
  }
  const int64_t B = t.size(0), C = t.size(2);
  const auto dtype = t.scalar_type();
  check_tensor(kOp, "norm_weight", norm_weight, {C}, dtype);
  check_tensor(kOp, "norm_bias", norm_bias, {C}, dtype);
  if (class_token) {
    check_tensor(kOp, "class_token", *class_token, {1, 1, C}, dtype);
    t = at::cat({class_token->expand({B, 1, C}), t}, 1);
  }
  if (positional) {
    check_tensor(kOp, "positional", *positional, {1, t.size(1), C}, dtype);
    t.add_(*positional);
  }
  if (head_weight) {
    TORCH_CHECK_VALUE(head_weight->dim() == 2, kOp, ": head_weight has ", head_weight->dim(), " dimensions; expected 2");
    check_tensor(kOp, "head_weight", *head_weight, {head_weight->size(0), C}, dtype);
    check_tensor(kOp, "head_bias", head_bias, {head_weight->size(0)}, dtype);
  }
  double products = 2.0 * double(t.size(1) * C) * double(blocks.size()) / kBlockTensors;  // for each token
  for (const at::Tensor& weight : blocks) products += double(weight.numel());
  const Alone alone(asleep && products * double(B * t.size(1)) < kNotWorthWaking);
  t = encoder_forward(t, blocks, num_heads, {}, eps, compute);
  t = pool_weight ? std::get<0>(seqpool_forward(t, *pool_weight, norm_weight, norm_bias, eps))
                  : at::layer_norm(t.select(1, 0), {C}, norm_weight, norm_bias, eps);
  return head_weight ? head(t, *head_weight, head_bias) : t;
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) { m.impl("compact_transformer_forward", TORCH_FN(cct::compact_transformer_forward)); }
