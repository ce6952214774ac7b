#pragma once

#include <cstdint>

#include "isa.h"

namespace cct {

// The panels of B (K, columns) in gemm.h's layout. Each `group` columns start a new panel (the heads of a qkv projection);
// transposed: the weight is stored as B^T (columns, K), as nn.Linear does.
struct PackArgs {
  const void* weight;
  bool weight_bf16, bf16, transposed;
  int64_t K, columns, group;
};

// The first column of panel p.
[[maybe_unused]] static int64_t panel_column(const PackArgs& a, int64_t p) {
  const int64_t per_group = (a.group + 63) / 64;
  return p / per_group * a.group + p % per_group * 64;
}

CCT_DECLARE(void pack_panel(const PackArgs& a, int64_t p, void* panel))  // panel p alone
CCT_DECLARE(uint64_t checksum_words(const uint32_t* words, int64_t n))

}  // namespace cct
