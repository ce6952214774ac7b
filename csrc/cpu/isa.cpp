#include "isa.h"

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <atomic>
#include <cstdlib>
#include <string>

namespace cct {
namespace {

constexpr const char* kNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};

#if defined(__x86_64__)
// The CPU has bf16 tiles and the kernel lets this process use them (Linux asks for permission once).
bool amx() {
#if defined(__linux__)
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & (1u << 22)) || !(d & (1u << 24))) return false;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Intel's cores with AVX-512 FP16 start a vdpbf16ps every two cycles: half the products a cycle of two float32 units. Where
// their tiles are kept from a process, float32 arithmetic is up to 1.7 times as fast (bench/PROFILE.md).
bool slow_dot_bf16() {
  unsigned a, b, c, d;
  return __builtin_cpu_is("intel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & (1u << 23));
}
#endif

Isa highest() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && amx()) return Isa::kAmx;
  if (bf16) return Isa::kAvx512Bf16;
  if (avx512) return Isa::kAvx512;
  if (avx2) return Isa::kAvx2;
#endif
  return Isa::kGeneric;
}

// The fastest level, which is not the highest everywhere.
Isa fastest() {
  const Isa level = highest();
#if defined(__x86_64__)
  if (level == Isa::kAvx512Bf16 && slow_dot_bf16()) return Isa::kAvx512;
#endif
  return level;
}

Isa parse(const std::string& name) {
  for (int level = 0; level <= static_cast<int>(Isa::kAmx); ++level) {
    if (name != kNames[level]) continue;
    TORCH_CHECK_VALUE(level <= static_cast<int>(highest()), "CCT_CPU_ISA: this CPU runs ", kNames[static_cast<int>(highest())],
                      " at most, got ", name);
    return static_cast<Isa>(level);
  }
  TORCH_CHECK_VALUE(false, "CCT_CPU_ISA: expected generic, avx2, avx512, avx512_bf16 or amx, got ", name);
}

std::atomic<int> g_isa{-1};  // -1: not chosen yet

}  // namespace

Isa isa() {
  int level = g_isa.load(std::memory_order_relaxed);
  if (level < 0) {
    const char* wish = std::getenv("CCT_CPU_ISA");
    level = static_cast<int>(wish && *wish ? parse(wish) : fastest());
    g_isa.store(level, std::memory_order_relaxed);
  }
  return static_cast<Isa>(level);
}

}  // namespace cct

TORCH_LIBRARY_FRAGMENT(cct_kernels, m) {
  m.def("cpu_isa() -> str", [] { return std::string(cct::kNames[static_cast<int>(cct::isa())]); });
  m.def("cpu_multiplies_bfloat16() -> bool", [] { return cct::isa() >= cct::Isa::kAvx512Bf16; });
  m.def("set_cpu_isa(str name) -> ()", [](std::string name) { cct::g_isa = static_cast<int>(cct::parse(name)); });
}
