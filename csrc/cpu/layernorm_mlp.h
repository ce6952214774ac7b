// The arguments of the MLP kernels, and of a call of the op: layernorm_mlp.cpp has both, encoder.cpp uses them.
#pragma once

#include <cstdint>

#include "dropout.h"
#include "isa.h"
#include "scratch.h"

namespace cct {

struct MlpArgs {
  int64_t rows, N, C, F, Cp, Fp;  // tokens of all images, of one; widths, and widths rounded up to whole panels
  float eps;
  bool x_bf16, bf16;                    // storage of x, out, dout, dx; products
  const void* x;                        // (rows, C)
  void* out;                            // (rows, C)
  float *mean, *rstd;                   // (rows), or null
  void* xhat;                           // (rows, C) in bfloat16, kept for backward in the place of x and mean; or null
  void* hidden;                         // (Fp / 64, rows, 64): h, kept for backward; or null
  bool hidden_bf16;                     // its storage
  const float *gamma, *beta, *b1, *b2;  // padded with zeros to Cp, Fp
  const void *w1, *w2;                  // panels of fc1^T and fc2^T; for encoder_columns.h the weights
  bool weight_bf16;                     // there: their storage
  const float* path_scale;              // (B) or null
  DropoutArgs dropout;
  // backward
  const void *w1_back, *w2_back;  // panels of fc1 and fc2
  const void* dout;
  void* dx;
  bool need_fc1, need_fc2;  // the gradients of these weights
};

// Sums of one thread, zero at first.
struct MlpGradients {
  float* dw1;  // (panels of F, Cp, 64), transposed
  float* dw2;  // (Cp, Fp)
  float *db1, *db2, *dgamma, *dbeta;
};

constexpr int64_t kMlpTokens = 256;  // rows of a block of the backward pass at most

[[maybe_unused]] static int64_t mlp_forward_scratch(const MlpArgs& a) {
  return scratch_bytes({kPassRows * a.Cp, kPassRows * a.Fp, kPassRows * a.Cp});
}
[[maybe_unused]] static int64_t mlp_backward_scratch(const MlpArgs& a) {
  const int64_t row = kMlpTokens * a.Cp, panel = kMlpTokens * 64;
  return scratch_bytes({row, row, row, row, row, kMlpTokens * a.Fp, panel, panel, panel, row, a.Cp, a.Cp, 2 * a.Cp});
}

CCT_DECLARE(void layernorm_mlp_forward_rows(const MlpArgs& a, int64_t first, int64_t last, char* scratch))
CCT_DECLARE(void layernorm_mlp_backward_rows(const MlpArgs& a, int64_t first, int64_t last, const MlpGradients& g,
                                             char* scratch))

}  // namespace cct

#if !defined(CCT_ISA)
#include "op.h"

namespace cct {

// The arguments of one call, with the tensors that they point into.
struct MlpCall {
  MlpArgs a{};
  at::Tensor x, mean, rstd, gamma, beta, b1, b2, w1, w2, w1_back, w2_back, scale;

  MlpCall(const at::Tensor& x_in, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
          const at::Tensor& fc1_weight, const OptionalTensor& fc1_bias, const at::Tensor& fc2_weight,
          const OptionalTensor& fc2_bias, double dropout, const OptionalTensor& drop_path_scale, const OptionalTensor& seed,
          double eps, at::ScalarType compute);
};

}  // namespace cct
#endif
