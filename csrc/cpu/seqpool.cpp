// SeqPool with the final LayerNorm folded in:  y = LN(x) or x,  out = softmax(y w over the tokens)^T y.
//
// With xhat = (x - mean) * rstd, g the norm weight and b its bias, only xhat depends on the token, so
//   score_n = xhat_n . (g w) + const                       pooled = g * sum_n p_n xhat_n + b
// and backward, with t_n = xhat_n . (g dout), D = sum_n p_n t_n, ds_n = p_n (t_n - D), U = sum_n p_n xhat_n, V = sum_n ds_n
// xhat_n:
//   dw = g * V     dg = dout * U + w * V     db = dout     (sum p = 1, sum ds = 0)
// Rounding leaves sum ds a little off zero, by about eps D, which would shift V by that times U: it is summed and taken out.
//   dx_n = rstd_n * (p_n (g dout) + ds_n (g w) - A_n - xhat_n * E_n),  A and E the means that LayerNorm subtracts.
// The bias of the score is inert: it is not even read, and its gradient is zero.
#include <cstdint>

#include "isa.h"

namespace cct {

// One pass over tokens [n0, n1) of image b. All tensors are contiguous; f32 pointers hold float32 whatever the dtype of x.
struct SeqPoolArgs {
  bool bf16;
  int64_t N, C, width;  // width: C rounded up to whole vectors
  float eps;
  bool norm;
  const void* x;                     // (B, N, C)
  const float *score_weight, *gout;  // g w (width), padded with zeros; g dout of this image (width)
  float *mean, *rstd;                // (B, N), written by forward, read by backward; unused without norm
  float *prob, *t;                   // (B, N) scores, then p; t (backward)
  const float* lse;                  // (B)
  void* dx;                          // (B, N, C)
};

CCT_DECLARE(void seqpool_forward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float* partial, float* row))
CCT_DECLARE(void seqpool_backward_scores(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, double* partial, float* row))
CCT_DECLARE(void seqpool_backward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float D, float sum_p,
                                         float sum_gout, float sum_score_weight, float* U, float* V, float* sum_ds, float* row))

}  // namespace cct

#if defined(CCT_ISA)  // ------------------------------------------------------------------------------ kernels, once per set
#include "layernorm.h"

namespace cct::CCT_ISA {
namespace {

CCT_INLINE float dot(const float* a, const float* b, int64_t width) {
  Vec total = {};
  for (int64_t c = 0; c < width; c += kLanes) total += load(a + c) * load(b + c);
  return sum(total);
}

// The normalised row n of image b, from saved statistics.
template <typename T>
CCT_INLINE void saved_row(const SeqPoolArgs& a, int64_t token, float* row) {
  load_row(static_cast<const T*>(a.x) + token * a.C, a.C, row);
  if (a.norm) normalise(row, a.C, a.mean[token], a.rstd[token]);
}

CCT_INLINE float exp_scalar(float x) { return exp(set(x))[0]; }

// partial = [max, sum of exp, sum of exp * xhat (width)], the online softmax over these tokens.
template <typename T>
void forward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float* partial, float* row) {
  float running_max = -3.4028235e38f, running_sum = 0.f;  // finite: a score of -inf counts nothing
  float* acc = partial + 2;
  for (int64_t c = 0; c < a.width; c += kLanes) store(acc + c, Vec{});
  for (int64_t n = n0; n < n1; ++n) {
    const int64_t token = b * a.N + n;
    const float mean = load_row(static_cast<const T*>(a.x) + token * a.C, a.C, row) / float(a.C);
    if (a.norm) {
      const float rstd = rstd_of(row, a.C, mean, a.eps);
      normalise(row, a.C, mean, rstd);
      a.mean[token] = mean;
      a.rstd[token] = rstd;
    }
    const float score = dot(row, a.score_weight, a.width);
    if (!(score <= running_max)) {  // also for NaN, which must reach the output
      const float scale = running_sum == 0.f ? 0.f : exp_scalar(running_max - score);
      running_sum = running_sum * scale + 1.f;
      running_max = score;
      for (int64_t c = 0; c < a.width; c += kLanes) store(acc + c, load(acc + c) * scale + load(row + c));
    } else {
      const float p = exp_scalar(score - running_max);
      running_sum += p;
      for (int64_t c = 0; c < a.width; c += kLanes) store(acc + c, load(acc + c) + load(row + c) * p);
    }
  }
  partial[0] = running_max;
  partial[1] = running_sum;
}

// p and t of these tokens; partial = the sums of p t and of p. The latter is 1 but for the rounding of lse, common to all p.
template <typename T>
void backward_scores(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, double* partial, float* row) {
  partial[0] = partial[1] = 0;
  for (int64_t n = n0; n < n1; ++n) {
    const int64_t token = b * a.N + n;
    saved_row<T>(a, token, row);
    const float p = exp_scalar(dot(row, a.score_weight, a.width) - a.lse[b]);
    const float t = dot(row, a.gout, a.width);
    a.prob[token] = p;
    a.t[token] = t;
    partial[0] += double(p) * t;
    partial[1] += p;
  }
}

template <typename T>
void backward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float D, float sum_p, float sum_gout,
                     float sum_score_weight, float* U, float* V, float* sum_ds, float* row) {
  float total_ds = 0.f;
  for (int64_t n = n0; n < n1; ++n) {
    const int64_t token = b * a.N + n;
    saved_row<T>(a, token, row);
    const float p = a.prob[token] / sum_p, ds = p * (a.t[token] - D);
    total_ds += ds;
    float scale = 1.f, shift = 0.f, slope = 0.f;
    if (a.norm) {  // score_n = xhat . (g w), recovered from the saved row rather than stored
      const float score = dot(row, a.score_weight, a.width);
      scale = a.rstd[token];
      shift = (p * sum_gout + ds * sum_score_weight) / float(a.C);
      slope = (p * a.t[token] + ds * score) / float(a.C);
    }
    T* dx = static_cast<T*>(a.dx) + token * a.C;
    for (int64_t c = 0; c < a.C; c += kLanes) {
      const Vec xhat = load(row + c);
      store(U + c, load(U + c) + xhat * p);
      store(V + c, load(V + c) + xhat * ds);
      const Vec out = (load(a.gout + c) * p + load(a.score_weight + c) * ds - shift - xhat * slope) * scale;
      if (c + kLanes <= a.C)
        store(dx + c, out);
      else
        store_part(dx + c, out, int(a.C - c));
    }
  }
  *sum_ds = total_ds;
}

}  // namespace

void seqpool_forward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float* partial, float* row) {
  a.bf16 ? forward_tokens<BFloat16>(a, b, n0, n1, partial, row) : forward_tokens<float>(a, b, n0, n1, partial, row);
}

void seqpool_backward_scores(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, double* partial, float* row) {
  a.bf16 ? backward_scores<BFloat16>(a, b, n0, n1, partial, row) : backward_scores<float>(a, b, n0, n1, partial, row);
}

void seqpool_backward_tokens(const SeqPoolArgs& a, int64_t b, int64_t n0, int64_t n1, float D, float sum_p, float sum_gout,
                             float sum_score_weight, float* U, float* V, float* sum_ds, float* row) {
  a.bf16 ? backward_tokens<BFloat16>(a, b, n0, n1, D, sum_p, sum_gout, sum_score_weight, U, V, sum_ds, row)
         : backward_tokens<float>(a, b, n0, n1, D, sum_p, sum_gout, sum_score_weight, U, V, sum_ds, row);
}

}  // namespace cct::CCT_ISA

#else  // ----------------------------------------------------------------------------------------- checks, threads,
       // registration
#include "forward.h"

namespace cct {
namespace {

constexpr const char* kOp = "seqpool";
constexpr int64_t kLineFloats = 16;      // rows of scratch start on cache lines
constexpr int64_t kTokensPerChunk = 16;  // least work worth a thread of its own

int64_t padded(int64_t C) { return (C + kLineFloats - 1) / kLineFloats * kLineFloats; }

// Small batches are cut along the tokens as well, so that every thread has work.
int64_t chunks_per_image(int64_t B, int64_t N) {
  const int64_t threads = at::get_num_threads();
  if (B == 0 || B >= threads) return 1;
  return std::max<int64_t>(1, std::min((threads + B - 1) / B, N / kTokensPerChunk));
}

// g * v as float32, padded with zeros to whole vectors, one row for each row of v.
std::vector<float> scaled_rows(const at::Tensor& v, const OptionalTensor& norm_weight, int64_t rows, int64_t C) {
  const at::Tensor values = (norm_weight ? v.to(at::kFloat) * norm_weight->to(at::kFloat) : v.to(at::kFloat)).contiguous();
  std::vector<float> out(rows * padded(C), 0.f);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(values.const_data_ptr<float>() + r * C, C, out.data() + r * padded(C));
  return out;
}

float total(const float* values, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += values[i];
  return float(sum);
}

void check_inputs(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& norm_weight,
                  const OptionalTensor& norm_bias) {
  TORCH_CHECK_VALUE(x.dim() == 3, kOp, ": x has ", x.dim(), " dimensions; expected 3");
  check_dtype(kOp, "x", x);
  const int64_t C = x.size(2);
  TORCH_CHECK_VALUE(x.size(1) > 0 && C > 0, kOp, ": x has shape ", x.sizes(), "; expected at least one token and one channel");
  check_tensor(kOp, "x", x, x.sizes(), x.scalar_type());
  check_tensor(kOp, "weight", weight, {1, C}, x.scalar_type());
  check_tensor(kOp, "norm_weight", norm_weight, {C}, x.scalar_type());
  check_tensor(kOp, "norm_bias", norm_bias, {C}, x.scalar_type());
  TORCH_CHECK_VALUE(norm_weight || !norm_bias, kOp, ": norm_bias given without norm_weight");
}

SeqPoolArgs make_args(const at::Tensor& x, bool norm) {
  SeqPoolArgs a{};
  a.bf16 = x.scalar_type() == at::kBFloat16;
  a.N = x.size(1);
  a.C = x.size(2);
  a.width = padded(a.C);
  a.norm = norm;
  a.x = x.const_data_ptr();
  return a;
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> seqpool_forward(const at::Tensor& x_in, const at::Tensor& weight,
                                                                           const OptionalTensor& norm_weight,
                                                                           const OptionalTensor& norm_bias, double eps) {
  check_inputs(x_in, weight, norm_weight, norm_bias);
  const at::Tensor x = x_in.contiguous();
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
  const bool norm = norm_weight.has_value();
  const auto f32 = x.options().dtype(at::kFloat);
  at::Tensor pooled = at::empty({B, C}, f32), lse = at::empty({B}, f32);
  at::Tensor mean = at::empty({norm ? B : 0, N}, f32), rstd = at::empty({norm ? B : 0, N}, f32);
  const std::vector<float> score_weight = scaled_rows(weight, norm_weight, 1, C);

  SeqPoolArgs a = make_args(x, norm);
  a.eps = float(eps);
  a.score_weight = score_weight.data();
  a.mean = mean.data_ptr<float>();
  a.rstd = rstd.data_ptr<float>();
  const int64_t chunks = chunks_per_image(B, N), stride = a.width + kLineFloats;
  std::vector<float> partials(B * chunks * stride);
  for_slices(B * chunks, [&](int64_t first, int64_t last, int64_t) {
    std::vector<float> row(a.width, 0.f);
    for (int64_t i = first; i < last; ++i) {
      const int64_t b = i / chunks, k = i % chunks;
      CCT_CALL(seqpool_forward_tokens, a, b, k * N / chunks, (k + 1) * N / chunks, partials.data() + i * stride, row.data());
    }
  });
  for (int64_t b = 0; b < B; ++b) {  // join the chunks of an image
    const float* part = partials.data() + b * chunks * stride;
    float top = part[0];
    for (int64_t k = 1; k < chunks; ++k) top = std::max(top, part[k * stride]);
    double sum = 0;
    float* out = pooled.data_ptr<float>() + b * C;
    std::fill_n(out, C, 0.f);
    for (int64_t k = 0; k < chunks; ++k) {
      const float scale = std::exp(part[k * stride] - top);
      sum += double(part[k * stride + 1]) * scale;
      for (int64_t c = 0; c < C; ++c) out[c] += part[k * stride + 2 + c] * scale;
    }
    for (int64_t c = 0; c < C; ++c) out[c] = float(out[c] / sum);
    lse.data_ptr<float>()[b] = top + float(std::log(sum));
  }
  if (norm) pooled.mul_(norm_weight->to(at::kFloat));
  if (norm_bias) pooled.add_(norm_bias->to(at::kFloat));
  return {pooled.to(x.scalar_type()), lse, mean, rstd};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> seqpool_backward(
    const at::Tensor& dout, const at::Tensor& x_in, const at::Tensor& weight, const OptionalTensor& norm_weight,
    const OptionalTensor& norm_bias, const at::Tensor& lse, const at::Tensor& mean_in, const at::Tensor& rstd_in) {
  check_inputs(x_in, weight, norm_weight, norm_bias);
  const at::Tensor x = x_in.contiguous(), mean = mean_in.contiguous(), rstd = rstd_in.contiguous(), lse_c = lse.contiguous();
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2);
  const bool norm = norm_weight.has_value();
  check_tensor(kOp, "dout", dout, {B, C}, x.scalar_type());
  check_tensor(kOp, "lse", lse, {B}, at::kFloat);
  check_tensor(kOp, "mean", mean, {norm ? B : 0, N}, at::kFloat);
  check_tensor(kOp, "rstd", rstd, {norm ? B : 0, N}, at::kFloat);
  const auto f32 = x.options().dtype(at::kFloat);
  at::Tensor dx = pooled_empty(x.sizes(), x.scalar_type()), prob = at::empty({B, N}, f32), t = at::empty({B, N}, f32);
  const std::vector<float> score_weight = scaled_rows(weight, norm_weight, 1, C), gout = scaled_rows(dout, norm_weight, B, C);

  SeqPoolArgs a = make_args(x, norm);
  a.score_weight = score_weight.data();
  a.mean = mean.data_ptr<float>();
  a.rstd = rstd.data_ptr<float>();
  a.prob = prob.data_ptr<float>();
  a.t = t.data_ptr<float>();
  a.lse = lse_c.const_data_ptr<float>();
  a.dx = dx.data_ptr();
  const int64_t chunks = chunks_per_image(B, N), W = a.width;
  const float sum_score_weight = total(score_weight.data(), C);
  std::vector<double> sums_of_scores(2 * B * chunks);              // of p t and of p of each chunk
  std::vector<float> ds(B * chunks), UV(B * chunks * 2 * W, 0.f);  // U and V of each chunk

  auto scores = [&](int64_t i, float* row) {
    SeqPoolArgs image = a;
    image.gout = gout.data() + i / chunks * W;
    CCT_CALL(seqpool_backward_scores, image, i / chunks, i % chunks * N / chunks, (i % chunks + 1) * N / chunks,
             &sums_of_scores[2 * i], row);
  };
  auto tokens = [&](int64_t i, float* row) {
    SeqPoolArgs image = a;
    const int64_t b = i / chunks;
    image.gout = gout.data() + b * W;
    double pt = 0, p = 0;
    for (int64_t k = b * chunks; k < (b + 1) * chunks; ++k) pt += sums_of_scores[2 * k], p += sums_of_scores[2 * k + 1];
    CCT_CALL(seqpool_backward_tokens, image, b, i % chunks * N / chunks, (i % chunks + 1) * N / chunks, float(pt / p), float(p),
             total(image.gout, C), sum_score_weight, UV.data() + i * 2 * W, UV.data() + (i * 2 + 1) * W, &ds[i], row);
  };
  for_slices(B * chunks, [&](int64_t first, int64_t last, int64_t) {
    std::vector<float> row(W, 0.f);
    for (int64_t i = first; i < last; ++i) {
      scores(i, row.data());
      if (chunks == 1) tokens(i, row.data());  // the image is still in cache
    }
  });
  if (chunks > 1)
    for_slices(B * chunks, [&](int64_t first, int64_t last, int64_t) {
      std::vector<float> row(W, 0.f);
      for (int64_t i = first; i < last; ++i) tokens(i, row.data());
    });

  const at::Tensor sums = at::from_blob(UV.data(), {B, chunks, 2, W}, f32).sum(1).narrow(2, 0, C);           // (B, 2, C)
  const at::Tensor U = sums.select(1, 0), sum_ds = at::from_blob(ds.data(), {B, chunks}, f32).sum(1, true);  // (B, C), (B, 1)
  const at::Tensor V_total = (sums.select(1, 1) - sum_ds * U).sum(0);
  const at::Tensor dweight = (norm ? V_total * norm_weight->to(at::kFloat) : V_total).unsqueeze(0).to(x.scalar_type());
  const at::Tensor dout32 = dout.to(at::kFloat);
  const at::Tensor dnorm_weight =
      norm ? ((dout32 * U).sum(0) + weight[0].to(at::kFloat) * V_total).to(x.scalar_type()) : at::empty({0}, x.options());
  const at::Tensor dnorm_bias = norm_bias ? dout32.sum(0).to(x.scalar_type()) : at::empty({0}, x.options());
  return {dx, dweight, dnorm_weight, dnorm_bias};
}

}  // namespace
}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) {
  m.impl("seqpool_forward", TORCH_FN(cct::seqpool_forward));
  m.impl("seqpool_backward", TORCH_FN(cct::seqpool_backward));
}
#endif
