#include "../cpu/layernorm_mlp.cpp"

#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t B, N, C, F;
  double dropout;
};

struct Inputs {
  Values x, gamma, beta, w1, b1, w2, b2, scale, dout;
};

Values reference(const Shape& s, const DropoutArgs& d, const Inputs& in) {
  Values out;
  for (int64_t row = 0; row < s.B * s.N; ++row) {
    const Values y = layernorm(&in.x[row * s.C], in.gamma, in.beta, 1e-5);
    Values h(s.F);
    for (int64_t f = 0; f < s.F; ++f) {
      double v = in.b1[f];
      for (int64_t c = 0; c < s.C; ++c) v += in.w1[f * s.C + c] * y[c];
      h[f] = 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))) * dropout_factor(d, kHiddenSite, row, f);
    }
    for (int64_t c = 0; c < s.C; ++c) {
      double z = in.b2[c];
      for (int64_t f = 0; f < s.F; ++f) z += in.w2[c * s.F + f] * h[f];
      out.push_back(y[c] + in.scale[row / s.N] * dropout_factor(d, kOutputSite, row, c) * z);
    }
  }
  return out;
}

void test_shape(const std::string& where, const Setting& set, const Shape& s) {
  Random random;
  const int64_t rows = s.B * s.N, C = s.C, F = s.F;
  const bool bf = set.x_bf16;
  const Inputs in{random.normal(rows * C, 1, 0.3, bf), random.normal(C, 0.1, 1, bf),
                  random.normal(C, 0.1, 0, bf),        random.normal(F * C, 1 / std::sqrt(double(C)), 0, bf),
                  random.normal(F, 0.1, 0, bf),        random.normal(C * F, 1 / std::sqrt(double(F)), 0, bf),
                  random.normal(C, 0.1, 0, bf),        random.normal(s.B, 0.5, 1),
                  random.normal(rows * C, 1, 0, bf)};
  const Array x(in.x, bf), dout(in.dout, bf), gamma = Array::padded(in.gamma), beta = Array::padded(in.beta);
  const Array b1 = Array::padded(in.b1), b2 = Array::padded(in.b2), scale(in.scale, false);
  const Array w1 = packed(in.w1, C, F, true, 0, bf, set.bf16), w2 = packed(in.w2, F, C, true, 0, bf, set.bf16);
  const Array out(rows * C, bf), mean(rows, false), rstd(rows, false), hidden(rows * round_up64(F), bf || set.bf16);
  const Array xhat(bf ? 0 : rows * C, true);
  MlpArgs a{};
  a.rows = rows, a.N = s.N, a.C = C, a.F = F, a.Cp = round_up64(C), a.Fp = round_up64(F);
  a.eps = 1e-5f;
  a.x_bf16 = bf, a.bf16 = set.bf16;
  a.x = x.data(), a.out = out.data(), a.mean = mean.floats(), a.rstd = rstd.floats();
  a.xhat = bf ? nullptr : xhat.data();
  a.hidden = hidden.data(), a.hidden_bf16 = bf || set.bf16;
  a.gamma = gamma.floats(), a.beta = beta.floats(), a.b1 = b1.floats(), a.b2 = b2.floats();
  a.w1 = w1.data(), a.w2 = w2.data(), a.path_scale = scale.floats();
  a.dropout = make_dropout(s.dropout);
  for_slices((rows + 15) / 16, set.threads, [&](int64_t, int64_t first, int64_t last) {
    const Guarded scratch(mlp_forward_scratch(a));
    layernorm_mlp_forward_rows(a, first * 16, smaller(last * 16, rows), scratch.data());
  });
  double tolerance = bf || set.bf16 ? 0.02 : 2e-5;
  expect_near(where + "out", out.values(), reference(s, a.dropout, in), tolerance);

  struct Case {
    bool fc1, fc2, from_xhat;
  };
  for (const auto& [fc1, fc2, from_xhat] :
       {Case{true, true, false}, {false, false, false}, {false, true, false}, {true, false, true}}) {
    if (from_xhat && bf) continue;
    if (from_xhat) a.x = nullptr, a.mean = nullptr, tolerance = 0.02;
    a.xhat = from_xhat ? xhat.data() : nullptr;
    const Array dx(rows * C, bf);
    const Array w1_back = packed(in.w1, F, C, false, 0, bf, set.bf16), w2_back = packed(in.w2, C, F, false, 0, bf, set.bf16);
    a.dout = dout.data(), a.dx = dx.data(), a.w1_back = w1_back.data(), a.w2_back = w2_back.data();
    a.need_fc1 = fc1, a.need_fc2 = fc2;
    const int64_t dw = a.Cp * a.Fp;
    enum { kDw1, kDw2, kDb1, kDb2, kDgamma, kDbeta };
    const Sums sums(set.threads, {fc1 ? dw : 0, fc2 ? dw : 0, a.Fp, a.Cp, a.Cp, a.Cp});
    for_slices((rows + 31) / 32, set.threads, [&](int64_t slot, int64_t first, int64_t last) {
      const Guarded scratch(mlp_backward_scratch(a));
      const MlpGradients g{sums.of(slot, kDw1), sums.of(slot, kDw2),    sums.of(slot, kDb1),
                           sums.of(slot, kDb2), sums.of(slot, kDgamma), sums.of(slot, kDbeta)};
      layernorm_mlp_backward_rows(a, first * 32, smaller(last * 32, rows), g, scratch.data());
    });
    auto check = [&](const char* name, Values Inputs::*which, const Values& gradient) {
      Inputs moved = in;
      expect_gradient(where + name, gradient, in.*which, tolerance, [&](const Values& at) {
        moved.*which = at;
        return dot(reference(s, a.dropout, moved), in.dout);
      });
    };
    check("dx", &Inputs::x, dx.values());
    check("dnorm_weight", &Inputs::gamma, sums.total(kDgamma, C));
    check("dnorm_bias", &Inputs::beta, sums.total(kDbeta, C));
    check("dfc1_bias", &Inputs::b1, sums.total(kDb1, F));
    check("dfc2_bias", &Inputs::b2, sums.total(kDb2, C));
    const Values dw1 = sums.total(kDw1), dw2 = sums.total(kDw2);
    Values d1, d2;
    for (int64_t f = 0; f < F && fc1; ++f)
      for (int64_t c = 0; c < C; ++c) d1.push_back(dw1[(f / 64 * a.Cp + c) * 64 + f % 64]);
    for (int64_t c = 0; c < C && fc2; ++c)
      for (int64_t f = 0; f < F; ++f) d2.push_back(dw2[c * a.Fp + f]);
    if (fc1) check("dfc1_weight", &Inputs::w1, d1);
    if (fc2) check("dfc2_weight", &Inputs::w2, d2);
  }
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  for (const Shape& s : {Shape{1, 1, 1, 1, 0}, {2, 3, 7, 70, 0.3}, {3, 19, 66, 5, 0}, {1, 270, 3, 65, 0.2}})
    test_shape(where, set, s);
}

}  // namespace cct
