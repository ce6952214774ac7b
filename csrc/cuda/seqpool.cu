// SeqPool with the final LayerNorm folded in:  y = LN(x) or x,  out = softmax(y w over the tokens)^T y.
// The mathematics of both passes, in the same letters, stands at the top of csrc/cpu/seqpool.cpp.
//
// A token belongs to a group of G threads with E channels in registers each; the groups of a block walk through the tokens of
// one chunk of an image. An image is one chunk when there are images enough to fill the GPU, else it is cut.
// All sums are float32 in a fixed order, without atomics: results are the same from run to run.
#include <algorithm>

#include "common.cuh"
#include "rows.cuh"

namespace cct {
namespace {

constexpr const char* kOp = "seqpool";
constexpr int kThreads = 256;        // of a block
constexpr int kWideThreads = 512;    // where the whole block is one group
constexpr int kMaxChannels = 8192;   // = kWideThreads * 16
constexpr int kTokensPerChunk = 32;  // least work worth a block of its own
// Blocks for each multiprocessor that one pass asks for; images are cut until there are as many. More warps hide more latency,
// but backward reads a cut image twice, so it cuts only as many images as L2 holds.
constexpr int kForwardBlocks = 4, kBackwardBlocks = 2;
// Blocks that share a multiprocessor: what registers are limited to, and shared memory is divided by.
constexpr int kForwardResident = 4, kBackwardResident = 3;
constexpr int kSharedReserve = 2048;  // bytes of a block's shared memory for the driver (1 KiB) and small arrays

// Fewer where a thread has more channels.
constexpr int blocks_in_registers(int E, int threads, int most) {
  return E <= 8 ? most : E <= 16 && threads <= kThreads ? 2 : 1;
}

struct Params {
  int N, C, chunks;
  bool vectorised;  // rows start on 16 bytes
  float eps;
  const void *x, *weight, *norm_weight, *norm_bias, *dout;  // norm_weight, norm_bias: or nullptr
  void *out, *dx;
  float *lse, *mean, *rstd;  // (B), (B, N); mean and rstd nullptr without norm. Written by forward, read by backward
  float* partials;           // of cut images: (B, chunks, C + 2) sum of exp * xhat, max and sum of exp in forward,
                             // (B, chunks, 2 C + 1) V, U and sum of ds in backward
  float* delta;              // (B, chunks) of cut images, each chunk's part of D
  float* sums;               // (B, 3, C), the terms of the parameter gradients of each image
  int resident;              // trips whose rows backward keeps in shared memory for its second pass

  __device__ int first_token(int chunk) const { return int(int64_t(chunk) * N / chunks); }
};

// The place of a thread: its group, its lane there, and the tokens of its block.
template <typename T, int G, int Threads>
struct Place {
  static constexpr int kGroups = Threads / G;
  int group = threadIdx.x / G, lane = threadIdx.x % G, b, chunk, n0, n1;
  const T* x;

  explicit __device__ Place(const Params& a) : b(blockIdx.x / a.chunks), chunk(blockIdx.x % a.chunks) {
    n0 = a.first_token(chunk);
    n1 = a.first_token(chunk + 1);
    x = static_cast<const T*>(a.x) + int64_t(b) * a.N * a.C;
  }
};

// The rows of this thread's tokens, one for each trip. Where registers allow it, the next one is on its way meanwhile.
template <typename T, int G, int E, int Threads>
struct Rows {
  using ThisRow = Row<T, G, E>;
  static constexpr bool kPrefetch = E <= 8;
  const Params& a;
  const Place<T, G, Threads>& at;
  const ThisRow* tile;  // the first `resident` trips are read from here
  int resident, fetched = 0;
  ThisRow next;

  __device__ Rows(const Params& a, const Place<T, G, Threads>& at, const ThisRow* tile = nullptr, int resident = 0)
      : a(a), at(at), tile(tile), resident(resident) {
    if constexpr (kPrefetch) fetch();
  }

  __device__ void fetch() {
    if (fetched < resident) {
      next = tile[fetched * Threads + threadIdx.x];
    } else {  // beyond the last token: the last one again, never used
      const int n = min(at.n0 + fetched * at.kGroups + at.group, at.n1 - 1);
      next.load(at.x + int64_t(n) * a.C, a.C, at.lane, a.vectorised);
    }
    ++fetched;
  }

  __device__ ThisRow take() {
    if constexpr (!kPrefetch) fetch();
    const ThisRow row = next;
    if constexpr (kPrefetch) fetch();
    return row;
  }
};

// g * v in this thread's channels, zeros behind C; g counts as 1 without norm.
template <typename T, int G, int E>
__device__ void load_scaled(const Params& a, const void* v, int lane, float (&out)[E]) {
  Row<T, G, E> row, scale;
  row.load(static_cast<const T*>(v), a.C, lane, a.vectorised);
  if (a.norm_weight) scale.load(static_cast<const T*>(a.norm_weight), a.C, lane, a.vectorised);
#pragma unroll
  for (int i = 0; i < E; ++i) out[i] = a.norm_weight ? row.get(i) * scale.get(i) : row.get(i);
}

// f(c, sum of the groups' values in channel c), each c by one thread. buffer: Threads * E floats, free again at the end.
template <typename T, int G, int E, int Threads, typename F>
__device__ void join_groups(const Place<T, G, Threads>& at, int C, float* buffer, const float (&values)[E], F f) {
#pragma unroll
  for (int i = 0; i < E; ++i) buffer[at.group * G * E + Row<T, G, E>::channel(i, at.lane)] = values[i];
  __syncthreads();
  for (int c = threadIdx.x; c < C; c += Threads) {
    float sum = 0.f;
    for (int g = 0; g < at.kGroups; ++g) sum += buffer[g * G * E + c];
    f(c, sum);
  }
  __syncthreads();
}

// The sum over the groups of what all lanes of a group agree on.
template <typename T, int G, int Threads>
__device__ float total_of_groups(const Place<T, G, Threads>& at, float value) {
  __shared__ float parts[at.kGroups];
  __syncthreads();  // the last call has been read
  if (at.lane == 0) parts[at.group] = value;
  __syncthreads();
  float sum = 0.f;
  for (int g = 0; g < at.kGroups; ++g) sum += parts[g];
  return sum;
}

// ---- forward ----

template <typename T>
__device__ void write_output(const Params& a, int b, int c, float pooled, float top, float total) {
  float y = pooled / total;
  if (a.norm_weight) y *= to_float(static_cast<const T*>(a.norm_weight)[c]);
  if (a.norm_bias) y += to_float(static_cast<const T*>(a.norm_bias)[c]);
  static_cast<T*>(a.out)[int64_t(b) * a.C + c] = from_float<T>(y);
  if (c == 0) a.lse[b] = top + logf(total);
}

// One block for each chunk: an online softmax in each group, then the groups are joined.
template <typename T, int G, int E, int Threads>
__global__ void __launch_bounds__(Threads, blocks_in_registers(E, Threads, kForwardResident)) seqpool_forward_kernel(Params a) {
  using ThisRow = Row<T, G, E>;
  const Place<T, G, Threads> at(a);
  constexpr int kGroups = at.kGroups;
  __shared__ float tops[kGroups], totals[kGroups], buffer[Threads * E];

  float score_weight[E], acc[E] = {};
  load_scaled<T, G>(a, a.weight, at.lane, score_weight);
  float top = -3.4028235e38f, total = 0.f;  // finite: a score of -inf counts nothing
  Rows<T, G, E, Threads> rows(a, at);
  for (int first = at.n0; first < at.n1; first += kGroups) {  // as many trips in each group: group_sum needs whole warps
    const int n = first + at.group;
    const ThisRow row = rows.take();
    float mean[1] = {}, rstd = 1.f, sum[2] = {};  // sums of squares and of d * score_weight, d = x - mean
    if (a.mean) {
#pragma unroll
      for (int i = 0; i < E; ++i) mean[0] += row.get(i);
      group_sum<G>(mean);
      mean[0] /= float(a.C);
    }
#pragma unroll
    for (int i = 0; i < E; ++i) {
      const float d = row.get(i) - mean[0];
      sum[0] += ThisRow::channel(i, at.lane) < a.C ? d * d : 0.f;
      sum[1] += d * score_weight[i];
    }
    group_sum<G>(sum);
    if (a.mean) rstd = rsqrtf(sum[0] / float(a.C) + a.eps);
    if (n < at.n1) {
      const float score = sum[1] * rstd;
      if (!(score <= top)) {  // also for NaN, which must reach the output
        const float scale = expf(top - score);
        top = score;
        total *= scale;
#pragma unroll
        for (int i = 0; i < E; ++i) acc[i] *= scale;
      }
      const float p = expf(score - top), q = p * rstd;
      total += p;
#pragma unroll
      for (int i = 0; i < E; ++i) acc[i] += q * (row.get(i) - mean[0]);
      if (a.mean && at.lane == 0) {
        a.mean[int64_t(at.b) * a.N + n] = mean[0];
        a.rstd[int64_t(at.b) * a.N + n] = rstd;
      }
    }
  }

  if (at.lane == 0) tops[at.group] = top, totals[at.group] = total;
  __syncthreads();
  float block_top = tops[0], block_total = 0.f;
  for (int g = 1; g < kGroups; ++g) block_top = fmaxf(block_top, tops[g]);
  for (int g = 0; g < kGroups; ++g) block_total += totals[g] * expf(tops[g] - block_top);
  const float scale = expf(top - block_top);
#pragma unroll
  for (int i = 0; i < E; ++i) acc[i] *= scale;
  join_groups<T, G, E>(at, a.C, buffer, acc, [&](int c, float sum) {
    if (a.chunks == 1) return write_output<T>(a, at.b, c, sum, block_top, block_total);
    float* partial = a.partials + blockIdx.x * int64_t(a.C + 2);
    partial[c] = sum;
    if (c == 0) partial[a.C] = block_top, partial[a.C + 1] = block_total;
  });
}

// One block for each image joins its chunks.
template <typename T>
__global__ void __launch_bounds__(kThreads) seqpool_forward_join_kernel(Params a) {
  const float* partials = a.partials + int64_t(blockIdx.x) * a.chunks * (a.C + 2);
  auto top_of = [&](int k) { return partials[int64_t(k) * (a.C + 2) + a.C]; };
  float top = top_of(0), total = 0.f;
  for (int k = 1; k < a.chunks; ++k) top = fmaxf(top, top_of(k));
  for (int k = 0; k < a.chunks; ++k) total += partials[int64_t(k) * (a.C + 2) + a.C + 1] * expf(top_of(k) - top);
  for (int c = threadIdx.x; c < a.C; c += kThreads) {
    float sum = 0.f;
    for (int k = 0; k < a.chunks; ++k) sum += partials[int64_t(k) * (a.C + 2) + c] * expf(top_of(k) - top);
    write_output<T>(a, blockIdx.x, c, sum, top, total);
  }
}

// ---- backward ----

// What both passes need of a token: its row, p, t and its score.
template <typename T, int G, int E>
struct Token {
  float p, t, score, mean = 0.f, rstd = 1.f;

  __device__ Token(const Params& a, int b, int n, const Row<T, G, E>& row, const float (&score_weight)[E],
                   const float (&gout)[E]) {
    if (a.mean) mean = a.mean[int64_t(b) * a.N + n], rstd = a.rstd[int64_t(b) * a.N + n];
    float dots[2] = {};
#pragma unroll
    for (int i = 0; i < E; ++i) {
      const float d = row.get(i) - mean;
      dots[0] += d * score_weight[i];
      dots[1] += d * gout[i];
    }
    group_sum<G>(dots);
    score = dots[0] * rstd;
    t = dots[1] * rstd;
    p = expf(score - a.lse[b]);
  }
};

// D of this block's tokens: the sum of p * t. The rows of the first a.resident trips stay in `tile`, each in its thread's
// place.
template <typename T, int G, int E, int Threads>
__device__ float delta_pass(const Params& a, const Place<T, G, Threads>& at, const float (&score_weight)[E],
                            const float (&gout)[E], Row<T, G, E>* tile) {
  Rows<T, G, E, Threads> rows(a, at);
  float sum = 0.f;
  for (int first = at.n0, trip = 0; first < at.n1; first += at.kGroups, ++trip) {
    const Row<T, G, E> row = rows.take();
    if (trip < a.resident) tile[trip * Threads + threadIdx.x] = row;
    const Token<T, G, E> token(a, at.b, min(first + at.group, at.n1 - 1), row, score_weight, gout);
    if (first + at.group < at.n1) sum += token.p * token.t;
  }
  return total_of_groups(at, sum);
}

template <typename T, int G, int E, int Threads>
__global__ void __launch_bounds__(Threads) seqpool_backward_delta_kernel(Params a) {
  const Place<T, G, Threads> at(a);
  float score_weight[E], gout[E];
  load_scaled<T, G>(a, a.weight, at.lane, score_weight);
  load_scaled<T, G>(a, static_cast<const T*>(a.dout) + int64_t(at.b) * a.C, at.lane, gout);
  const float delta = delta_pass<T, G, E>(a, at, score_weight, gout, nullptr);
  if (threadIdx.x == 0) a.delta[blockIdx.x] = delta;
}

// The terms that the parameter gradients sum over the images. Rounding leaves the sum of ds a little off zero, by about eps D,
// which would shift V by that times U: it is taken out.
template <typename T>
__device__ void write_sums(const Params& a, int b, int c, float V, float U, float sum_ds) {
  const float dout = to_float(static_cast<const T*>(a.dout)[int64_t(b) * a.C + c]);
  float* sums = a.sums + int64_t(b) * 3 * a.C;
  sums[c] = V - sum_ds * U;
  sums[a.C + c] = dout * U;
  sums[2 * a.C + c] = dout;
}

// dx, and V, U and the sum of ds of this chunk.
template <typename T, int G, int E, int Threads>
__global__ void __launch_bounds__(Threads, blocks_in_registers(E, Threads, kBackwardResident))
    seqpool_backward_kernel(Params a) {
  using ThisRow = Row<T, G, E>;
  const Place<T, G, Threads> at(a);
  constexpr int kGroups = at.kGroups;
  __shared__ float buffer[Threads * E];
  CCT_DYNAMIC_SHARED(dynamic_shared);
  ThisRow* tile = reinterpret_cast<ThisRow*>(dynamic_shared);

  float score_weight[E], gout[E], sums[2] = {}, U[E] = {}, V[E] = {}, sum_ds = 0.f;
  load_scaled<T, G>(a, a.weight, at.lane, score_weight);
  load_scaled<T, G>(a, static_cast<const T*>(a.dout) + int64_t(at.b) * a.C, at.lane, gout);
#pragma unroll
  for (int i = 0; i < E; ++i) sums[0] += gout[i], sums[1] += score_weight[i];
  group_sum<G>(sums);

  float delta = 0.f;
  if (a.chunks == 1)
    delta = delta_pass<T, G, E>(a, at, score_weight, gout, tile);
  else
    for (int k = 0; k < a.chunks; ++k) delta += a.delta[int64_t(at.b) * a.chunks + k];

  Rows<T, G, E, Threads> rows(a, at, tile, a.resident);
  for (int first = at.n0; first < at.n1; first += kGroups) {
    const int n = min(first + at.group, at.n1 - 1);
    const ThisRow row = rows.take();
    ThisRow dx;
    const Token<T, G, E> token(a, at.b, n, row, score_weight, gout);
    if (first + at.group >= at.n1) break;  // the last trip
    const float ds = token.p * (token.t - delta);
    sum_ds += ds;
    float shift = 0.f, slope = 0.f;  // what LayerNorm subtracts: the mean, and the part along xhat
    if (a.mean) {
      shift = (token.p * sums[0] + ds * sums[1]) / float(a.C);
      slope = (token.p * token.t + ds * token.score) / float(a.C);
    }
#pragma unroll
    for (int i = 0; i < E; ++i) {
      const float xhat = (row.get(i) - token.mean) * token.rstd;
      U[i] += token.p * xhat;
      V[i] += ds * xhat;
      dx.set(i, (token.p * gout[i] + ds * score_weight[i] - shift - xhat * slope) * token.rstd);
    }
    dx.store(static_cast<T*>(a.dx) + (int64_t(at.b) * a.N + n) * a.C, a.C, at.lane, a.vectorised);
  }

  sum_ds = total_of_groups(at, sum_ds);
  float* partial = a.chunks == 1 ? a.sums + int64_t(at.b) * 3 * a.C : a.partials + blockIdx.x * (2 * int64_t(a.C) + 1);
  join_groups<T, G, E>(at, a.C, buffer, V, [&](int c, float sum) { partial[c] = sum; });
  join_groups<T, G, E>(at, a.C, buffer, U, [&](int c, float sum) {
    if (a.chunks == 1) return write_sums<T>(a, at.b, c, partial[c], sum, sum_ds);
    partial[a.C + c] = sum;
    if (c == 0) partial[2 * a.C] = sum_ds;
  });
}

// One block for each image joins its chunks.
template <typename T>
__global__ void __launch_bounds__(kThreads) seqpool_backward_join_kernel(Params a) {
  const int64_t stride = 2 * int64_t(a.C) + 1;
  const float* partials = a.partials + int64_t(blockIdx.x) * a.chunks * stride;
  auto total = [&](int i) {
    float sum = 0.f;
    for (int k = 0; k < a.chunks; ++k) sum += partials[k * stride + i];
    return sum;
  };
  const float sum_ds = total(2 * a.C);
  for (int c = threadIdx.x; c < a.C; c += kThreads) write_sums<T>(a, blockIdx.x, c, total(c), total(a.C + c), sum_ds);
}

// The parameter gradients from (rows, 3, C) sums:  dw = g * V,  dg = dout * U + w * V,  db = dout.
template <typename T>
__global__ void __launch_bounds__(kSumColumns* kSumRows)
    seqpool_parameter_gradients_kernel(Params a, const float* sums, int rows, T* dweight, T* dnorm_weight, T* dnorm_bias) {
  const int c = blockIdx.x * kSumColumns + threadIdx.x;
  float total[3];
  for (int i = 0; i < 3; ++i) total[i] = column_sum(sums, 0, c < a.C ? rows : 0, int64_t(3) * a.C, int64_t(i) * a.C + c);
  if (threadIdx.y != 0 || c >= a.C) return;
  const float g = a.norm_weight ? to_float(static_cast<const T*>(a.norm_weight)[c]) : 1.f;
  dweight[c] = from_float<T>(g * total[0]);
  if (dnorm_weight) dnorm_weight[c] = from_float<T>(total[1] + to_float(static_cast<const T*>(a.weight)[c]) * total[0]);
  if (dnorm_bias) dnorm_bias[c] = from_float<T>(total[2]);
}

// ---- launches ----

template <typename T>
struct Type {
  using type = T;
};
template <int G_, int E_, int Threads_>
struct Layout {
  static constexpr int G = G_, E = E_, Threads = Threads_;
};

template <typename F>
void with_dtype(ScalarType dtype, F f) {
  if (dtype == ScalarType::Float) return f(Type<float>());
  if (dtype == ScalarType::Half) return f(Type<__half>());
  f(Type<__nv_bfloat16>());
}

// f(dtype, layout) with the narrowest layout that holds C channels.
template <typename F>
void with_layout(ScalarType dtype, int C, F f) {
  with_dtype(dtype, [&](auto type) {
    if (C <= 128) return f(type, Layout<16, 8, kThreads>());
    if (C <= 256) return f(type, Layout<32, 8, kThreads>());
    if (C <= 512) return f(type, Layout<32, 16, kThreads>());
    if (C <= 1024) return f(type, Layout<32, 32, kThreads>());
    f(type, Layout<kWideThreads, 16, kWideThreads>());
  });
}

int chunks_per_image(int64_t B, int64_t N, int64_t wanted_blocks) {
  return B == 0 ? 1 : int(std::max<int64_t>(1, std::min(wanted_blocks / B, N / kTokensPerChunk)));
}

void check_inputs(const Tensor& x, const Tensor& weight, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias) {
  check(x.dim() == 3, kOp, ": x has ", x.dim(), " dimensions; expected 3");
  const ScalarType dtype = x.scalar_type();
  check(dtype == ScalarType::Float || dtype == ScalarType::Half || dtype == ScalarType::BFloat16, kOp, ": x has dtype ",
        dtype_text(dtype), "; expected float32, float16 or bfloat16");
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), most = INT32_MAX / 2;
  check(B <= most && N > 0 && N <= most && C > 0 && C <= kMaxChannels, kOp, ": x has shape ", shape_text(x.sizes()),
        "; expected 1 to 2^30 - 1 tokens, 1 to ", kMaxChannels, " channels and at most 2^30 - 1 images");
  check_tensor(kOp, "weight", weight, {1, C}, dtype, x);
  check_tensor(kOp, "norm_weight", norm_weight, {C}, dtype, x);
  check_tensor(kOp, "norm_bias", norm_bias, {C}, dtype, x);
  check(norm_weight || !norm_bias, kOp, ": norm_bias is given; expected norm_weight with it");
}

Params make_params(const Tensor& x, const Tensor& weight, const OptionalTensor& norm_weight, const OptionalTensor& norm_bias) {
  Params a{};
  a.N = int(x.size(1));
  a.C = int(x.size(2));
  a.x = data(x);
  a.weight = data(weight);
  a.norm_weight = data(norm_weight);
  a.norm_bias = data(norm_bias);
  return a;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> seqpool_forward(const Tensor& x_in, const Tensor& weight_in,
                                                           const OptionalTensor& norm_weight_in,
                                                           const OptionalTensor& norm_bias_in, double eps) {
  check_inputs(x_in, weight_in, norm_weight_in, norm_bias_in);
  const Device device(x_in);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in);
  const OptionalTensor norm_weight = contiguous(norm_weight_in), norm_bias = contiguous(norm_bias_in);
  const int64_t B = x.size(0), N = x.size(1), C = x.size(2), stats = norm_weight ? B : 0;
  const Tensor out = empty(x, {B, C}), lse = empty(x, {B}, ScalarType::Float), mean = empty(x, {stats, N}, ScalarType::Float),
               rstd = empty(x, {stats, N}, ScalarType::Float);

  Params a = make_params(x, weight, norm_weight, norm_bias);
  a.chunks = chunks_per_image(B, N, int64_t(kForwardBlocks) * device.multiprocessors());
  a.vectorised = vectors_allowed(C * x.element_size(), {a.x, a.weight, a.norm_weight});
  a.eps = float(eps);
  a.out = out.mutable_data_ptr();
  a.lse = floats(lse);
  a.mean = norm_weight ? floats(mean) : nullptr;
  a.rstd = norm_weight ? floats(rstd) : nullptr;
  const Tensor partials = empty(x, {a.chunks == 1 ? 0 : B * a.chunks, C + 2}, ScalarType::Float);
  a.partials = floats(partials);
  with_layout(x.scalar_type(), a.C, [&](auto type, auto layout) {
    using T = typename decltype(type)::type;
    using L = decltype(layout);
    device.launch(seqpool_forward_kernel<T, L::G, L::E, L::Threads>, B * a.chunks, L::Threads, 0, a);
    if (a.chunks > 1) device.launch(seqpool_forward_join_kernel<T>, B, kThreads, 0, a);
  });
  return {out, lse, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> seqpool_backward(const Tensor& dout_in, const Tensor& x_in, const Tensor& weight_in,
                                                            const OptionalTensor& norm_weight_in,
                                                            const OptionalTensor& norm_bias_in, const Tensor& lse_in,
                                                            const Tensor& mean_in, const Tensor& rstd_in) {
  check_inputs(x_in, weight_in, norm_weight_in, norm_bias_in);
  const ScalarType dtype = x_in.scalar_type();
  const int64_t B = x_in.size(0), N = x_in.size(1), C = x_in.size(2), stats = norm_weight_in ? B : 0;
  check_tensor(kOp, "dout", dout_in, {B, C}, dtype, x_in);
  check_tensor(kOp, "lse", lse_in, {B}, ScalarType::Float, x_in);
  check_tensor(kOp, "mean", mean_in, {stats, N}, ScalarType::Float, x_in);
  check_tensor(kOp, "rstd", rstd_in, {stats, N}, ScalarType::Float, x_in);
  const Device device(x_in);
  const Tensor x = torch::stable::contiguous(x_in), weight = torch::stable::contiguous(weight_in),
               dout = torch::stable::contiguous(dout_in), lse = torch::stable::contiguous(lse_in),
               mean = torch::stable::contiguous(mean_in), rstd = torch::stable::contiguous(rstd_in);
  const OptionalTensor norm_weight = contiguous(norm_weight_in), norm_bias = contiguous(norm_bias_in);
  const Tensor dx = empty(x, {B, N, C}), dweight = empty(x, {1, C}), dnorm_weight = empty(x, {norm_weight ? C : 0}),
               dnorm_bias = empty(x, {norm_bias ? C : 0});

  Params a = make_params(x, weight, norm_weight, norm_bias);
  a.chunks = chunks_per_image(B, N, int64_t(kBackwardBlocks) * device.multiprocessors());
  a.dout = data(dout);
  a.dx = dx.mutable_data_ptr();
  a.vectorised = vectors_allowed(C * x.element_size(), {a.x, a.weight, a.norm_weight, a.dout, a.dx});
  a.lse = floats(lse);
  a.mean = norm_weight ? floats(mean) : nullptr;
  a.rstd = norm_weight ? floats(rstd) : nullptr;
  const int64_t cut = a.chunks == 1 ? 0 : B * a.chunks;
  const int slices = slices_of(int(B));
  const Tensor partials = empty(x, {cut, 2 * C + 1}, ScalarType::Float), delta = empty(x, {cut}, ScalarType::Float),
               sums = empty(x, {B, 3, C}, ScalarType::Float), slice_sums = empty(x, {slices, 3, C}, ScalarType::Float);
  a.partials = floats(partials);
  a.delta = floats(delta);
  a.sums = floats(sums);

  with_layout(dtype, a.C, [&](auto type, auto layout) {
    using T = typename decltype(type)::type;
    using L = decltype(layout);
    size_t shared = 0;
    if (a.chunks == 1) {
      const int64_t trip = L::Threads * sizeof(Row<T, L::G, L::E>), trips = (N * L::G + L::Threads - 1) / L::Threads;
      const int64_t fixed = L::Threads * L::E * sizeof(float) + kSharedReserve;
      a.resident = int(std::clamp<int64_t>((device.shared_bytes() / kBackwardResident - fixed) / trip, 0, trips));
      shared = a.resident * trip;
    } else {
      device.launch(seqpool_backward_delta_kernel<T, L::G, L::E, L::Threads>, cut, L::Threads, 0, a);
    }
    device.launch(seqpool_backward_kernel<T, L::G, L::E, L::Threads>, B * a.chunks, L::Threads, shared, a);
    if (cut) device.launch(seqpool_backward_join_kernel<T>, B, kThreads, 0, a);

    const dim3 block(kSumColumns, kSumRows);
    if (slices)
      device.launch(slice_sums_kernel, dim3(sum_blocks(3 * C), slices), block, 0, a.sums, int(B), int(3 * C),
                    floats(slice_sums));
    device.launch(seqpool_parameter_gradients_kernel<T>, sum_blocks(C), block, 0, a, slices ? floats(slice_sums) : a.sums,
                  slices ? slices : int(B), static_cast<T*>(dweight.mutable_data_ptr()),
                  norm_weight ? static_cast<T*>(dnorm_weight.mutable_data_ptr()) : nullptr,
                  norm_bias ? static_cast<T*>(dnorm_bias.mutable_data_ptr()) : nullptr);
  });
  return {dx, dweight, dnorm_weight, dnorm_bias};
}

}  // namespace
}  // namespace cct

STABLE_TORCH_LIBRARY_IMPL(CCT_NAMESPACE, CCT_DISPATCH, m) {
  m.impl("seqpool_forward", TORCH_BOX(&cct::seqpool_forward));
  m.impl("seqpool_backward", TORCH_BOX(&cct::seqpool_backward));
}
