// How the threads of the encoder divide images and rows, and where their activations lie; free of PyTorch, so that the driver
// in csrc/tests runs it under sanitizers. See encoder.cpp.
#pragma once

#include <utility>

#include "encoder_columns.h"

namespace cct {

// One block: arguments of the kernels with their weights. x, out, mask, qkv and o are set for each call.
struct EncoderLayer {
  AttentionArgs attention;
  MlpArgs mlp;
};

// x, out: (B, N, C); mask: (B, N) or null.
struct EncoderArgs {
  const EncoderLayer* layers;
  int64_t count, B, threads;
  bool unpacked;  // see share_columns; the layers then hold the weights themselves
  const char* x;
  char* out;
  const uint8_t* mask;
};

// Where the activations of a few neighbouring images are.
struct Activations {
  const char* x;  // input and output of these images
  char* out;
  const uint8_t* mask;
  char *stream, *o, *qkv[2];  // q, k and v of even and of odd layers
};

// Threads: slices(items, n, f) calls f(first, last, thread) on at most n slices for each thread, which is below `threads` of
// the arguments, and returns when all are done; scratch(bytes) is memory of the calling thread; shared(bytes) memory of all of
// them.
template <typename Threads>
class EncoderRun {
 public:
  EncoderRun(const EncoderArgs& args, Threads& threads) : args_(args), threads_(threads) {
    const AttentionArgs& a = args.layers[0].attention;
    const int64_t storage = a.x_bf16 ? 2 : 4, product = a.bf16 ? 2 : 4;
    N_ = a.N;
    stream_bytes_ = a.N * a.C * storage;
    qkv_bytes_ = 3 * a.heads * a.Nr * a.hdp * product;
    o_bytes_ = a.Nr * a.Cp * product;
    scratch_ = attention_forward_scratch(a);
    for (int64_t l = 0; l < args.count; ++l) scratch_ = larger(scratch_, mlp_forward_scratch(args.layers[l].mlp));
  }

  void run() {
    if (args_.unpacked) return share_columns();
    const int64_t whole = args_.B / args_.threads * args_.threads;
    const int64_t fit = larger(1, kBudget / (stream_bytes_ + qkv_bytes_ + o_bytes_));
    const int64_t most = larger(1, (whole / args_.threads + kSlices - 1) / kSlices);  // images of a slice
    const int64_t groups = (most + fit - 1) / fit, group = (most + groups - 1) / groups;
    threads_.slices(whole, kSlices, [&](int64_t first, int64_t last, int64_t) {
      char* memory = threads_.scratch(room(group, 1) + scratch_);
      for (int64_t b = first; b < last; b += group)
        carry(activations(b, memory, group, false), smaller(group, last - b), memory + room(group, 1));
    });
    if (whole < args_.B) {
      const int64_t rest = args_.B - whole;
      share(activations(whole, threads_.shared(room(rest, 2)), rest, true), rest);
    }
  }

 private:
  static constexpr int64_t kSlices = 4;            // of a thread's images: it takes those of a slower one when it is done
  static constexpr int64_t kBudget = 1024 * 1024;  // bytes of the second-level cache for the activations of a thread's images

  AttentionArgs attention(int64_t l, const Activations& at) const {
    AttentionArgs a = args_.layers[l].attention;
    a.x = l == 0 ? at.x : at.stream;
    a.out = at.stream;
    a.mask = at.mask;
    a.qkv = at.qkv[l % 2];
    a.o = at.o;
    return a;
  }

  MlpArgs mlp(int64_t l, const Activations& at) const {
    MlpArgs a = args_.layers[l].mlp;
    a.x = at.stream;
    a.out = l + 1 == args_.count ? at.out : at.stream;
    return a;
  }

  // One layer of rows [first, last) of image b, from its q, k and v on.
  void layer_rows(int64_t l, const Activations& at, int64_t b, int64_t first, int64_t last, char* memory) const {
    const AttentionArgs a = attention(l, at);
    for (int64_t h = 0; h < a.heads; ++h) CCT_CALL(attention_head_rows, a, b, b, h, first, last, memory);
    CCT_CALL(attention_projection_rows, a, b, b, first, last, memory);
  }

  void mlp_rows(int64_t l, const Activations& at, int64_t first, int64_t last, char* memory) const {
    CCT_CALL(layernorm_mlp_forward_rows, mlp(l, at), first, last, memory);
  }

  void qkv_rows(int64_t l, const Activations& at, int64_t b, int64_t first, int64_t last, char* memory) const {
    CCT_CALL(attention_qkv_rows, attention(l, at), b, b, first, last, memory);
  }

  // All layers of `images` images by one thread.
  void carry(const Activations& at, int64_t images, char* memory) const {
    for (int64_t l = 0; l < args_.count; ++l) {
      for (int64_t b = 0; b < images; ++b) {
        qkv_rows(l, at, b, 0, N_, memory);
        layer_rows(l, at, b, 0, N_, memory);
      }
      mlp_rows(l, at, 0, images * N_, memory);
    }
  }

  // All layers of `images` images by all threads.
  void share(const Activations& at, int64_t images) {
    const int64_t unit = row_unit(args_.layers[0].attention), blocks = (N_ + unit - 1) / unit;
    auto rows = [&](auto f) {  // f(image, first row, last row, memory) on each thread's rows
      threads_.slices(images * blocks, 1, [&](int64_t first, int64_t last, int64_t) {
        for (int64_t b = first / blocks; b * blocks < last; ++b)
          f(b, larger(first - b * blocks, 0) * unit, smaller(smaller(last - b * blocks, blocks) * unit, N_),
            threads_.scratch(scratch_));
      });
    };
    rows([&](int64_t b, int64_t first, int64_t last, char* memory) { qkv_rows(0, at, b, first, last, memory); });
    for (int64_t l = 0; l < args_.count; ++l)
      rows([&](int64_t b, int64_t first, int64_t last, char* memory) {
        layer_rows(l, at, b, first, last, memory);
        mlp_rows(l, at, b * N_ + first, b * N_ + last, memory);
        if (l + 1 < args_.count) qkv_rows(l + 1, at, b, first, last, memory);
      });
  }

  // All layers of all images by all threads, tokens as columns: see encoder_columns.h. Two threads meet four times a layer:
  // each has whole heads, and normalises all columns for itself where they are few. Else they divide the columns, and meet
  // before and after.
  void share_columns() {
    const AttentionArgs& first = args_.layers[0].attention;
    const bool own_norms = args_.threads <= 2 && args_.B * first.N * first.C <= 1 << 15;
    const bool whole_heads = first.heads % args_.threads == 0;
    const int64_t sheet = args_.B * first.Np * first.C, stride = column_stride(N_), rows = args_.B * first.C * stride;
    int64_t hidden = 0;
    for (int64_t l = 0; l < args_.count; ++l) hidden = larger(hidden, args_.B * first.Np * args_.layers[l].mlp.F);
    char* memory = threads_.shared(scratch_bytes({sheet, sheet, sheet, sheet, sheet, sheet, hidden, rows, rows}));
    auto next = [&](int64_t floats) {
      float* p = reinterpret_cast<float*>(memory);
      memory += scratch_bytes({floats});
      return p;
    };
    struct {
      float* columns;
      int64_t norms;                                 // that they have passed
    } own[] = {{next(sheet), 0}, {next(sheet), 0}};  // by threads
    ColumnBuffers at{};
    at.x = next(sheet), at.next = next(sheet), at.y = own[0].columns, at.q = next(sheet), at.o = next(sheet);
    at.h = next(hidden), at.k = next(rows), at.v = next(rows), at.stride = stride;
    for (int64_t l = 0; l < args_.count; ++l, std::swap(at.x, at.next)) {
      AttentionArgs attention = args_.layers[l].attention;
      MlpArgs mlp = args_.layers[l].mlp;
      attention.x = args_.x, attention.mask = args_.mask, mlp.out = args_.out;
      const ColumnArgs a{attention, mlp, args_.B, at};
      auto run = [&](int phase, int64_t norms = 0) {  // norms: how many its input has passed
        threads_.slices(column_items(a, phase), kSlices, [&](int64_t begin, int64_t end, int64_t thread) {
          char* scratch = threads_.scratch(columns_scratch(a));
          ColumnArgs mine = a;
          if (own_norms) mine.at.y = own[thread].columns;
          if (own_norms && norms && own[thread].norms != norms) {
            const int norm = norms % 2 ? kFirstNorm : kSecondNorm;
            CCT_CALL(column_phase, mine, norm, 0, column_items(a, norm), scratch);
            own[thread].norms = norms;
          }
          CCT_CALL(column_phase, mine, phase, begin, end, scratch);
        });
      };
      if (l == 0) run(kLoad);
      if (!own_norms) run(kFirstNorm);
      run(whole_heads ? kQkvHeads : kQkv, 2 * l + 1);
      if (!whole_heads) run(kHeads);
      run(kProjection);
      if (!own_norms) run(kSecondNorm);
      run(kHidden, 2 * l + 2);
      run(kOutput, 2 * l + 2);
      if (l + 1 == args_.count) run(kStore);
    }
  }

  // Memory of the activations of `images` images, with one or two copies of q, k and v.
  int64_t room(int64_t images, int64_t copies) const {
    return scratch_bytes({images * stream_bytes_ / 4, images * o_bytes_ / 4}) +
           copies * scratch_bytes({images * qkv_bytes_ / 4});
  }

  Activations activations(int64_t b, char* memory, int64_t images, bool two) const {
    auto next = [&](int64_t bytes) {
      char* p = memory;
      memory += scratch_bytes({images * bytes / 4});
      return p;
    };
    Activations at{};
    at.x = args_.x + b * stream_bytes_;
    at.out = args_.out + b * stream_bytes_;
    at.mask = args_.mask ? args_.mask + b * N_ : nullptr;
    at.stream = next(stream_bytes_), at.o = next(o_bytes_);
    at.qkv[0] = next(qkv_bytes_), at.qkv[1] = two ? next(qkv_bytes_) : at.qkv[0];
    return at;
  }

  const EncoderArgs& args_;
  Threads& threads_;
  int64_t N_, stream_bytes_, qkv_bytes_, o_bytes_, scratch_;  // of one image; of the kernels
};

}  // namespace cct
