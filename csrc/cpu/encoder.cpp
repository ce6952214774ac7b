// All blocks of the encoder without gradients, depth-first: a thread carries a few images through every layer, so that their
// activations stay in its second-level cache and only the weights pass by. The kernels are those of layernorm_attention.cpp and
// layernorm_mlp.cpp on a residual stream in scratch.
//
// Images that are too few for the threads are cut into blocks of rows. Between the keys and values of two layers everything is
// local to a row (attention of its query, projection, MLP, the next layer's q, k and v), so the threads meet once a layer.
// Where even the rows are few, they share the weights instead: see encoder_columns.h.
#include "encoder.h"

#include <vector>

#include "forward.h"

namespace cct {
namespace {

constexpr const char* kOp = "encoder";

// The tensors that an EncoderLayer points into.
struct Layer {
  AttentionCall attention;
  MlpCall mlp;

  Layer(const at::Tensor& x, at::TensorList t, int64_t num_heads, const OptionalTensor& mask, double eps,
        at::ScalarType compute)
      : attention(x, t[0], t[1], t[2], t[3], t[4], num_heads, {}, mask, 0.0, 0.0, {}, {}, eps, compute),
        mlp(x, t[5], t[6], t[7], t[8], t[9], t[10], 0.0, {}, {}, eps, compute) {}

  static constexpr int kWeights[] = {2, 3, 7, 9};  // of the tensors of a block

  void leave_unpacked(at::TensorList t) {
    AttentionArgs& a = attention.a;
    attention.wqkv = t[2].contiguous(), attention.wproj = t[3].contiguous();  // one dtype: AttentionCall, MlpCall
    mlp.w1 = t[7].contiguous(), mlp.w2 = t[9].contiguous();
    a.weight_bf16 = t[2].scalar_type() == at::kBFloat16, mlp.a.weight_bf16 = t[7].scalar_type() == at::kBFloat16;
    point();
  }

  void pack(at::TensorList t, const uint64_t* checksums) {
    AttentionArgs& a = attention.a;
    attention.wqkv = pack_weight(t[2], true, a.hd, a.bf16, checksums[0]);
    attention.wproj = pack_weight(t[3], true, 0, a.bf16, checksums[1]);
    mlp.w1 = pack_weight(t[7], true, 0, a.bf16, checksums[2]);
    mlp.w2 = pack_weight(t[9], true, 0, a.bf16, checksums[3]);
    point();
  }

 private:
  void point() {
    attention.a.wqkv = attention.wqkv.const_data_ptr();
    attention.a.wproj = attention.wproj.const_data_ptr();
    mlp.a.w1 = mlp.w1.const_data_ptr();
    mlp.a.w2 = mlp.w2.const_data_ptr();
  }
};

// Weights of a block for each row, those of an image rounded up to 64, from which on the rows are few.
constexpr int64_t kFewRows = 1536;

// PyTorch's threads, and memory that stays warm.
struct Threads {
  at::Tensor memory;

  template <typename F>
  void slices(int64_t items, int64_t per_thread, F f) {
    thread_slices(items, per_thread, [&](int64_t first, int64_t last, int64_t, int64_t thread) { f(first, last, thread); });
  }
  char* scratch(int64_t bytes) { return thread_scratch(bytes); }
  char* shared(int64_t bytes) {
    memory = pooled_empty({bytes + 4096}, at::kByte);
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(memory.data_ptr()) + 4095) / 4096 * 4096);
  }
};

}  // namespace

at::Tensor encoder_forward(const at::Tensor& x_in, at::TensorList blocks, int64_t num_heads, const OptionalTensor& mask,
                           double eps, at::ScalarType compute) {
  TORCH_CHECK_VALUE(int64_t(blocks.size()) % kBlockTensors == 0, kOp, ": blocks has ", blocks.size(), " tensors; expected ",
                    kBlockTensors, " for each block");
  const at::Tensor x = x_in.contiguous();
  if (blocks.empty()) return x.clone();
  std::vector<Layer> calls;
  calls.reserve(blocks.size() / kBlockTensors);
  for (size_t i = 0; i < blocks.size(); i += kBlockTensors)
    calls.emplace_back(x, blocks.slice(i, kBlockTensors), num_heads, mask, eps, compute);
  const MlpArgs& first = calls[0].mlp.a;
  const int64_t block_weights = 4 * first.C * first.C + 2 * first.C * first.F;
  const bool unpacked = !first.bf16 && x.size(0) * round_up64(x.size(1)) * kFewRows <= block_weights;
  std::vector<at::Tensor> weights;
  for (size_t i = 0; i < blocks.size() && !unpacked; i += kBlockTensors)
    for (int w : Layer::kWeights) weights.push_back(blocks[i + w]);
  const std::vector<uint64_t> hashes = checksums(weights);
  std::vector<EncoderLayer> layers;
  for (size_t l = 0; l < calls.size(); ++l) {
    const at::TensorList tensors = blocks.slice(l * kBlockTensors, kBlockTensors);
    unpacked ? calls[l].leave_unpacked(tensors) : calls[l].pack(tensors, hashes.data() + l * std::size(Layer::kWeights));
    layers.push_back({calls[l].attention.a, calls[l].mlp.a});
  }
  at::Tensor out = pooled_empty(x.sizes(), x.scalar_type());
  const EncoderArgs args{layers.data(),
                         int64_t(layers.size()),
                         x.size(0),
                         at::get_num_threads(),
                         unpacked,
                         static_cast<const char*>(x.const_data_ptr()),
                         static_cast<char*>(out.data_ptr()),
                         layers[0].attention.mask};
  Threads threads;
  EncoderRun(args, threads).run();
  return out;
}

}  // namespace cct

TORCH_LIBRARY_IMPL(cct_kernels, CPU, m) { m.impl("encoder_forward", TORCH_FN(cct::encoder_forward)); }
