// The arguments of the attention kernels, and of a call of the op: layernorm_attention.cpp has both, encoder.cpp uses them.
#pragma once

#include <cstdint>

#include "dropout.h"
#include "isa.h"
#include "scratch.h"

namespace cct {

struct AttentionArgs {
  int64_t N, C, heads, hd;      // tokens, channels, heads, head dim
  int64_t Cp, hdp, Np, Nr, Qp;  // C, hd, N rounded up to 64; N to 32; 3C to 64
  float eps;
  bool x_bf16, bf16;  // storage of x, out, dout, dx; products
  const void* x;      // (B, N, C)
  void* out;
  float *mean, *rstd;                        // (B, N), or null
  void* xhat;                                // (B, N, C) in bfloat16, kept for backward in the place of x and mean; or null
  const float *gamma, *beta, *bqkv, *bproj;  // padded with zeros; bqkv (3 * heads * hdp)
  const void *wqkv, *wproj;                  // panels of Wqkv^T by head, of Wproj^T; for encoder_columns.h the weights
  bool weight_bf16;                          // there: their storage
  const uint8_t* mask;                       // (B, N) or null
  const float* path_scale;                   // (B) or null
  DropoutArgs weights_dropout, projection_dropout;
  void *qkv, *o;            // slots of (3, heads, Nr, hdp) and (Nr, Cp), products' type
  void *kept_qkv, *kept_o;  // N rows of each for all images in bfloat16, kept for backward; or null: the slots are kept
  float* lse;               // (B, heads, N) or null
  uint64_t* pairs;          // (B, heads, N, Np / 64) or null: a bit for each key, 1 where dropout keeps its weight
  // backward
  const void *wqkv_back, *wproj_back;  // panels of Wqkv, of Wproj by head
  const void* dout;
  void* dx;
  bool need_qkv, need_proj;  // the gradients of these weights
};

struct AttentionGradients {  // sums of one thread, zero at first
  float* dwqkv;              // (panels of 3C, Cp, 64), transposed
  float* dwproj;             // (Cp, Cp)
  float *dbqkv, *dbproj, *dgamma, *dbeta;
};

// What the share of a thread in the rows of an image is a multiple of: a tile, or little.
[[maybe_unused]] static int64_t row_unit(const AttentionArgs& a) { return a.bf16 ? 16 : 4; }

[[maybe_unused]] static int64_t attention_forward_scratch(const AttentionArgs& a) {  // of any of the three forward passes
  return scratch_bytes({larger(kPassRows * a.Cp, a.Np * a.hdp), larger(a.Cp, a.Nr * a.hdp), 32 * a.Np, 32 * a.Np});
}
// The phases of the backward pass of an image, each of so many independent items.
enum AttentionPhase { kRowsPhase, kProjectionPhase, kHeadsPhase, kQkvPhase, kNormPhase, kAttentionPhases };
[[maybe_unused]] static int64_t phase_items(const AttentionArgs& a, int phase) {
  switch (phase) {
    case kProjectionPhase:  // panels of dWproj, of dO
      return a.Cp / 64 + a.heads * a.hdp / 64;
    case kHeadsPhase:
      return a.heads;
    case kQkvPhase:  // panels of dWqkv, of the gradient of LN(x)
      return a.Qp / 64 + a.Cp / 64;
    default:  // blocks of 32 rows
      return a.Nr / 32;
  }
}
// What the phases of an image pass on, and what a thread needs for itself.
[[maybe_unused]] static int64_t attention_backward_shared(const AttentionArgs& a) {
  const int64_t image = a.Nr * a.Cp, head_rows = a.heads * a.Nr * a.hdp;
  return scratch_bytes({image, image, head_rows, a.Nr * a.Qp, image, image, image}) +
         (a.kept_qkv ? scratch_bytes({3 * head_rows, image}) : 0);
}
constexpr int64_t kBackwardKeys = 512;  // whose scores are kept at a time; a multiple of 64
[[maybe_unused]] static int64_t backward_keys(const AttentionArgs& a) { return smaller(a.Nr, kBackwardKeys); }
[[maybe_unused]] static int64_t attention_backward_scratch(const AttentionArgs& a) {
  const int64_t head = a.Np * a.hdp, block = 32 * a.Np, scores = backward_keys(a) * a.Np;
  const int64_t sums = a.N > kBackwardKeys ? head : 0;
  const int64_t masks = a.weights_dropout.threshold ? smaller(a.Np, kBackwardKeys) * a.Np / 64 : 0;
  return scratch_bytes({a.Nr * larger(a.Cp, a.hdp), a.Nr * 64, a.Qp, a.Cp, 2 * a.Cp + 64, head, head, head, head, head}) +
         scratch_bytes({scores, block, block, a.Np, a.Np, a.Np, 32 * 64, 32 * 64, sums, 2 * masks});
}

CCT_DECLARE(void attention_qkv_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last,
                                    char* scratch))
CCT_DECLARE(void attention_head_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t head, int64_t first, int64_t last,
                                     char* scratch))
CCT_DECLARE(void attention_projection_rows(const AttentionArgs& a, int64_t b, int64_t slot, int64_t first, int64_t last,
                                           char* scratch))
CCT_DECLARE(void attention_backward_phase(const AttentionArgs& a, int64_t b, int phase, int64_t first, int64_t last,
                                          const AttentionGradients& g, char* shared, char* scratch))

}  // namespace cct

#if !defined(CCT_ISA)
#include "op.h"

namespace cct {

// The arguments of one call, with the tensors that they point into.
struct AttentionCall {
  AttentionArgs a{};
  at::Tensor x, gamma, beta, bqkv, bproj, wqkv, wproj, mask, scale;
  int64_t B;
  at::ScalarType products, kept;  // of q, k, v and the outputs of the heads; the same as backward takes them

  AttentionCall(const at::Tensor& x_in, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                const at::Tensor& qkv_weight, const at::Tensor& proj_weight, const OptionalTensor& proj_bias, int64_t num_heads,
                const OptionalTensor& qkv_bias, const OptionalTensor& mask_in, double attn_dropout, double dropout,
                const OptionalTensor& drop_path_scale, const OptionalTensor& seed, double eps, at::ScalarType compute);

  bool converted() const { return kept != products; }  // for backward; then without the rows from N to Nr
  std::vector<int64_t> qkv_shape(int64_t images) const { return {images, 3, a.heads, a.Nr, a.hdp}; }
  std::vector<int64_t> o_shape(int64_t images) const { return {images, a.Nr, a.Cp}; }
  std::vector<int64_t> kept_qkv_shape(int64_t images) const { return {images, 3, a.heads, converted() ? a.N : a.Nr, a.hdp}; }
  std::vector<int64_t> kept_o_shape(int64_t images) const { return {images, converted() ? a.N : a.Nr, a.Cp}; }
  std::vector<int64_t> pairs_shape(bool keep) const {
    return {keep && a.weights_dropout.threshold ? B : 0, a.heads, a.N, a.Np / 64};
  }
};

}  // namespace cct
#endif
