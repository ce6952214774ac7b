#include "../cpu/conv_tokenizer.cpp"

#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t B, Cin, H, W, C;
  Window conv, pool;
  bool relu, channels_last;
};

struct Inputs {
  Values x, weight, bias, dout;  // x (B, Cin, H, W); weight (C, K) with K = (ky, kx, ci)
};

ConvArgs sizes(const Shape& s) {
  ConvArgs a{};
  auto output = [](int64_t size, int64_t kernel, int64_t stride, int64_t padding) {
    return (size + 2 * padding - kernel) / stride + 1;
  };
  a.Cin = s.Cin, a.H = s.H, a.W = s.W, a.C = s.C, a.Cp = round_up64(s.C), a.K = s.conv.kh * s.conv.kw * s.Cin;
  a.conv = s.conv, a.pool = s.pool, a.relu = s.relu;
  a.Hc = output(s.H, s.conv.kh, s.conv.sh, s.conv.ph), a.Wc = output(s.W, s.conv.kw, s.conv.sw, s.conv.pw);
  a.Ho = output(a.Hc, s.pool.kh, s.pool.sh, s.pool.ph), a.Wo = output(a.Wc, s.pool.kw, s.pool.sw, s.pool.pw);
  return a;
}

Values reference(const Shape& s, const Inputs& in) {
  const ConvArgs a = sizes(s);
  Values conv(s.B * a.Hc * a.Wc * s.C), out;
  for (int64_t i = 0; i < s.B * a.Hc * a.Wc * s.C; ++i) {
    const int64_t b = i / s.C / a.Wc / a.Hc, r = i / s.C / a.Wc % a.Hc, q = i / s.C % a.Wc, c = i % s.C;
    double v = in.bias[c];
    for (int64_t k = 0; k < a.K; ++k) {
      const int64_t ci = k % s.Cin, y = r * s.conv.sh - s.conv.ph + k / s.Cin / s.conv.kw;
      const int64_t x = q * s.conv.sw - s.conv.pw + k / s.Cin % s.conv.kw;
      if (y >= 0 && y < s.H && x >= 0 && x < s.W) v += in.weight[c * a.K + k] * in.x[((b * s.Cin + ci) * s.H + y) * s.W + x];
    }
    conv[i] = s.relu && v < 0 ? 0 : v;
  }
  for (int64_t i = 0; i < s.B * a.Ho * a.Wo * s.C; ++i) {
    const int64_t b = i / s.C / a.Wo / a.Ho, r = i / s.C / a.Wo % a.Ho, q = i / s.C % a.Wo, c = i % s.C;
    double top = -INFINITY;
    for (int64_t y = r * s.pool.sh - s.pool.ph; y < r * s.pool.sh - s.pool.ph + s.pool.kh; ++y)
      for (int64_t x = q * s.pool.sw - s.pool.pw; x < q * s.pool.sw - s.pool.pw + s.pool.kw; ++x)
        if (y >= 0 && y < a.Hc && x >= 0 && x < a.Wc) top = std::fmax(top, conv[((b * a.Hc + y) * a.Wc + x) * s.C + c]);
    out.push_back(top);
  }
  return out;
}

// The 16 elements of U = G w G^T and the 9 of w: the one side times the matrix of the map, for any number of columns.
Values filters(const Values& w, int64_t columns, bool back) {
  const double G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  Values out((back ? 9 : 16) * columns);
  for (int64_t e = 0; e < 16; ++e)
    for (int64_t k = 0; k < 9; ++k)
      for (int64_t c = 0; c < columns; ++c) {
        const double g = G[e / 4][k / 3] * G[e % 4][k % 3];
        back ? out[k * columns + c] += g * w[e * columns + c] : out[e * columns + c] += g * w[k * columns + c];
      }
  return out;
}

// The panels of a weight (C, K): of the weight itself, or of its 16 matrices for winograd.h.
Array weight_panels(const Shape& s, const ConvArgs& a, const Values& weight, bool transposed, bool bf, bool bf16) {
  if (!a.winograd) return packed(weight, transposed ? a.K : s.C, transposed ? s.C : a.K, transposed, 0, bf, bf16);
  Values taps(9 * s.C * s.Cin), out(16 * s.C * s.Cin);  // (9, C, Cin)
  for (int64_t c = 0; c < s.C; ++c)
    for (int64_t k = 0; k < a.K; ++k) taps[(k / s.Cin * s.C + c) * s.Cin + k % s.Cin] = weight[c * a.K + k];
  const Values U = filters(taps, s.C * s.Cin, false);  // (16, C, Cin)
  if (transposed) return packed(U, s.Cin, 16 * s.C, true, s.C, false, bf16);
  for (int64_t e = 0; e < 16; ++e)
    for (int64_t c = 0; c < s.C; ++c)
      for (int64_t i = 0; i < s.Cin; ++i) out[(c * 16 + e) * s.Cin + i] = U[(e * s.C + c) * s.Cin + i];
  return packed(out, s.C, 16 * s.Cin, false, s.Cin, false, bf16);
}

// (B, Cin, H, W) to (B, H, W, Cin), or back.
Values permuted(const Shape& s, const Values& x, bool back) {
  Values out(x.size());
  for (int64_t i = 0; i < int64_t(x.size()); ++i) {
    const int64_t pixels = s.H * s.W, b = i / pixels / s.Cin, c = i / pixels % s.Cin, p = i % pixels;
    const int64_t j = (b * pixels + p) * s.Cin + c;
    back ? out[i] = x[j] : out[j] = x[i];
  }
  return out;
}

void test_shape(const std::string& where, const Setting& set, const Shape& s) {
  Random random;
  ConvArgs a = sizes(s);
  const bool bf = set.x_bf16;
  const int64_t B = s.B, tokens = B * a.Ho * a.Wo;
  const Inputs in{random.normal(B * s.Cin * s.H * s.W, 1, 0, bf), random.normal(s.C * a.K, 1 / std::sqrt(double(a.K)), 0, bf),
                  random.normal(s.C, 0.1, 0, bf), random.normal(tokens * s.C, 1, 0, bf)};
  const Array x(s.channels_last ? permuted(s, in.x, false) : in.x, bf), dout(in.dout, bf), bias = Array::padded(in.bias);
  a.bf16 = set.bf16, a.winograd = suits_winograd(a, kTiled<BFloat16>), a.by_rows = suits_rows(a);
  const Array weight = weight_panels(s, a, in.weight, true, bf, set.bf16), out(tokens * s.C, bf);
  const bool choice = s.relu || s.pool.kh * s.pool.kw > 1;
  const Guarded winner(choice ? tokens * a.Cp : 0);
  a.x_bf16 = bf, a.channels_last = s.channels_last || s.Cin == 1;
  a.x = x.data(), a.out = out.data(), a.weight = weight.data(), a.bias = bias.floats();
  a.winner = choice ? reinterpret_cast<uint8_t*>(winner.data()) : nullptr;
  const int64_t bytes = plan_forward(a, B, set.threads);
  for_slices(B * a.bands * a.slices, set.threads, [&](int64_t, int64_t first, int64_t last) {
    const Guarded scratch(bytes);
    conv_tokenizer_forward_bands(a, first, last, scratch.data());
  });
  const double tolerance = bf || set.bf16 ? 0.02 : 1e-5;
  expect_near(where + "out", out.values(), reference(s, in), tolerance);

  for (const bool need_x : {true, false}) {
    const Array dx(int64_t(in.x.size()), bf), back = weight_panels(s, a, in.weight, false, bf, set.bf16);
    a.dout = dout.data(), a.dx = need_x ? dx.data() : nullptr, a.weight_back = back.data();
    const int64_t need = plan_backward(a, B, set.threads), stride = weight_gradient_stride(a);
    const Sums sums(set.threads, {weight_gradient_rows(a) * stride, a.Cp});
    for_slices(B * a.parts, set.threads, [&](int64_t slot, int64_t first, int64_t last) {
      const Guarded scratch(need);
      const ConvGradients g{sums.of(slot, 0), sums.of(slot, 1), stride};
      conv_tokenizer_backward_parts(a, first, last, g, scratch.data());
    });
    if (set.bf16 && choice) continue;  // rounding chooses other winners, which changes the gradient along a direction
    auto check = [&](const char* name, Values Inputs::*which, const Values& gradient) {
      Inputs moved = in;
      expect_gradient(where + name, gradient, in.*which, tolerance, [&](const Values& at) {
        moved.*which = at;
        return dot(reference(s, moved), in.dout);
      });
    };
    const bool turned = a.winograd || a.transpose_columns;
    const Values dw = a.winograd ? filters(sums.total(0), s.Cin * stride, true) : sums.total(0);
    Values dweight;
    for (int64_t i = 0; i < s.C * a.K; ++i)
      dweight.push_back(turned ? dw[i % a.K * stride + i / a.K] : dw[i / a.K * stride + i % a.K]);
    check("dweight", &Inputs::weight, dweight);
    check("dbias", &Inputs::bias, sums.total(1, s.C));
    if (need_x) check("dx", &Inputs::x, a.channels_last ? permuted(s, dx.values(), true) : dx.values());
  }
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  const Window pixel{1, 1, 1, 1, 0, 0}, pool{3, 3, 2, 2, 1, 1};
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, pixel, pool, true, false},
                         {2, 3, 9, 11, 17, {3, 3, 1, 1, 1, 1}, pool, true, false},
                         {3, 5, 7, 6, 66, {3, 2, 2, 1, 2, 0}, {2, 3, 1, 2, 1, 0}, false, true},
                         {1, 2, 12, 8, 9, {4, 4, 4, 4, 0, 0}, pixel, false, false},
                         {2, 9, 6, 5, 3, {5, 5, 1, 2, 2, 2}, pool, true, true},
                         {2, 48, 5, 7, 66, {3, 3, 1, 1, 2, 1}, pool, true, false},
                         {1, 32, 4, 3, 5, {3, 3, 1, 1, 1, 0}, pixel, false, true},
                         {1, 96, 5, 5, 66, {3, 3, 1, 1, 1, 1}, pixel, false, true},
                         {1, 32, 6, 15, 65, {7, 7, 2, 1, 3, 0}, pool, true, true},
                         {1, 32, 5, 12, 65, {7, 7, 3, 1, 2, 1}, pixel, false, false},
                         {1, 3, 13, 7, 5, {2, 2, 5, 5, 0, 0}, {2, 2, 1, 1, 1, 1}, true, false}})
    test_shape(where, set, s);
}

}  // namespace cct
