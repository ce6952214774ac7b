// The schedule of encoder.h: its result is, to the bit, that of the kernels called one after the other on whole images; with
// tokens as columns sums have another order.
#include "../cpu/encoder.h"

#include <mutex>

#include "../cpu/encoder_columns.cpp"
#include "../cpu/layernorm_attention.cpp"
#include "../cpu/layernorm_mlp.cpp"
#include "driver.h"

namespace cct {
namespace {

struct Shape {
  int64_t B, N, C, heads, F, layers;
  bool mask;
};

// Guarded memory for each request.
struct TestThreads {
  int64_t count;
  std::vector<Guarded> held;
  std::mutex lock;

  void slices(int64_t items, int64_t per_thread, const std::function<void(int64_t, int64_t, int64_t)>& f) {
    const int64_t slots = smaller(items, count * per_thread);
    for_slices(slots, count, [&](int64_t thread, int64_t first, int64_t last) {
      for (int64_t s = first; s < last; ++s) f(s * items / slots, (s + 1) * items / slots, thread);
    });
  }
  char* scratch(int64_t bytes) {
    const std::lock_guard<std::mutex> guard(lock);
    held.emplace_back(bytes);
    return held.back().data();
  }
  char* shared(int64_t bytes) { return scratch(bytes); }
};

struct Weights {
  Array gamma, beta, zeros, bproj, b1, b2, wqkv, wproj, w1, w2;
  Array panels[4];  // of the last four
};

void test_shape(const std::string& where, const Setting& set, const Shape& s) {
  Random random;
  const int64_t B = s.B, N = s.N, C = s.C, F = s.F;
  const bool bf = set.x_bf16;
  std::vector<Weights> weights;
  std::vector<EncoderLayer> layers;
  for (int64_t l = 0; l < s.layers; ++l) {
    EncoderLayer layer{};
    AttentionArgs& a = layer.attention;
    a.N = N, a.C = C, a.heads = s.heads, a.hd = C / s.heads;
    a.Cp = round_up64(C), a.hdp = round_up64(a.hd), a.Np = round_up64(N), a.Nr = (N + 31) / 32 * 32, a.Qp = round_up64(3 * C);
    a.eps = 1e-5f, a.x_bf16 = bf, a.bf16 = set.bf16;
    const double narrow = 1 / std::sqrt(double(C));
    const Values wqkv = random.normal(3 * C * C, narrow, 0, bf), wproj = random.normal(C * C, narrow, 0, bf);
    const Values w1 = random.normal(F * C, narrow, 0, bf), w2 = random.normal(C * F, 1 / std::sqrt(double(F)), 0, bf);
    weights.push_back({Array::padded(random.normal(C, 0.1, 1)),
                       Array::padded(random.normal(C, 0.1)),
                       Array(Values(3 * s.heads * a.hdp), false),
                       Array::padded(random.normal(C, 0.1)),
                       Array::padded(random.normal(F, 0.1)),
                       Array::padded(random.normal(C, 0.1)),
                       Array(wqkv, bf),
                       Array(wproj, bf),
                       Array(w1, bf),
                       Array(w2, bf),
                       {packed(wqkv, C, 3 * C, true, a.hd, bf, set.bf16), packed(wproj, C, C, true, 0, bf, set.bf16),
                        packed(w1, C, F, true, 0, bf, set.bf16), packed(w2, F, C, true, 0, bf, set.bf16)}});
    const Weights& w = weights.back();
    a.gamma = w.gamma.floats(), a.beta = w.beta.floats(), a.bqkv = w.zeros.floats(), a.bproj = w.bproj.floats();
    a.wqkv = w.panels[0].data(), a.wproj = w.panels[1].data();
    MlpArgs& m = layer.mlp;
    m.N = N, m.C = C, m.F = F, m.Cp = a.Cp, m.Fp = round_up64(F), m.eps = 1e-5f, m.x_bf16 = bf, m.bf16 = set.bf16;
    m.gamma = w.gamma.floats(), m.beta = w.beta.floats(), m.b1 = w.b1.floats(), m.b2 = w.b2.floats();
    m.w1 = w.panels[2].data(), m.w2 = w.panels[3].data();
    layers.push_back(layer);
  }
  const Array x(random.normal(B * N * C, 1, 0.3, bf), bf), out(B * N * C, bf);
  const Guarded mask(s.mask ? B * N : 0);
  for (int64_t i = 0; s.mask && i < B * N; ++i) mask.data()[i] = i % N <= N / (1 + i / N);
  const uint8_t* keys = s.mask ? reinterpret_cast<const uint8_t*>(mask.data()) : nullptr;

  auto encode = [&](bool unpacked) {
    std::memset(out.data(), 0xff, B * N * C * (bf ? 2 : 4));  // NaN: all of it must be written
    const EncoderArgs args{layers.data(), s.layers, B, set.threads, unpacked, x.data(), out.data(), keys};
    TestThreads threads{set.threads, {}, {}};
    EncoderRun<TestThreads>(args, threads).run();
    return out.values();
  };
  const Values result = encode(false);

  const Array stream(x.values(), bf);
  for (const EncoderLayer& layer : layers) {
    AttentionArgs a = layer.attention;
    const Array qkv(B * 3 * a.heads * a.Nr * a.hdp, set.bf16), o(B * a.Nr * a.Cp, set.bf16), middle(B * N * C, bf);
    const Guarded scratch(larger(attention_forward_scratch(a), mlp_forward_scratch(layer.mlp)));
    a.x = stream.data(), a.out = middle.data(), a.mask = keys, a.qkv = qkv.data(), a.o = o.data();
    for (int64_t b = 0; b < B; ++b) {
      attention_qkv_rows(a, b, b, 0, N, scratch.data());
      for (int64_t h = 0; h < a.heads; ++h) attention_head_rows(a, b, b, h, 0, N, scratch.data());
      attention_projection_rows(a, b, b, 0, N, scratch.data());
    }
    MlpArgs m = layer.mlp;
    m.x = middle.data(), m.out = stream.data();
    layernorm_mlp_forward_rows(m, 0, B * N, scratch.data());
  }
  expect_near(where + "out", result, stream.values(), 0);
  if (set.bf16) return;
  for (int64_t l = 0; l < s.layers; ++l) {
    AttentionArgs& a = layers[l].attention;
    MlpArgs& m = layers[l].mlp;
    a.wqkv = weights[l].wqkv.data(), a.wproj = weights[l].wproj.data(), a.weight_bf16 = m.weight_bf16 = bf;
    m.w1 = weights[l].w1.data(), m.w2 = weights[l].w2.data();
  }
  expect_near(where + "out with tokens as columns", encode(true), stream.values(), bf ? 0.02 : 1e-5);
}

}  // namespace

void test(const std::string& where, const Setting& set) {
  for (const Shape& s : {Shape{1, 1, 1, 1, 1, 1, false},
                         {5, 7, 12, 3, 20, 2, true},    // whole images and a shared one
                         {1, 70, 10, 2, 70, 3, false},  // one image, rows among the threads
                         {1, 65, 12, 2, 300, 1, true},  // a second piece of a sum, one column behind whole strips
                         {1, 65, 48, 2, 80, 1, false},  // and its dot products end in half a step
                         {2, 66, 24, 3, 40, 2, true},   // two columns behind
                         {7, 33, 66, 1, 5, 2, true}})
    test_shape(where, set, s);
}

}  // namespace cct
