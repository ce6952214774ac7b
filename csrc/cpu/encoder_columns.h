// The encoder's blocks for few rows, in float32: what takes the time is then the way of the weights through the caches. So the
// activations are kept with tokens as columns, and the weights are the left operands of the products, row by row as they lie:
// no packed copy is made, and no check whether one is still right. Each thread takes a share of the rows of every weight.
#pragma once

#include "layernorm_attention.h"
#include "layernorm_mlp.h"

namespace cct {

// What the phases of a block pass on. A sheet of R channels has the columns (tokens) of an image in strips, [strip][R][kStrip]
// with kStrip of gemm.h; the last one, where it has few columns, [column][R]. k and v are row-major (C, stride).
struct ColumnBuffers {
  float *x, *next, *y, *q, *o, *h;  // sheets of C channels, h of F; next: x of the next block
  float *k, *v;
  int64_t stride;  // no multiple of 4 KiB, so that a column does not fall into few sets of the cache
};

struct ColumnArgs {
  const AttentionArgs& attention;  // x: rows that begin the encoder; weights as they are
  const MlpArgs& mlp;              // out: rows that end it
  int64_t B;
  ColumnBuffers at;
};

// The phases of a block, each of so many independent items. kQkvHeads: kQkv and kHeads of a head at a time.
enum ColumnPhase { kLoad, kFirstNorm, kQkv, kHeads, kQkvHeads, kProjection, kSecondNorm, kHidden, kOutput, kStore };
constexpr int64_t kColumnRows = 8;    // rows of a weight in an item
constexpr int64_t kColumnGroup = 16;  // columns of an item of the others; a strip is a multiple of it
[[maybe_unused]] static int64_t column_items(const ColumnArgs& a, int phase) {
  const AttentionArgs& t = a.attention;
  const int64_t groups = a.B * ((t.N + kColumnGroup - 1) / kColumnGroup);
  auto shares = [](int64_t rows) { return (rows + kColumnRows - 1) / kColumnRows; };
  switch (phase) {
    case kQkv:
      return shares(3 * t.C);
    case kHeads:
      return a.B * t.heads * ((t.N + 63) / 64);  // 64 queries: whole strips of every set
    case kQkvHeads:
      return t.heads;
    case kHidden:
      return shares(a.mlp.F);
    case kProjection:
    case kOutput:
      return shares(t.C);
    default:
      return groups;
  }
}

[[maybe_unused]] static int64_t column_stride(int64_t N) { return round_up64(N) + 16; }
constexpr int64_t kColumnBlock = 48;  // rows of a weight that meet all columns before the next
[[maybe_unused]] static int64_t columns_scratch(const ColumnArgs& a) {
  const int64_t widest = larger(a.attention.C, a.mlp.F);
  return scratch_bytes({larger(kColumnBlock * widest, a.attention.N * 64), kColumnBlock * 64});
}

CCT_DECLARE(void column_phase(const ColumnArgs& a, int phase, int64_t first, int64_t last, char* scratch))

}  // namespace cct
