// Run-time choice among the instruction sets a kernel file was compiled for. One object per set, one namespace per set.
#pragma once

namespace cct {

// Ordered: a CPU that runs a level runs all before it.
enum class Isa { kGeneric, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// The fastest level of this CPU, or another that it runs, asked for by CCT_CPU_ISA or set_cpu_isa.
Isa isa();

}  // namespace cct

// CCT_DECLARE(void f(int)) declares f once in each namespace; CCT_CALL(f, 1) calls the one of isa(), or of the only set that a
// program in csrc/tests is built for.
#if defined(__x86_64__)
#define CCT_DECLARE(...)  \
  namespace generic {     \
  __VA_ARGS__;            \
  }                       \
  namespace avx2 {        \
  __VA_ARGS__;            \
  }                       \
  namespace avx512 {      \
  __VA_ARGS__;            \
  }                       \
  namespace avx512_bf16 { \
  __VA_ARGS__;            \
  }                       \
  namespace amx {         \
  __VA_ARGS__;            \
  }
#if defined(CCT_ISA)
#define CCT_CALL(fn, ...) CCT_ISA::fn(__VA_ARGS__)
#else
#define CCT_CALL(fn, ...)                                                   \
  (::cct::isa() == ::cct::Isa::kAmx          ? amx::fn(__VA_ARGS__)         \
   : ::cct::isa() == ::cct::Isa::kAvx512Bf16 ? avx512_bf16::fn(__VA_ARGS__) \
   : ::cct::isa() == ::cct::Isa::kAvx512     ? avx512::fn(__VA_ARGS__)      \
   : ::cct::isa() == ::cct::Isa::kAvx2       ? avx2::fn(__VA_ARGS__)        \
                                             : generic::fn(__VA_ARGS__))
#endif
#else
#define CCT_DECLARE(...) \
  namespace generic {    \
  __VA_ARGS__;           \
  }
#define CCT_CALL(fn, ...) generic::fn(__VA_ARGS__)
#endif
