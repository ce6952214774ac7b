#include "../cpu/layernorm_attention.cpp"

#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t B, N, C, heads;
  double attention_dropout, dropout;
  bool mask;
};

struct Inputs {
  Values x, gamma, beta, wqkv, bqkv, wproj, bproj, scale, dout;
  std::vector<uint8_t> mask;
};

Values reference(const Shape& s, const AttentionArgs& a, const Inputs& in) {
  const int64_t N = s.N, C = s.C, hd = C / s.heads;
  Values out;
  for (int64_t b = 0; b < s.B; ++b) {
    const uint8_t* mask = s.mask ? &in.mask[b * N] : nullptr;
    std::vector<Values> qkv(N, Values(3 * C)), heads(N, Values(C));
    for (int64_t n = 0; n < N; ++n) {
      const Values y = layernorm(&in.x[(b * N + n) * C], in.gamma, in.beta, 1e-5);
      for (int64_t f = 0; f < 3 * C; ++f) {
        qkv[n][f] = in.bqkv[f];
        for (int64_t c = 0; c < C; ++c) qkv[n][f] += in.wqkv[f * C + c] * y[c];
      }
    }
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t i = 0; i < N; ++i) {
        Values p(N);
        double total = 0;
        for (int64_t j = 0; j < N; ++j) {
          double score = 0;
          for (int64_t c = h * hd; c < (h + 1) * hd; ++c) score += qkv[i][c] * qkv[j][C + c] / std::sqrt(double(hd));
          total += p[j] = mask && !mask[i] ? 1 : mask && !mask[j] ? 0 : std::exp(score);
        }
        for (int64_t j = 0; j < N; ++j) {
          p[j] *= dropout_factor(a.weights_dropout, kAttentionSite, (b * s.heads + h) * N + i, j) / total;
          for (int64_t c = h * hd; c < (h + 1) * hd; ++c) heads[i][c] += p[j] * qkv[j][2 * C + c];
        }
      }
    for (int64_t n = 0; n < N; ++n)
      for (int64_t c = 0; c < C; ++c) {
        double z = in.bproj[c];
        for (int64_t k = 0; k < C; ++k) z += in.wproj[c * C + k] * heads[n][k];
        const int64_t row = b * N + n;
        out.push_back(in.x[row * C + c] + in.scale[b] * dropout_factor(a.projection_dropout, kProjectionSite, row, c) * z);
      }
  }
  return out;
}

void test_shape(const std::string& where, const Setting& set, const Shape& s) {
  Random random;
  const int64_t B = s.B, N = s.N, C = s.C, heads = s.heads;
  const bool bf = set.x_bf16;
  Inputs in{random.normal(B * N * C, 1, 0.3, bf), random.normal(C, 0.1, 1, bf),
            random.normal(C, 0.1, 0, bf),         random.normal(3 * C * C, 1.5 / std::sqrt(double(C)), 0, bf),
            random.normal(3 * C, 0.1, 0, bf),     random.normal(C * C, 1 / std::sqrt(double(C)), 0, bf),
            random.normal(C, 0.1, 0, bf),         random.normal(B, 0.5, 1),
            random.normal(B * N * C, 1, 0, bf),   {}};
  const Guarded mask(s.mask ? B * N : 0);
  for (int64_t i = 0; s.mask && i < B * N; ++i) mask.data()[i] = i % N <= N / (1 + i / N) - i / N;  // shorter and shorter
  in.mask.assign(mask.data(), mask.data() + mask.bytes());

  AttentionArgs a{};
  a.N = N, a.C = C, a.heads = heads, a.hd = C / heads;
  a.Cp = round_up64(C), a.hdp = round_up64(a.hd), a.Np = round_up64(N), a.Nr = (N + 31) / 32 * 32, a.Qp = round_up64(3 * C);
  a.eps = 1e-5f;
  a.x_bf16 = bf, a.bf16 = set.bf16;
  Values bqkv(3 * heads * a.hdp);  // each head padded
  for (int64_t i = 0; i < 3 * C; ++i) bqkv[i / a.hd * a.hdp + i % a.hd] = in.bqkv[i];
  const Array x(in.x, bf), dout(in.dout, bf), gamma = Array::padded(in.gamma), beta = Array::padded(in.beta);
  const Array qkv_bias(bqkv, false), bproj = Array::padded(in.bproj), scale(in.scale, false);
  const Array wqkv = packed(in.wqkv, C, 3 * C, true, a.hd, bf, set.bf16), wproj = packed(in.wproj, C, C, true, 0, bf, set.bf16);
  const Array out(B * N * C, bf), mean(B * N, false), rstd(B * N, false), lse(B * heads * N, false);
  const Array xhat(bf ? 0 : B * N * C, true);
  const Array qkv(B * 3 * heads * a.Nr * a.hdp, set.bf16), o(B * a.Nr * a.Cp, set.bf16);
  a.x = x.data(), a.out = out.data(), a.mean = mean.floats(), a.rstd = rstd.floats(), a.lse = lse.floats();
  a.gamma = gamma.floats(), a.beta = beta.floats(), a.bqkv = qkv_bias.floats(), a.bproj = bproj.floats();
  a.wqkv = wqkv.data(), a.wproj = wproj.data(), a.path_scale = scale.floats();
  a.mask = s.mask ? reinterpret_cast<const uint8_t*>(mask.data()) : nullptr;
  a.weights_dropout = make_dropout(s.attention_dropout), a.projection_dropout = make_dropout(s.dropout);
  a.qkv = qkv.data(), a.o = o.data(), a.xhat = bf ? nullptr : xhat.data();
  const Guarded pairs(s.attention_dropout > 0 ? B * heads * N * a.Np / 8 : 0);
  if (pairs.bytes()) a.pairs = reinterpret_cast<uint64_t*>(pairs.data());
  const bool converted = bf && !set.bf16;  // kept for backward as the host keeps it
  const Array kept_qkv(converted ? B * 3 * heads * N * a.hdp : 0, true), kept_o(converted ? B * N * a.Cp : 0, true);
  if (converted) a.kept_qkv = kept_qkv.data(), a.kept_o = kept_o.data();

  // one image after the other; its rows and heads among the threads, as the host shares an image
  const int64_t blocks = (N + 31) / 32;
  for (int64_t b = 0; b < B; ++b) {
    auto rows = [&](auto f) {
      for_slices(blocks, set.threads, [&](int64_t, int64_t first, int64_t last) {
        const Guarded scratch(attention_forward_scratch(a));
        f(a, b, b, first * 32, smaller(last * 32, N), scratch.data());
      });
    };
    rows(attention_qkv_rows);
    for_slices(heads * blocks, set.threads, [&](int64_t, int64_t first, int64_t last) {
      const Guarded scratch(attention_forward_scratch(a));
      for (int64_t i = first; i < last; ++i)
        attention_head_rows(a, b, b, i / blocks, i % blocks * 32, smaller((i % blocks + 1) * 32, N), scratch.data());
    });
    rows(attention_projection_rows);
  }
  double tolerance = bf || set.bf16 ? 0.03 : 3e-5;
  expect_near(where + "out", out.values(), reference(s, a, in), tolerance);

  struct Case {
    bool qkv, proj, from_xhat;
  };
  for (const auto& [need_qkv, need_proj, from_xhat] :
       {Case{true, true, false}, {false, false, false}, {false, true, false}, {true, false, true}}) {
    if (from_xhat && bf) continue;
    if (from_xhat) a.x = nullptr, a.mean = nullptr, tolerance = 0.03;
    a.xhat = from_xhat ? xhat.data() : nullptr;
    const Array dx(B * N * C, bf);
    const Array wqkv_back = packed(in.wqkv, 3 * C, C, false, 0, bf, set.bf16);
    const Array wproj_back = packed(in.wproj, C, C, false, a.hd, bf, set.bf16);
    a.dout = dout.data(), a.dx = dx.data(), a.wqkv_back = wqkv_back.data(), a.wproj_back = wproj_back.data();
    a.need_qkv = need_qkv, a.need_proj = need_proj;
    enum { kDwqkv, kDwproj, kDbqkv, kDbproj, kDgamma, kDbeta };
    const int64_t dwqkv = need_qkv ? a.Qp * a.Cp : 0, dwproj = need_proj ? a.Cp * a.Cp : 0;
    const Sums sums(set.threads, {dwqkv, dwproj, a.Qp, a.Cp, a.Cp, a.Cp});
    const Guarded shared(attention_backward_shared(a));
    for (int64_t b = 0; b < B; ++b)
      for (int phase = 0; phase < kAttentionPhases; ++phase)
        for_slices(phase_items(a, phase), set.threads, [&](int64_t slot, int64_t first, int64_t last) {
          const Guarded scratch(attention_backward_scratch(a));
          const AttentionGradients g{sums.of(slot, kDwqkv),  sums.of(slot, kDwproj), sums.of(slot, kDbqkv),
                                     sums.of(slot, kDbproj), sums.of(slot, kDgamma), sums.of(slot, kDbeta)};
          attention_backward_phase(a, b, phase, first, last, g, shared.data(), scratch.data());
        });
    auto check = [&](const char* name, Values Inputs::*which, const Values& gradient) {
      Inputs moved = in;
      expect_gradient(where + name, gradient, in.*which, tolerance, [&](const Values& at) {
        moved.*which = at;
        return dot(reference(s, a, moved), in.dout);
      });
    };
    check("dx", &Inputs::x, dx.values());
    check("dnorm_weight", &Inputs::gamma, sums.total(kDgamma, C));
    check("dnorm_bias", &Inputs::beta, sums.total(kDbeta, C));
    check("dqkv_bias", &Inputs::bqkv, sums.total(kDbqkv, 3 * C));
    check("dproj_bias", &Inputs::bproj, sums.total(kDbproj, C));
    const Values dq = sums.total(kDwqkv), dp = sums.total(kDwproj);
    Values dqkv_weight, dproj_weight;
    for (int64_t f = 0; f < 3 * C && need_qkv; ++f)
      for (int64_t c = 0; c < C; ++c) dqkv_weight.push_back(dq[(f / 64 * a.Cp + c) * 64 + f % 64]);
    for (int64_t i = 0; i < C * C && need_proj; ++i) dproj_weight.push_back(dp[i / C * a.Cp + i % C]);
    if (need_qkv) check("dqkv_weight", &Inputs::wqkv, dqkv_weight);
    if (need_proj) check("dproj_weight", &Inputs::wproj, dproj_weight);
  }
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  for (const Shape& s : {Shape{1, 1, 1, 1, 0, 0, false},
                         {3, 7, 12, 3, 0.2, 0.3, true},
                         {1, 67, 10, 2, 0.2, 0, false},
                         {1, 33, 68, 1, 0, 0, true},
                         {1, 520, 2, 1, 0.2, 0, true}})  // more keys than backward keeps
    test_shape(where, set, s);
}

}  // namespace cct
