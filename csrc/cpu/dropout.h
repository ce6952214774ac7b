#pragma once

#include <cstdint>

namespace cct {

// One dropout probability and the counter that its masks come from (cct_kernels/philox.py). threshold 0: no dropout.
struct DropoutArgs {
  uint64_t seed;
  uint32_t offset, threshold;
  float scale;
};

// Which mask of an op.
enum DropoutSite : uint32_t { kAttentionSite, kProjectionSite, kHiddenSite, kOutputSite };

}  // namespace cct
