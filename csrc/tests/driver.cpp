#include "driver.h"

#include <sys/syscall.h>
#include <unistd.h>

#include "../cpu/isa.h"

namespace cct {
namespace {

int g_failures = 0, g_checks = 0;

void fail(const std::string& what, double got, double expected, double allowed) {
  if (++g_failures <= 20) std::fprintf(stderr, "%s: %.9g, expected %.9g within %.3g\n", what.c_str(), got, expected, allowed);
}

bool runs_here(Isa level) {
#if defined(__x86_64__)
  __builtin_cpu_init();
  switch (level) {
    case Isa::kGeneric:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::kAvx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vl");
    case Isa::kAvx512Bf16:
      return runs_here(Isa::kAvx512) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx: {
      constexpr long kRequestPermission = 0x1023, kTileData = 18;  // as csrc/cpu/isa.cpp asks Linux
      return runs_here(Isa::kAvx512Bf16) && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }
  }
#endif
  return level == Isa::kGeneric;
}

}  // namespace

DropoutArgs make_dropout(double p) {
  return {0x123456789abcdef0ull, 7, uint32_t(std::nearbyint(p * 4294967296.0)), float(1.0 / (1.0 - p))};
}

double dropout_factor(const DropoutArgs& d, uint32_t site, int64_t row, int64_t column) {
  if (!d.threshold) return 1.0;
  uint32_t c[4] = {uint32_t(16 * (column / 64) + column % 16), uint32_t(row), d.offset, site};
  uint32_t k0 = uint32_t(d.seed), k1 = uint32_t(d.seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const uint64_t a = uint64_t(c[0]) * 0xD2511F53u, b = uint64_t(c[2]) * 0xCD9E8D57u;
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)};
    std::memcpy(c, next, sizeof c);
  }
  return c[column % 64 / 16] >= d.threshold ? d.scale : 0.0;
}

Values layernorm(const double* x, const Values& gamma, const Values& beta, double eps) {
  const size_t C = gamma.size();
  double mean = 0, variance = 0;
  for (size_t c = 0; c < C; ++c) mean += x[c] / double(C);
  for (size_t c = 0; c < C; ++c) variance += (x[c] - mean) * (x[c] - mean) / double(C);
  Values y(C);
  for (size_t c = 0; c < C; ++c) y[c] = (x[c] - mean) / std::sqrt(variance + eps) * gamma[c] + beta[c];
  return y;
}

void expect_near(const std::string& what, const Values& got, const Values& exact, double tolerance) {
  ++g_checks;
  if (got.size() != exact.size()) return fail(what + " size", double(got.size()), double(exact.size()), 0);
  double largest = 0;
  for (double v : exact) largest = std::fmax(largest, std::fabs(v));
  for (size_t i = 0; i < exact.size(); ++i)
    if (!(std::fabs(got[i] - exact[i]) <= tolerance * largest))
      return fail(what + "[" + std::to_string(i) + "]", got[i], exact[i], tolerance * largest);
}

void expect_gradient(const std::string& what, const Values& analytic, Values at, double tolerance,
                     const std::function<double(const Values&)>& loss) {
  ++g_checks;
  if (analytic.size() != at.size()) return fail(what + " size", double(analytic.size()), double(at.size()), 0);
  const double norm = std::sqrt(dot(analytic, analytic));
  for (int trial = 0; trial < 1; ++trial) {
    std::mt19937_64 engine(trial);
    Values direction(at.size()), up = at, down = at;
    for (double& v : direction) v = std::normal_distribution<double>()(engine);
    constexpr double kStep = 1e-6;
    for (size_t i = 0; i < at.size(); ++i) up[i] += kStep * direction[i], down[i] -= kStep * direction[i];
    const double slope = (loss(up) - loss(down)) / (2 * kStep), got = dot(analytic, direction);
    const double allowed = 4 * tolerance * norm + 1e-6;  // errors of the elements are independent: 4 standard deviations
    if (!(std::fabs(got - slope) <= allowed)) fail(what + " along a direction", got, slope, allowed);
  }
}

}  // namespace cct

// <op>_<set>_test SET: storage and products in both types, on 1 and 2 threads. 77: this CPU does not have the set.
int main(int, char** arguments) {
  using namespace cct;
  const char* const kNames[] = {"generic", "avx2", "avx512", "avx512_bf16", "amx"};
  int level = 0;
  while (std::strcmp(kNames[level], arguments[1])) ++level;
  if (!runs_here(Isa(level))) return 77;
  for (int x_bf16 = 0; x_bf16 <= 1; ++x_bf16)
    for (int bf16 = 0; bf16 <= (Isa(level) >= Isa::kAvx512Bf16); ++bf16)
      for (int threads = 1; threads <= 2; ++threads) {
        const std::string where = std::string(x_bf16 ? "bf16" : "fp32") + (bf16 ? " x bf16, " : " x fp32, ");
        test(where + std::to_string(threads) + " threads: ", Setting{x_bf16 != 0, bf16 != 0, threads});
      }
  std::printf("%d checks, %d failures\n", g_checks, g_failures);
  return g_failures || !g_checks;
}
