// y = LN(x);  out = y + s * drop(fc2(drop(gelu(fc1(y))))), forward and backward, on blocks of rows: everything here is local
// to a row, so a block's activations stay in the second-level cache from x to out.
//
// Backward needs xhat, the rows normalised, and h = y W1^T + b1: to compute h again would take a seventh of the products. For
// one block of tokens and one panel of 64 hidden columns at a time,
//   dz = s * mask * dout    dg = dz W2    dh = dg * mask * gelu'(h)
//   dW1^T += y^T dh    dW2 += dz^T (mask * gelu(h))          dy = dout + dh W1     then LayerNorm's backward.
#include "layernorm_mlp.h"

#if defined(CCT_ISA)  // ------------------------------------------------------------------------------ kernels, once per set
#include "elementwise.h"
#include "layernorm.h"
#include "pack.h"
#include "weights.h"

namespace cct::CCT_ISA {
namespace {

CCT_INLINE float path_scale(const MlpArgs& a, int64_t row) { return a.path_scale ? a.path_scale[row / a.N] : 1.f; }

// h by panels, as they come and go: one piece of memory for each.
CCT_INLINE int64_t hidden_index(const MlpArgs& a, int64_t p, int64_t row) { return (p * a.rows + row) * kPanel; }
CCT_INLINE void store_hidden(const MlpArgs& a, int64_t i, Vec v) {
  a.hidden_bf16 ? store(static_cast<BFloat16*>(a.hidden) + i, v) : store(static_cast<float*>(a.hidden) + i, v);
}
CCT_INLINE Vec load_hidden(const MlpArgs& a, int64_t i) {
  return a.hidden_bf16 ? load(static_cast<const BFloat16*>(a.hidden) + i) : load(static_cast<const float*>(a.hidden) + i);
}

// y = LN(x) of R rows from `row` on; z: the same as float.
template <typename X, typename T>
CCT_INLINE void layernorm_rows(const MlpArgs& a, int64_t row, int64_t R, T* y, float* z) {
  for (int64_t i = 0; i < R; ++i) {
    float mean, rstd;
    BFloat16* xhat = a.xhat ? static_cast<BFloat16*>(a.xhat) + (row + i) * a.C : nullptr;
    layernorm_row(static_cast<const X*>(a.x) + (row + i) * a.C, a.C, a.Cp, a.eps, a.gamma, a.beta, xhat, z + i * a.Cp,
                  y + i * a.Cp, mean, rstd);
    if (a.mean) a.mean[row + i] = mean;
    if (a.rstd) a.rstd[row + i] = rstd;
  }
}

// drop(gelu(y W1^T + b1)): panel p of R rows from `row` on.
template <typename T>
CCT_INLINE void hidden_panel(const MlpArgs& a, int64_t p, int64_t row, int64_t R, const T* y, const Panel<T>& weight,
                             const Dropout& dropout, T* h) {
  product_blocks(R, a.C, y, a.Cp, weight, [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r) {
      float* t = tile + r * kPanel;
      T* out = h + (i + r) * a.Fp + p * kPanel;
      const int64_t kept = hidden_index(a, p, row + i + r);
      for (int c = 0; c < kPanel; c += kLanes) {
        const Vec pre = load(t + c) + load(a.b1 + p * kPanel + c), v = gelu<T>(pre);
        if (a.hidden) store_hidden(a, kept + c, pre);
        dropout.active() ? store(t + c, v) : store(out + c, v);
      }
      if (dropout.active()) {
        dropout.apply(t, uint32_t(row + i + r), uint32_t(p));
        for (int c = 0; c < kPanel; c += kLanes) store(out + c, load(t + c));
      }
    }
  });
}

// z += s * drop(h W2^T + b2): panel p of R rows from `row` on.
template <typename T>
CCT_INLINE void output_panel(const MlpArgs& a, int64_t p, int64_t row, int64_t R, const T* h, const Panel<T>& weight,
                             const Dropout& dropout, float* z) {
  product_blocks(R, a.F, h, a.Fp, weight, [&](int64_t i, int rows, float* tile) {
    for (int r = 0; r < rows; ++r) {
      float* t = tile + r * kPanel;
      if (dropout.active()) {
        for (int c = 0; c < kPanel; c += kLanes) store(t + c, load(t + c) + load(a.b2 + p * kPanel + c));
        dropout.apply(t, uint32_t(row + i + r), uint32_t(p));
      }
      float* out = z + (i + r) * a.Cp + p * kPanel;
      const float s = path_scale(a, row + i + r);
      for (int c = 0; c < kPanel; c += kLanes) {
        const Vec v = dropout.active() ? load(t + c) : load(t + c) + load(a.b2 + p * kPanel + c);
        store(out + c, load(out + c) + v * s);
      }
    }
  });
}

template <typename X, typename T>
void forward_rows(const MlpArgs& a, int64_t first, int64_t last, char* scratch) {
  const TileScope tiles;
  const Dropout hidden(a.dropout, kHiddenSite), output(a.dropout, kOutputSite);
  T* y = take<T>(scratch, kPassRows * a.Cp);
  T* h = take<T>(scratch, kPassRows * a.Fp);
  float* z = take<float>(scratch, kPassRows * a.Cp);
  for (int64_t row = first, R; row < last; row += R) {
    R = pass_rows<T>(last - row, (a.Cp + a.Fp) * sizeof(T) + a.Cp * sizeof(float));
    layernorm_rows<X>(a, row, R, y, z);
    for (int64_t p = 0; p < panels(a.F); ++p) hidden_panel(a, p, row, R, y, weight_panel<T>(a.w1, p, a.C), hidden, h);
    for (int64_t p = 0; p < panels(a.C); ++p) output_panel(a, p, row, R, h, weight_panel<T>(a.w2, p, a.F), output, z);
    for (int64_t i = 0; i < R; ++i) store_row(static_cast<X*>(a.out) + (row + i) * a.C, a.C, z + i * a.Cp);
  }
}

template <typename X, typename T>
void backward_rows(const MlpArgs& a, int64_t first, int64_t last, const MlpGradients& g, char* scratch) {
  const TileScope tiles;
  const Dropout hidden(a.dropout, kHiddenSite), output(a.dropout, kOutputSite);
  constexpr int64_t kT = kMlpTokens;
  T *y = take<T>(scratch, kT * a.Cp), *yT = take<T>(scratch, kT * a.Cp), *dz = take<T>(scratch, kT * a.Cp);
  T *dzT = take<T>(scratch, kT * a.Cp), *pairs = take<T>(scratch, kT * a.Cp), *dh = take<T>(scratch, kT * a.Fp);
  T* act = take<T>(scratch, kT * kPanel);
  T *dh_panel = take<T>(scratch, kT * kPanel), *act_panel = take<T>(scratch, kT * kPanel);
  float *dy = take<float>(scratch, kT * a.Cp), *xhat = take<float>(scratch, a.Cp), *line = take<float>(scratch, a.Cp);
  float* part = take<float>(scratch, 2 * a.Cp);  // of the sums over rows
  std::memset(part, 0, 2 * a.Cp * sizeof(float));
  const X* dout = static_cast<const X*>(a.dout);

  for (int64_t row = first; row < last; row += kT) {
    const int64_t R = last - row < kT ? last - row : kT, K = round_up(R, 32);
    std::memset((void*)(y + R * a.Cp), 0, (K - R) * a.Cp * sizeof(T));
    std::memset((void*)(dz + R * a.Cp), 0, (K - R) * a.Cp * sizeof(T));
    for (int64_t i = 0; i < R; ++i) {
      if (a.need_fc1) {
        saved_xhat<X>(a, row + i, xhat);
        affine(xhat, y + i * a.Cp, a.gamma, a.beta, a.C, a.Cp);
      }
      load_row(dout + (row + i) * a.C, a.C, line);
      for (int64_t c = round_up(a.C, kLanes); c < a.Cp; c += kLanes) store(line + c, Vec{});
      for (int64_t c = 0; c < a.Cp; c += kLanes) store(dy + i * a.Cp + c, load(line + c));
      if (output.active())
        for (int64_t p = 0; p < panels(a.C); ++p) output.apply(line + p * kPanel, uint32_t(row + i), uint32_t(p));
      const float s = path_scale(a, row + i);
      for (int64_t c = 0; c < a.Cp; c += kLanes) {
        const Vec v = load(line + c) * s;
        store(part + c, load(part + c) + v);
        store(dz + i * a.Cp + c, v);
      }
      if ((i + 1) % kSumRows == 0 || i + 1 == R) flush_sums(part, g.db2, a.Cp);
    }
    if (a.need_fc1) transpose(y, a.Cp, yT, K, K, a.Cp, pairs);
    if (a.need_fc2) transpose(dz, a.Cp, dzT, K, K, a.Cp, pairs);
    for (int64_t p = 0; p < panels(a.F); ++p) {
      float* db1 = g.db1 + p * kPanel;
      product_blocks(R, a.C, dz, a.Cp, weight_panel<T>(a.w2_back, p, a.C), [&](int64_t i, int rows, float* tile) {
        alignas(64) float mask[kPanel], sums[kPanel] = {};
        for (int c = 0; c < kPanel; ++c) mask[c] = 1.f;
        for (int r = 0; r < rows; ++r) {
          if (hidden.active()) {
            for (int c = 0; c < kPanel; ++c) mask[c] = 1.f;
            hidden.apply(mask, uint32_t(row + i + r), uint32_t(p));
          }
          for (int c = 0; c < kPanel; c += kLanes) {
            Vec value, derivative;
            gelu_with_derivative<T>(load_hidden(a, hidden_index(a, p, row + i + r) + c), value, derivative);
            const Vec m = load(mask + c), d = load(tile + r * kPanel + c) * m * derivative;
            store(sums + c, load(sums + c) + d);
            store(dh + (i + r) * a.Fp + p * kPanel + c, d);
            store(act + (i + r) * kPanel + c, value * m);
          }
        }
        flush_sums(sums, db1, kPanel);
      });
      // dw (C, 64) += left (C, K) right (K, 64), whose rows behind R are zeros
      auto add_gradient = [&](const T* left, T* right, int64_t stride, T* packed, float* dw, int64_t dw_stride) {
        for (int64_t i = R; i < K; ++i) std::memset((void*)(right + i * stride), 0, kPanel * sizeof(T));
        pack_unless_panel(right, stride, packed, K);
        product<true>(a.C, K, left, K, panel_of_rows(right, stride, packed, K), dw, dw_stride);
      };
      if (a.need_fc1) add_gradient(yT, dh + p * kPanel, a.Fp, dh_panel, g.dw1 + p * a.Cp * kPanel, kPanel);
      if (a.need_fc2) add_gradient(dzT, act, kPanel, act_panel, g.dw2 + p * kPanel, a.Fp);
    }
    for (int64_t p = 0; p < panels(a.C); ++p)
      product_blocks(R, a.F, dh, a.Fp, weight_panel<T>(a.w1_back, p, a.F), [&](int64_t i, int rows, float* tile) {
        for (int r = 0; r < rows; ++r)
          for (int c = 0; c < kPanel; c += kLanes) {
            float* d = dy + (i + r) * a.Cp + p * kPanel + c;
            store(d, load(d) + load(tile + r * kPanel + c));
          }
      });
    for (int64_t i = 0; i < R; ++i) {
      const int64_t width = round_up(a.C, kLanes);
      for (int64_t c = 0; c < width; c += kLanes) store(line + c, Vec{});
      saved_xhat<X>(a, row + i, xhat);
      backward_row(xhat, dy + i * a.Cp, a.gamma, a.C, width, a.rstd[row + i], line, part, part + a.Cp);
      if ((i + 1) % kSumRows == 0 || i + 1 == R) {
        flush_sums(part, g.dgamma, width);
        flush_sums(part + a.Cp, g.dbeta, width);
      }
      store_row(static_cast<X*>(a.dx) + (row + i) * a.C, a.C, line);
    }
  }
}

}  // namespace

void layernorm_mlp_forward_rows(const MlpArgs& a, int64_t first, int64_t last, char* scratch) {
  CCT_TYPED(forward_rows, a, first, last, scratch);
}

void layernorm_mlp_backward_rows(const MlpArgs& a, int64_t first, int64_t last, const MlpGradients& g, char* scratch) {
  CCT_TYPED(backward_rows, a, first, last, g, scratch);
}

}  // namespace cct::CCT_ISA

#else  // ----------------------------------------------------------------------------------------- checks, threads,
       // registration
namespace cct {

static constexpr const char* kOp = "layernorm_mlp";

MlpCall::MlpCall(const at::Tensor& x_in, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
                 const at::Tensor& fc1_weight, const OptionalTensor& fc1_bias, const at::Tensor& fc2_weight,
                 const OptionalTensor& fc2_bias, double dropout, const OptionalTensor& drop_path_scale,
                 const OptionalTensor& seed, double eps, at::ScalarType compute) {
  TORCH_CHECK_VALUE(x_in.dim() == 3, kOp, ": x has ", x_in.dim(), " dimensions; expected 3");
  check_dtype(kOp, "x", x_in);
  check_tensor(kOp, "x", x_in, x_in.sizes(), x_in.scalar_type());
  const int64_t B = x_in.size(0), C = x_in.size(2);
  TORCH_CHECK_VALUE(fc1_weight.dim() == 2, kOp, ": fc1_weight has ", fc1_weight.dim(), " dimensions; expected 2");
  const int64_t F = fc1_weight.size(0);
  TORCH_CHECK_VALUE(C > 0 && F > 0, kOp, ": x has ", C, " channels and fc1_weight ", F, " rows; expected at least one");
  check_dtype(kOp, "fc1_weight", fc1_weight);
  const auto dtype = fc1_weight.scalar_type();
  check_tensor(kOp, "norm_weight", norm_weight, {C}, dtype);
  check_tensor(kOp, "norm_bias", norm_bias, {C}, dtype);
  check_tensor(kOp, "fc1_weight", fc1_weight, {F, C}, dtype);
  check_tensor(kOp, "fc1_bias", fc1_bias, {F}, dtype);
  check_tensor(kOp, "fc2_weight", fc2_weight, {C, F}, dtype);
  check_tensor(kOp, "fc2_bias", fc2_bias, {C}, dtype);
  if (drop_path_scale)
    TORCH_CHECK_VALUE(drop_path_scale->sizes() == at::IntArrayRef({B}), kOp, ": drop_path_scale has shape ",
                      drop_path_scale->sizes(), "; expected [", B, "]");
  x = x_in.contiguous();
  a.rows = B * x.size(1);
  a.N = x.size(1);
  a.C = C;
  a.F = F;
  a.Cp = round_up64(C);
  a.Fp = round_up64(F);
  a.eps = float(eps);
  a.x_bf16 = x.scalar_type() == at::kBFloat16;
  a.bf16 = bf16_products(compute);
  a.hidden_bf16 = compute == at::kBFloat16;
  a.x = x.const_data_ptr();
  a.dropout = dropout_args(kOp, seed, dropout);
  gamma = norm_weight ? padded_vector(norm_weight, C) : padded_vector(at::ones({C}), C);
  beta = padded_vector(norm_bias, C);
  b1 = padded_vector(fc1_bias, F);
  b2 = padded_vector(fc2_bias, C);
  a.gamma = gamma.const_data_ptr<float>();
  a.beta = beta.const_data_ptr<float>();
  a.b1 = b1.const_data_ptr<float>();
  a.b2 = b2.const_data_ptr<float>();
  if (drop_path_scale) {
    scale = drop_path_scale->to(at::kFloat).contiguous();
    a.path_scale = scale.const_data_ptr<float>();
  }
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> layernorm_mlp_forward(
    const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias, const at::Tensor& fc1_weight,
    const OptionalTensor& fc1_bias, const at::Tensor& fc2_weight, const OptionalTensor& fc2_bias, double dropout,
    const OptionalTensor& drop_path_scale, const OptionalTensor& seed, double eps, at::ScalarType compute, bool keep) {
  MlpCall call(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps,
               compute);
  MlpArgs& a = call.a;
  call.w1 = pack_weight(fc1_weight, true, 0, a.bf16);
  call.w2 = pack_weight(fc2_weight, true, 0, a.bf16);
  a.w1 = call.w1.const_data_ptr();
  a.w2 = call.w2.const_data_ptr();
  at::Tensor out = pooled_empty(call.x.sizes(), call.x.scalar_type());
  const bool keep_xhat = keep && keeps_xhat(call.x, compute);
  const auto f32 = x.options().dtype(at::kFloat);
  const int64_t images = keep ? x.size(0) : 0;
  at::Tensor mean = at::empty({keep_xhat ? 0 : images, a.N}, f32), rstd = at::empty({images, a.N}, f32);
  at::Tensor kept_x = keep_xhat ? pooled_empty(call.x.sizes(), at::kBFloat16) : at::empty({0}, x.options());
  at::Tensor hidden = pooled_empty({a.Fp / 64, keep ? a.rows : 0, 64}, kept_dtype(compute));
  a.out = out.data_ptr();
  a.mean = keep && !keep_xhat ? mean.data_ptr<float>() : nullptr;
  a.rstd = keep ? rstd.data_ptr<float>() : nullptr;
  a.xhat = keep_xhat ? kept_x.data_ptr() : nullptr;
  a.hidden = keep ? hidden.data_ptr() : nullptr;
  const int64_t bytes = mlp_forward_scratch(a);
  constexpr int64_t kUnit = 16;  // rows that a thread's share is a multiple of
  for_slices((a.rows + kUnit - 1) / kUnit, kForwardSlices, [&](int64_t first, int64_t last, int64_t) {
    CCT_CALL(layernorm_mlp_forward_rows, a, first * kUnit, std::min(last * kUnit, a.rows), thread_scratch(bytes));
  });
  return {out, mean, rstd, hidden, kept_x};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> layernorm_mlp_backward(
    const at::Tensor& dout_in, const at::Tensor& x, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias,
    const at::Tensor& fc1_weight, const OptionalTensor& fc1_bias, const at::Tensor& fc2_weight, const OptionalTensor& fc2_bias,
    double dropout, const OptionalTensor& drop_path_scale, const OptionalTensor& seed, double eps, at::ScalarType compute,
    const at::Tensor& mean_in, const at::Tensor& rstd_in, const at::Tensor& hidden_in, std::array<bool, 2> need_weights) {
  const auto [need_fc1, need_fc2] = need_weights;
  MlpCall call(x, norm_weight, norm_bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, dropout, drop_path_scale, seed, eps,
               compute);
  MlpArgs& a = call.a;
  const bool from_xhat = is_xhat(x, dout_in, compute);
  check_tensor(kOp, "dout", dout_in, x.sizes(), from_xhat ? at::kFloat : x.scalar_type());
  check_tensor(kOp, "mean", mean_in, {from_xhat ? 0 : x.size(0), x.size(1)}, at::kFloat);
  check_tensor(kOp, "rstd", rstd_in, {x.size(0), x.size(1)}, at::kFloat);
  check_tensor(kOp, "hidden", hidden_in, {a.Fp / 64, a.rows, 64}, kept_dtype(compute));
  const at::Tensor dout = dout_in.contiguous(), mean = mean_in.contiguous(), rstd = rstd_in.contiguous(),
                   hidden = hidden_in.contiguous();
  call.w1_back = pack_backward(fc1_weight, 0, 0, a.bf16, need_fc1);
  call.w2_back = pack_backward(fc2_weight, 0, 0, a.bf16, need_fc2);
  a.w1_back = call.w1_back.const_data_ptr();
  a.w2_back = call.w2_back.const_data_ptr();
  if (from_xhat) a.xhat = call.x.data_ptr(), a.x = nullptr, a.x_bf16 = false;
  a.mean = mean.data_ptr<float>();
  a.rstd = rstd.data_ptr<float>();
  a.hidden = hidden.data_ptr();
  at::Tensor dx = pooled_empty(call.x.sizes(), dout.scalar_type());
  a.dout = dout.const_data_ptr();
  a.dx = dx.data_ptr();
  a.need_fc1 = need_fc1;
  a.need_fc2 = need_fc2;

  const int64_t C = a.C, F = a.F, Cp = a.Cp, Fp = a.Fp;
  const int64_t size1 = need_fc1 ? Cp * Fp : 0, size2 = need_fc2 ? Cp * Fp : 0, vectors = size1 + size2;
  constexpr int64_t kUnit = 32;
  const int64_t units = (a.rows + kUnit - 1) / kUnit, bytes = mlp_backward_scratch(a);
  at::Tensor sums = pooled_zeros({count_slices(units, backward_slices()), vectors + Fp + 3 * Cp}, at::kFloat);
  for_slices(units, backward_slices(), [&](int64_t first, int64_t last, int64_t slot) {
    float *s = sums.data_ptr<float>() + slot * sums.size(1), *v = s + vectors;
    const MlpGradients g{s, s + size1, v, v + Fp, v + Fp + Cp, v + Fp + 2 * Cp};
    CCT_CALL(layernorm_mlp_backward_rows, a, first * kUnit, std::min(last * kUnit, a.rows), g, thread_scratch(bytes));
  });
  const at::Tensor total = sums.size(0) == 1 ? sums[0] : sums.sum(0);
  const auto dtype = fc1_weight.scalar_type();
  auto vector = [&](int64_t start, int64_t n) { return total.narrow(0, vectors + start, n).to(dtype, false, true); };
  at::Tensor dw1 = at::empty({0}, fc1_weight.options()), dw2 = at::empty({0}, fc1_weight.options());
  if (need_fc1)
    dw1 = total.narrow(0, 0, size1)
              .view({Fp / 64, Cp, 64})
              .transpose(1, 2)
              .reshape({Fp, Cp})
              .narrow(0, 0, F)
              .narrow(1, 0, C)
              .to(dtype, false, true)
              .contiguous();
  if (need_fc2)
    dw2 = total.narrow(0, size1, size2).view({Cp, Fp}).narrow(0, 0, C).narrow(1, 0, F).to(dtype, false, true).contiguous();
  return {dx, vector(Fp + Cp, C), vector(Fp + 2 * Cp, C), dw1, vector(0, F), dw2, vector(Fp, C)};
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) {
  m.impl("layernorm_mlp_forward", TORCH_FN(cct::layernorm_mlp_forward));
  m.impl("layernorm_mlp_backward", TORCH_FN(cct::layernorm_mlp_backward));
}
#endif
