// All blocks of the encoder without gradients, depth-first: a thread carries a few images through every layer, so that their
// activations stay in its second-level cache and only the weights pass by. The kernels are those of layernorm_attention.cpp and
// layernorm_mlp.cpp on a residual stream in scratch.
//
// Images that are too few for the threads are cut into blocks of rows. Between the keys and values of two layers everything is
// local to a row (attention of its query, projection, MLP, the next layer's q, k and v), so the threads meet once a layer.
#include <vector>

#include "forward.h"
#include "layernorm_attention.h"
#include "layernorm_mlp.h"

namespace cct {
namespace {

constexpr const char* kOp = "encoder";
constexpr int64_t kTensors = 11;          // of a block
constexpr int64_t kBudget = 1024 * 1024;  // bytes of the second-level cache for the activations of a thread's images
constexpr int64_t kBlock = 32;            // rows

struct Layer {
  AttentionCall attention;
  MlpCall mlp;

  Layer(const at::Tensor& x, at::TensorList t, int64_t num_heads, const OptionalTensor& mask, double eps,
        at::ScalarType compute)
      : attention(x, t[0], t[1], t[2], t[3], t[4], num_heads, {}, mask, 0.0, 0.0, {}, {}, eps, compute),
        mlp(x, t[5], t[6], t[7], t[8], t[9], t[10], 0.0, {}, {}, eps, compute) {}

  static constexpr int kWeights[] = {2, 3, 7, 9};  // of the tensors of a block

  void pack(at::TensorList t, const uint64_t* checksums) {
    AttentionArgs& a = attention.a;
    attention.wqkv = pack_weight(t[2], true, a.hd, a.bf16, checksums[0]);
    attention.wproj = pack_weight(t[3], true, 0, a.bf16, checksums[1]);
    mlp.w1 = pack_weight(t[7], true, 0, a.bf16, checksums[2]);
    mlp.w2 = pack_weight(t[9], true, 0, a.bf16, checksums[3]);
    a.wqkv = attention.wqkv.const_data_ptr();
    a.wproj = attention.wproj.const_data_ptr();
    mlp.a.w1 = mlp.w1.const_data_ptr();
    mlp.a.w2 = mlp.w2.const_data_ptr();
  }
};

// Where the activations of images [first, ...) are.
struct Activations {
  const char* x;  // input and output of these images
  char* out;
  const uint8_t* mask;
  char *stream, *o, *qkv[2];  // q, k and v of even and of odd layers
};

struct Encoder {
  std::vector<Layer> layers;
  int64_t N, stream_bytes, qkv_bytes, o_bytes, scratch;  // of one image; of the kernels

  AttentionArgs attention(size_t l, const Activations& at) const {
    AttentionArgs a = layers[l].attention.a;
    a.x = l == 0 ? at.x : at.stream;
    a.out = at.stream;
    a.mask = at.mask;
    a.qkv = at.qkv[l % 2];
    a.o = at.o;
    return a;
  }

  MlpArgs mlp(size_t l, const Activations& at) const {
    MlpArgs a = layers[l].mlp.a;
    a.x = at.stream;
    a.out = l + 1 == layers.size() ? at.out : at.stream;
    return a;
  }

  // One layer of rows [first, last) of image b, from its q, k and v on.
  void layer_rows(size_t l, const Activations& at, int64_t b, int64_t first, int64_t last, char* memory) const {
    const AttentionArgs a = attention(l, at);
    for (int64_t h = 0; h < a.heads; ++h) CCT_CALL(attention_head_rows, a, b, b, h, first, last, memory);
    CCT_CALL(attention_projection_rows, a, b, b, first, last, memory);
  }

  void mlp_rows(size_t l, const Activations& at, int64_t first, int64_t last, char* memory) const {
    CCT_CALL(layernorm_mlp_forward_rows, mlp(l, at), first, last, memory);
  }

  void qkv_rows(size_t l, const Activations& at, int64_t b, int64_t first, int64_t last, char* memory) const {
    CCT_CALL(attention_qkv_rows, attention(l, at), b, b, first, last, memory);
  }

  // All layers of `images` images by one thread.
  void carry(const Activations& at, int64_t images, char* memory) const {
    for (size_t l = 0; l < layers.size(); ++l) {
      for (int64_t b = 0; b < images; ++b) {
        qkv_rows(l, at, b, 0, N, memory);
        layer_rows(l, at, b, 0, N, memory);
      }
      mlp_rows(l, at, 0, images * N, memory);
    }
  }

  // All layers of `images` images by all threads.
  void share(const Activations& at, int64_t images) const {
    const int64_t blocks = (N + kBlock - 1) / kBlock;
    auto rows = [&](auto f) {  // f(image, first row, last row, memory) on each thread's rows
      for_slices(images * blocks, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t b = first / blocks; b * blocks < last; ++b)
          f(b, std::max<int64_t>(first - b * blocks, 0) * kBlock, std::min(std::min(last - b * blocks, blocks) * kBlock, N),
            thread_scratch(scratch));
      });
    };
    rows([&](int64_t b, int64_t first, int64_t last, char* memory) { qkv_rows(0, at, b, first, last, memory); });
    for (size_t l = 0; l < layers.size(); ++l)
      rows([&](int64_t b, int64_t first, int64_t last, char* memory) {
        layer_rows(l, at, b, first, last, memory);
        mlp_rows(l, at, b * N + first, b * N + last, memory);
        if (l + 1 < layers.size()) qkv_rows(l + 1, at, b, first, last, memory);
      });
  }
};

}  // namespace

at::Tensor encoder_forward(const at::Tensor& x_in, at::TensorList blocks, int64_t num_heads, const OptionalTensor& mask,
                           double eps, at::ScalarType compute) {
  TORCH_CHECK_VALUE(blocks.size() % kTensors == 0, kOp, ": blocks has ", blocks.size(), " tensors; expected ", kTensors,
                    " for each block");
  const at::Tensor x = x_in.contiguous();
  if (blocks.empty()) return x.clone();
  Encoder e;
  e.layers.reserve(blocks.size() / kTensors);
  for (size_t i = 0; i < blocks.size(); i += kTensors)
    e.layers.emplace_back(x, blocks.slice(i, kTensors), num_heads, mask, eps, compute);
  std::vector<at::Tensor> weights;
  for (size_t i = 0; i < blocks.size(); i += kTensors)
    for (int w : Layer::kWeights) weights.push_back(blocks[i + w]);
  const std::vector<uint64_t> hashes = checksums(weights);
  for (size_t l = 0; l < e.layers.size(); ++l)
    e.layers[l].pack(blocks.slice(l * kTensors, kTensors), hashes.data() + l * std::size(Layer::kWeights));
  at::Tensor out = pooled_empty(x.sizes(), x.scalar_type());
  const AttentionArgs& a = e.layers[0].attention.a;
  const int64_t B = x.size(0), threads = at::get_num_threads(), product = a.bf16 ? 2 : 4;
  e.N = a.N;
  e.stream_bytes = a.N * a.C * x.element_size();
  e.qkv_bytes = 3 * a.heads * a.Nr * a.hdp * product;
  e.o_bytes = a.Nr * a.Cp * product;
  e.scratch = attention_forward_scratch(a);
  for (const Layer& l : e.layers) e.scratch = std::max(e.scratch, mlp_forward_scratch(l.mlp.a));

  auto activations = [&](int64_t b, char* memory, int64_t images, bool two) {
    auto next = [&](int64_t bytes) {
      char* p = memory;
      memory += scratch_bytes({images * bytes / 4});
      return p;
    };
    Activations at{};
    at.x = static_cast<const char*>(x.const_data_ptr()) + b * e.stream_bytes;
    at.out = static_cast<char*>(out.data_ptr()) + b * e.stream_bytes;
    at.mask = a.mask ? a.mask + b * a.N : nullptr;
    at.stream = next(e.stream_bytes), at.o = next(e.o_bytes);
    at.qkv[0] = next(e.qkv_bytes), at.qkv[1] = two ? next(e.qkv_bytes) : at.qkv[0];
    return at;
  };
  auto room = [&](int64_t images, int64_t copies) {
    return scratch_bytes({images * e.stream_bytes / 4, images * e.o_bytes / 4}) +
           copies * scratch_bytes({images * e.qkv_bytes / 4});
  };
  const int64_t whole = B / threads * threads;
  const int64_t fit = std::max<int64_t>(1, kBudget / (e.stream_bytes + e.qkv_bytes + e.o_bytes));
  const int64_t group = std::min(fit, std::max<int64_t>(1, whole / threads));
  for_slices(whole, [&](int64_t first, int64_t last, int64_t) {
    char* memory = thread_scratch(room(group, 1) + e.scratch);
    for (int64_t b = first; b < last; b += group)
      e.carry(activations(b, memory, group, false), std::min(group, last - b), memory + room(group, 1));
  });
  if (whole < B) {
    const at::Tensor memory = at::empty({room(B - whole, 2) + 4096}, at::kByte);
    const auto start = (reinterpret_cast<uintptr_t>(memory.data_ptr()) + 4095) / 4096 * 4096;
    e.share(activations(whole, reinterpret_cast<char*>(start), B - whole, true), B - whole);
  }
  return out;
}

}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) { m.impl("encoder_forward", TORCH_FN(cct::encoder_forward)); }
