// Weights as the panels of gemm.h, and vectors padded with zeros to whole panels.
#include "weights.h"

#if defined(CCT_ISA)
#include "elementwise.h"
#include "pack.h"

namespace cct::CCT_ISA {
namespace {

// 64 x 64 elements of the weight as T, zeros outside; row i starts at src + i * stride.
template <typename S, typename T>
CCT_INLINE void load_tile(const S* src, int64_t stride, int rows, int columns, T* tile) {
  for (int r = 0; r < kPanel; ++r)
    for (int c = 0; c < kPanel; c += kLanes) {
      Vec v = {};
      if (r < rows && c + kLanes <= columns)
        v = load(src + r * stride + c);
      else if (r < rows && c < columns)
        v = load_part(src + r * stride + c, columns - c);
      store(tile + r * kPanel + c, v);
    }
}

// A whole panel of a weight of floats (columns, K) in lines of 16 columns: they are one piece of memory, and the next is asked
// for meanwhile.
void pack_lines(const float* weight, int64_t K, float* panel) {
  for (int c = 0; c < kPanel; c += 16, weight += 16 * K)
    for (int64_t k = 0; k < K; k += 16) {
      const float* next = weight + 16 * K + k;
#pragma GCC unroll 1  // else the compiler keeps 16 addresses, on the stack
      for (int r = 0; r < 16; ++r, next += K) __builtin_prefetch(next);
      transpose_words(weight + k, K, panel_words(panel, k / 16, c / 16, K), kPanelStride<float>, 16, 16);
    }
}

template <typename S, typename T>
void pack(const PackArgs& a, int64_t p, T* panel) {
  const int64_t first = panel_column(a, p), left = (p / panels(a.group) + 1) * a.group - first;
  const int columns = int(left < kPanel ? left : kPanel);
  const S* weight = static_cast<const S*>(a.weight);
  if constexpr (sizeof(S) == 4 && sizeof(T) == 4)
    if (a.transposed && columns == kPanel && a.K % 32 == 0) return pack_lines(weight + first * a.K, a.K, panel);
  alignas(64) T tile[kPanel * kPanel];
  const int64_t K = round_up(a.K, 32);
  for (int64_t k = 0; k < K; k += kPanel) {
    const int depth = int(a.K - k < kPanel ? a.K - k : kPanel);
    const int64_t store_depth = K - k < kPanel ? K - k : kPanel;
    if (a.transposed) {  // the weight is B^T: its rows are the columns of the panel
      load_tile(weight + first * a.K + k, a.K, columns, depth, tile);
      pack_columns(tile, kPanel, panel_row(panel, k), kPanel, store_depth, K);
    } else {
      load_tile(weight + k * a.columns + first, a.columns, depth, columns, tile);
      pack_rows(tile, kPanel, panel_row(panel, k), store_depth, K);
    }
  }
}

template <typename T>
void pack_any(const PackArgs& a, int64_t p, void* panel) {
  a.weight_bf16 ? pack<BFloat16>(a, p, static_cast<T*>(panel)) : pack<float>(a, p, static_cast<T*>(panel));
}

}  // namespace

void pack_panel(const PackArgs& a, int64_t p, void* panel) {
#if defined(CCT_BF16_PRODUCT)
  if (a.bf16) return pack_any<BFloat16>(a, p, panel);
#endif
  pack_any<float>(a, p, panel);
}

// Four vectors of running sums over pairs of words, as fast as memory: each pair and, as in XXH3 (Collet, 2019), the product of
// its halves under a key. Plain sums would miss a doubled weight, which adds the same power of two to every word; a turn of the
// sum before each makes it one of this order.
uint64_t checksum_words(const uint32_t* words, int64_t n) {
  constexpr int kStreams = 4, kStride = kStreams * kLanes, kAhead = 512;  // words
  VecL hash[kStreams] = {};
  int64_t i = 0;
  for (; i + kStride <= n; i += kStride)
    for (int s = 0; s < kStreams; ++s) {
      if (s * kLanes % 16 == 0) __builtin_prefetch(words + i + s * kLanes + kAhead);
      VecL v;
      std::memcpy(&v, words + i + s * kLanes, sizeof v);
      const VecL keyed = v ^ 0x9E3779B185EBCA87ull;
      hash[s] = (hash[s] << 13 | hash[s] >> 51) + (v + multiply_low(keyed, keyed >> 32));
    }
  uint64_t all = uint64_t(n);
  for (int s = 0; s < kStreams; ++s)
    for (int l = 0; l < kLanes / 2; ++l) all = (all ^ hash[s][l]) * 1099511628211ull;
  for (; i < n; ++i) {
    uint32_t word;  // bfloat16 weights may begin anywhere
    std::memcpy(&word, words + i, 4);
    all = (all ^ word) * 1099511628211ull;
  }
  return all;
}

}  // namespace cct::CCT_ISA

#else
#include <ATen/Parallel.h>

#include <cstring>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#if __has_include(<c10/core/StorageMaterializer.h>)  // from PyTorch 2.13 on
#define CCT_WATCHES_MEMORY
#include <c10/core/impl/COW.h>
#endif

#include "fork.h"
#include "op.h"

namespace cct {
namespace {

// (C, Cin, 3, 3) as U = G w G^T: (16 C, Cin), or (C, 16 Cin) for the columns of B.
at::Tensor winograd_filters(const at::Tensor& weight, bool transposed) {
  const int64_t C = weight.size(0), Cin = weight.size(1);
  const at::Tensor U =
      exact_mm(weight.to(at::kFloat).contiguous().view({C * Cin, 9}), winograd_matrix().t()).view({C, Cin, 16});
  return transposed ? U.permute({2, 0, 1}).reshape({16 * C, Cin}) : U.permute({0, 2, 1}).reshape({C, 16 * Cin});
}

at::Tensor pack(const at::Tensor& weight_in, bool transposed, int64_t group, bool bf16) {
  // a convolution's (C, Cin, kh, kw) counts as (C, K) with K in the order (ky, kx, ci)
  const at::Tensor weight = (weight_in.dim() == 4 ? weight_in.permute({0, 2, 3, 1}).flatten(1) : weight_in).contiguous();
  PackArgs a{};
  a.weight = weight.const_data_ptr();
  a.weight_bf16 = weight.scalar_type() == at::kBFloat16;
  a.bf16 = bf16;
  a.transposed = transposed;
  a.columns = weight.size(transposed ? 0 : 1);
  a.K = weight.size(transposed ? 1 : 0);
  a.group = group ? group : a.columns;
  const int64_t panels = a.columns / a.group * ((a.group + 63) / 64);
  at::Tensor packed = at::empty({panels, (a.K + 31) / 32 * 32 * 64}, weight.options().dtype(bf16 ? at::kBFloat16 : at::kFloat));
  char* out = static_cast<char*>(packed.data_ptr());
  for_slices(panels, kForwardSlices, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t p = first; p < last; ++p) CCT_CALL(pack_panel, a, p, out + p * packed.stride(0) * packed.element_size());
  });
  return packed;
}

// Packed weights are kept until the weight changes. What counts as the same weight: its memory, still owned by the same
// storage, its shape, its version counter (in-place changes, optimizers, load_state_dict), and the checksum of its values, for
// changes through `.data` or a NumPy view, which leave the counter alone.
struct Packed {
  c10::weak_intrusive_ptr<c10::StorageImpl> owner;
  int64_t version;
  std::vector<int64_t> sizes, strides;
  uint64_t values;
  Isa level;
  at::Tensor panels;
};

struct Key {
  const void* data;
  int kind;
  int64_t group;
  bool operator==(const Key& o) const { return data == o.data && kind == o.kind && group == o.group; }
};
struct KeyHash {
  size_t operator()(const Key& k) const { return std::hash<const void*>()(k.data) * 31 + size_t(k.kind) * 7 + size_t(k.group); }
};

std::mutex g_lock;
[[maybe_unused]] const bool g_held = hold_in_forks<g_lock>();
std::unordered_map<Key, Packed, KeyHash> g_packed;

// Inside `constant_weights` a checksum is computed once for each version.
struct Checksum {
  int64_t version;
  uint64_t hash;
};
thread_local bool t_constant = false;
thread_local std::unordered_map<const void*, Checksum> t_checksums;

bool constant_weights(bool on) {
  t_checksums.clear();
  return std::exchange(t_constant, on);
}

// Memory that nobody wrote to has the checksum that it had. PyTorch tells when somebody may: its storages take a hook which
// runs, and goes, when their memory is asked for to be written, by an operator, `.data`, data_ptr() or numpy(). Who asked
// without a new version may keep the address and write later; so does who looked at the memory from elsewhere before.
struct Watched {
  c10::weak_intrusive_ptr<c10::StorageImpl> owner;
  size_t bytes;
  int64_t version;
  uint64_t hash;
  bool asked_for;
};
std::unordered_map<const void*, Watched> g_watched;  // by address, under g_lock

#if defined(CCT_WATCHES_MEMORY)
bool is_watched(const c10::StorageImpl& storage) {
  return storage.has_materializer() && !c10::impl::cow::is_cow_data_ptr(storage.data_ptr());
}

// The checksum of a weight whose memory nobody asked for since it was made.
std::optional<uint64_t> unwritten(const at::Tensor& weight) {
  const c10::StorageImpl* storage = weight.storage().unsafeGetStorageImpl();
  const std::lock_guard<std::mutex> guard(g_lock);
  const auto found = g_watched.find(weight.const_data_ptr());
  if (found == g_watched.end()) return {};
  Watched& w = found->second;
  if (w.owner._unsafe_get_target() != storage || w.owner.expired() || w.bytes != weight.nbytes()) return {};
  if (is_watched(*storage)) return w.hash;
  w.asked_for = w.asked_for || w.version == int64_t(weight._version());
  return {};
}

// Begins to watch the memory of a weight, if PyTorch made it and only this tensor has it. A weight without gradient may have
// lent it through DLPack, which nobody can tell.
bool watch(const at::Tensor& weight) {
  c10::StorageImpl* storage = weight.storage().unsafeGetStorageImpl();
  if (!weight.requires_grad() || weight.storage().use_count() != 1) return false;
  const at::DataPtr& data = storage->data_ptr();
  if (data.get_context() != data.get() || data.get_deleter() != at::getCPUAllocator()->raw_deleter()) return false;
  const std::lock_guard<std::mutex> guard(g_lock);
  const auto found = g_watched.find(weight.const_data_ptr());
  if (found != g_watched.end() && found->second.owner._unsafe_get_target() == storage && found->second.asked_for) return false;
  if (storage->has_materializer()) return false;
  storage->set_materializer([](c10::StorageImpl*) {});
  return true;
}

void keep_watched(const at::Tensor& weight, uint64_t hash) {
  auto owner = c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(weight.storage().unsafeGetStorageImpl());
  const std::lock_guard<std::mutex> guard(g_lock);
  std::erase_if(g_watched, [](const auto& item) { return item.second.owner.expired(); });
  g_watched.insert_or_assign(weight.const_data_ptr(), Watched{c10::weak_intrusive_ptr<c10::StorageImpl>(owner), weight.nbytes(),
                                                              int64_t(weight._version()), hash, false});
}
#else
std::optional<uint64_t> unwritten(const at::Tensor&) { return {}; }
bool watch(const at::Tensor&) { return false; }
void keep_watched(const at::Tensor&, uint64_t) {}
#endif

bool is_kept(const at::Tensor& weight) {  // inference tensors count no versions; channels-last weights are dense
  return !weight.is_inference() && weight.is_non_overlapping_and_dense() && weight.numel() > 0;
}

}  // namespace

std::vector<uint64_t> checksums(at::TensorList weights) {
  struct Piece {
    const uint32_t* words;
    int64_t n;
    size_t weight;
  };
  constexpr int64_t kPiece = 16384;  // words
  std::vector<bool> known(weights.size()), watched(weights.size());
  std::vector<uint64_t> hash(weights.size());
  for (size_t w = 0; w < weights.size(); ++w) {
    if (!is_kept(weights[w])) continue;
    const auto found = t_constant ? t_checksums.find(weights[w].const_data_ptr()) : t_checksums.end();
    if (found != t_checksums.end() && found->second.version == int64_t(weights[w]._version())) {
      known[w] = true, hash[w] = found->second.hash;
    } else if (const std::optional<uint64_t> same = unwritten(weights[w])) {
      known[w] = true, hash[w] = *same;
    } else {
      watched[w] = watch(weights[w]);  // before it is read
    }
  }
  std::vector<Piece> pieces;
  for (size_t w = 0; w < weights.size(); ++w) {
    const int64_t n = is_kept(weights[w]) && !known[w] ? int64_t(weights[w].nbytes()) / 4 : 0;
    const uint32_t* words = static_cast<const uint32_t*>(weights[w].const_data_ptr());
    for (int64_t i = 0; i < n; i += kPiece) pieces.push_back({words + i, std::min(kPiece, n - i), w});
  }
  std::vector<uint64_t> part(pieces.size());
  const int64_t count = int64_t(pieces.size());
  constexpr int64_t kUnit = 4;  // pieces
  for_slices((count + kUnit - 1) / kUnit, kForwardSlices, [&](int64_t first, int64_t last, int64_t) {
    for (int64_t i = first * kUnit; i < std::min(last * kUnit, count); ++i)
      part[i] = CCT_CALL(checksum_words, pieces[i].words, pieces[i].n);
  });
  for (size_t i = 0; i < pieces.size(); ++i) hash[pieces[i].weight] = (hash[pieces[i].weight] ^ part[i]) * 1099511628211ull;
  for (size_t w = 0; w < weights.size(); ++w)
    if (is_kept(weights[w]) && !known[w] && weights[w].nbytes() % 4)  // an odd number of bfloat16
      hash[w] += *(static_cast<const uint16_t*>(weights[w].const_data_ptr()) + weights[w].numel() - 1) * 2654435761ull;
  for (size_t w = 0; w < weights.size(); ++w)
    if (watched[w]) keep_watched(weights[w], hash[w]);
  for (size_t w = 0; t_constant && w < weights.size(); ++w)
    if (is_kept(weights[w]) && !known[w])
      t_checksums.insert_or_assign(weights[w].const_data_ptr(), Checksum{int64_t(weights[w]._version()), hash[w]});
  return hash;
}

at::Tensor pack_weight(const at::Tensor& weight, bool transposed, int64_t group, bool bf16) {
  return pack_weight(weight, transposed, group, bf16, checksums(weight)[0]);
}

namespace {

Key key_of(const at::Tensor& weight, int kind, int64_t group) {
  return {weight.const_data_ptr(), (weight.scalar_type() == at::kBFloat16) * 8 + kind, group};
}

// What `make` packs from the weight, kept as said at Packed. `kind`, `group`: which packing this is.
template <typename Make>
at::Tensor packed_once(const at::Tensor& weight, int kind, int64_t group, uint64_t values, Make make) {
  if (!is_kept(weight)) return make();
  const Key key = key_of(weight, kind, group);
  const int64_t version = weight._version();
  c10::StorageImpl* owner = weight.storage().unsafeGetStorageImpl();
  c10::intrusive_ptr<c10::StorageImpl> kept_owner;  // freed after the lock: freeing may take the pool's lock, or Python's
  {
    const std::lock_guard<std::mutex> guard(g_lock);
    const auto found = g_packed.find(key);
    if (found != g_packed.end()) {
      const Packed& p = found->second;
      kept_owner = p.owner.lock();
      if (kept_owner.get() == owner && p.version == version && p.values == values && p.level == isa() &&
          weight.sizes() == at::IntArrayRef(p.sizes) && weight.strides() == at::IntArrayRef(p.strides))
        return p.panels;
    }
  }
  auto shared_owner = c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(owner);
  Packed entry{c10::weak_intrusive_ptr<c10::StorageImpl>(shared_owner),
               version,
               weight.sizes().vec(),
               weight.strides().vec(),
               values,
               isa(),
               make()};
  const at::Tensor panels = entry.panels;
  const std::lock_guard<std::mutex> guard(g_lock);
  std::erase_if(g_packed, [](const auto& item) { return item.second.owner.expired(); });
  g_packed.insert_or_assign(key, std::move(entry));
  return panels;
}

}  // namespace

at::Tensor pack_weight(const at::Tensor& weight, bool transposed, int64_t group, bool bf16, uint64_t values) {
  return packed_once(weight, bf16 * 2 + transposed, group, values, [&] { return pack(weight, transposed, group, bf16); });
}

at::Tensor pack_backward(const at::Tensor& weight, int64_t group, int64_t forward_group, bool bf16, bool trained) {
  const bool adds_up = weight.is_leaf() && weight.grad().defined();
  if (!trained || adds_up || t_constant) return pack_weight(weight, false, group, bf16);
  {
    decltype(g_packed)::node_type dropped;  // freed after the lock
    const std::lock_guard<std::mutex> guard(g_lock);
    dropped = g_packed.extract(key_of(weight, bf16 * 2 + true, forward_group));
  }
  return pack(weight, false, group, bf16);
}

at::Tensor pack_winograd(const at::Tensor& weight, bool transposed, bool bf16) {
  const int64_t group = weight.size(transposed ? 0 : 1);
  return packed_once(weight, 4 + bf16 * 2 + transposed, group, checksums(weight)[0],
                     [&] { return pack(winograd_filters(weight, transposed), transposed, group, bf16); });
}

at::Tensor winograd_matrix() {
  static const float G[4][3] = {{1, 0, 0}, {0.5, 0.5, 0.5}, {0.5, -0.5, 0.5}, {0, 0, 1}};
  at::Tensor out = at::empty({16, 9}, at::kFloat);
  float* m = out.data_ptr<float>();
  for (int e = 0; e < 16; ++e)
    for (int k = 0; k < 9; ++k) *m++ = G[e / 4][k / 3] * G[e % 4][k % 3];
  return out;
}

}  // namespace cct

TORCH_LIBRARY_FRAGMENT(cct_kernels, m) { m.def("constant_weights(bool on) -> bool", &cct::constant_weights); }
#endif
