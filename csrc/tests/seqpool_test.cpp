#include "../cpu/seqpool.cpp"

#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t B, N, C;
  bool norm;
};

struct Inputs {
  Values x, weight, gamma, beta, dout;
};

Values reference(const Shape& s, const Inputs& in) {
  Values out;
  for (int64_t b = 0; b < s.B; ++b) {
    std::vector<Values> y;
    Values p(s.N);
    double total = 0;
    for (int64_t n = 0; n < s.N; ++n) {
      const double* x = &in.x[(b * s.N + n) * s.C];
      y.push_back(s.norm ? layernorm(x, in.gamma, in.beta, 1e-5) : Values(x, x + s.C));
      total += p[n] = std::exp(dot(y[n], in.weight));
    }
    for (int64_t c = 0; c < s.C; ++c) {
      double sum = 0;
      for (int64_t n = 0; n < s.N; ++n) sum += p[n] / total * y[n][c];
      out.push_back(sum);
    }
  }
  return out;
}

void test_shape(const std::string& where, const Setting& set, const Shape& s) {
  Random random;
  const int64_t B = s.B, N = s.N, C = s.C, width = (C + 15) / 16 * 16, stride = width + 16, chunks = smaller(set.threads, N);
  const bool bf = set.x_bf16;
  const Inputs in{random.normal(B * N * C, 1, 0.3, bf), random.normal(C, 1 / std::sqrt(double(C)), 0, bf),
                  random.normal(C, 0.1, 1, bf), random.normal(C, 0.1, 0, bf), random.normal(B * C, 1, 0, bf)};
  // rows of `width` values, times the norm's weight
  auto scaled = [&](const Values& v, int64_t rows) {
    Values out(rows * width);
    for (int64_t i = 0; i < rows * C; ++i) out[i / C * width + i % C] = v[i] * (s.norm ? in.gamma[i % C] : 1);
    return out;
  };
  const Array x(in.x, bf), weight(scaled(in.weight, 1), false), gout(scaled(in.dout, B), false);
  const int64_t tokens = s.norm ? B * N : 0;
  const Array mean(tokens, false), rstd(tokens, false), prob(B * N, false), t(B * N, false), dx(B * N * C, bf);
  SeqPoolArgs a{};
  a.bf16 = bf, a.N = N, a.C = C, a.width = width, a.eps = 1e-5f, a.norm = s.norm;
  a.x = x.data(), a.score_weight = weight.floats(), a.mean = mean.floats(), a.rstd = rstd.floats();
  a.prob = prob.floats(), a.t = t.floats(), a.dx = dx.data();
  // f(i, b, first token, last token, a row of scratch) for each chunk i
  auto for_chunks = [&](auto f) {
    for_slices(B * chunks, set.threads, [&](int64_t, int64_t first, int64_t last) {
      const Array row(width, false);
      std::memset(row.data(), 0, width * 4);
      for (int64_t i = first; i < last; ++i)
        f(i, i / chunks, i % chunks * N / chunks, (i % chunks + 1) * N / chunks, row.floats());
    });
  };

  std::vector<Array> partials;
  for (int64_t i = 0; i < B * chunks; ++i) partials.emplace_back(stride, false);
  for_chunks([&](int64_t i, int64_t b, int64_t n0, int64_t n1, float* row) {
    seqpool_forward_tokens(a, b, n0, n1, partials[i].floats(), row);
  });
  Values out, lse;
  for (int64_t b = 0; b < B; ++b) {
    Values sums(C);
    double total = 0;
    for (int64_t k = 0; k < chunks; ++k) {
      const float* part = partials[b * chunks + k].floats();
      total += part[1] * std::exp(part[0]);
      for (int64_t c = 0; c < C; ++c) sums[c] += part[2 + c] * std::exp(part[0]);
    }
    for (int64_t c = 0; c < C; ++c) out.push_back(sums[c] / total * (s.norm ? in.gamma[c] : 1) + (s.norm ? in.beta[c] : 0));
    lse.push_back(std::log(total));
  }
  const double tolerance = bf ? 1e-2 : 1e-5;  // of BFloat16 only dx is rounded
  expect_near(where + "out", out, reference(s, in), 1e-5);

  const Array lse_values(lse, false), ds(B * chunks, false);
  std::vector<double> scores(2 * B * chunks);
  a.lse = lse_values.floats();
  auto image = [&](int64_t b) {
    SeqPoolArgs of = a;
    of.gout = gout.floats() + b * width;
    return of;
  };
  for_chunks([&](int64_t i, int64_t b, int64_t n0, int64_t n1, float* row) {
    seqpool_backward_scores(image(b), b, n0, n1, &scores[2 * i], row);
  });
  const Sums sums(B * chunks, {width, width});
  auto total = [](const float* values, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += values[i];
    return float(sum);
  };
  for_chunks([&](int64_t i, int64_t b, int64_t n0, int64_t n1, float* row) {
    const SeqPoolArgs of = image(b);
    double pt = 0, p = 0;
    for (int64_t k = b * chunks; k < (b + 1) * chunks; ++k) pt += scores[2 * k], p += scores[2 * k + 1];
    seqpool_backward_tokens(of, b, n0, n1, float(pt / p), float(p), total(of.gout, C), total(a.score_weight, C), sums.of(i, 0),
                            sums.of(i, 1), ds.floats() + i, row);
  });
  Values V(C), dgamma(C), dbeta(C);
  for (int64_t i = 0; i < B * chunks; ++i)
    for (int64_t c = 0; c < C; ++c) {
      const double U = sums.of(i, 0)[c], dout = in.dout[i / chunks * C + c];
      V[c] += sums.of(i, 1)[c];
      dgamma[c] += dout * U;
      if (i % chunks == 0) dbeta[c] += dout;
    }
  for (int64_t c = 0; c < C; ++c) {
    dgamma[c] += in.weight[c] * V[c];
    V[c] *= s.norm ? in.gamma[c] : 1;
  }
  auto check = [&](const char* name, Values Inputs::*which, const Values& gradient, double allowed) {
    Inputs moved = in;
    expect_gradient(where + name, gradient, in.*which, allowed, [&](const Values& at) {
      moved.*which = at;
      return dot(reference(s, moved), in.dout);
    });
  };
  check("dx", &Inputs::x, dx.values(), tolerance);
  check("dweight", &Inputs::weight, V, 1e-5);
  if (!s.norm) return;
  check("dnorm_weight", &Inputs::gamma, dgamma, 1e-5);
  check("dnorm_bias", &Inputs::beta, dbeta, 1e-5);
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  if (set.bf16) return;  // no products
  for (const Shape& s : {Shape{1, 1, 1, true}, {2, 3, 7, true}, {3, 19, 66, true}, {1, 33, 16, false}, {2, 5, 17, false}})
    test_shape(where, set, s);
}

}  // namespace cct
