// What the drivers share. A driver calls the kernels of one op as the host side does, without PyTorch: guarded buffers of
// exactly the host's sizes, uninitialised memory full of NaN, one or two threads, and the result held against a plain loop in
// double.
//
// A driver <op>_test.cpp includes the kernel file, built for one instruction set (CCT_ISA), and defines test(); main is in
// driver.cpp, which is built for the baseline.
#pragma once

#include <sys/mman.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include "../cpu/dropout.h"
#include "../cpu/scratch.h"
#include "../cpu/weights.h"

namespace cct {

// Bytes that end at a page nobody may touch, NaN at first. AddressSanitizer sees the bytes in front; the page behind stops the
// accesses that it does not see either, such as those of AMX tiles.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(bytes), mapped_((bytes + kPage - 1) / kPage * kPage + kPage) {
    base_ = static_cast<char*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + mapped_ - kPage, kPage, PROT_NONE)) std::abort();
    std::memset(data(), 0xff, bytes);
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(base_, mapped_ - kPage - bytes);
#endif
  }
  ~Guarded() {
    if (!mapped_) return;  // moved away
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(base_, mapped_ - kPage);
#endif
    munmap(base_, mapped_);
  }
  Guarded(const Guarded&) = delete;
  Guarded(Guarded&& o) noexcept : base_(o.base_), bytes_(o.bytes_), mapped_(o.mapped_) { o.base_ = nullptr, o.mapped_ = 0; }
  char* data() const { return base_ + mapped_ - kPage - bytes_; }
  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kPage = 4096;
  char* base_;
  int64_t bytes_, mapped_;
};

using Values = std::vector<double>;

inline double rounded_bf16(double value) {
  const float f = float(value);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000u;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// float32 or BFloat16 elements in guarded memory.
class Array {
 public:
  Array(int64_t n, bool bf16) : bf16_(bf16), n_(n), memory_(n * (bf16 ? 2 : 4)) {}  // NaN
  Array(const Values& values, bool bf16) : Array(int64_t(values.size()), bf16) {
    for (int64_t i = 0; i < n_; ++i) {
      const float f = float(bf16 ? rounded_bf16(values[i]) : values[i]);
      std::memcpy(memory_.data() + i * width(), reinterpret_cast<const char*>(&f) + 4 - width(), width());
    }
  }
  // `values` with zeros up to a multiple of 64, as the host pads vectors
  static Array padded(Values values) {
    values.resize(round_up64(int64_t(values.size())));
    return Array(values, false);
  }

  Values values() const {
    Values out(n_);
    for (int64_t i = 0; i < n_; ++i) {
      float f = 0;
      std::memcpy(reinterpret_cast<char*>(&f) + 4 - width(), memory_.data() + i * width(), width());
      out[i] = f;
    }
    return out;
  }
  char* data() const { return memory_.data(); }
  float* floats() const { return reinterpret_cast<float*>(memory_.data()); }

 private:
  int64_t width() const { return bf16_ ? 2 : 4; }
  bool bf16_;
  int64_t n_;
  Guarded memory_;
};

class Random {
 public:
  Values normal(int64_t n, double scale = 1.0, double mean = 0.0, bool bf16 = false) {
    std::normal_distribution<double> draw(mean, scale);
    Values out(n);
    for (double& v : out) v = bf16 ? rounded_bf16(draw(engine_)) : float(draw(engine_));
    return out;
  }

 private:
  std::mt19937_64 engine_{1};
};

// Sums of each thread, zero at first, added up when all are done.
class Sums {
 public:
  Sums(int64_t threads, std::initializer_list<int64_t> sizes) {
    for (int64_t t = 0; t < threads; ++t) {
      parts_.emplace_back();
      for (int64_t n : sizes) parts_.back().emplace_back(Values(n), false);
    }
  }
  float* of(int64_t thread, int64_t which) const { return parts_[thread][which].floats(); }
  Values total(int64_t which) const {
    Values out = parts_[0][which].values();
    for (size_t t = 1; t < parts_.size(); ++t) {
      const Values part = parts_[t][which].values();
      for (size_t i = 0; i < out.size(); ++i) out[i] += part[i];
    }
    return out;
  }
  Values total(int64_t which, int64_t n) const {  // the first n
    Values out = total(which);
    out.resize(n);
    return out;
  }

 private:
  std::vector<std::vector<Array>> parts_;
};

// f(slot, first, last) on as many std::threads as there are slices of `items`, one for each of `threads` at most.
inline void for_slices(int64_t items, int64_t threads, const std::function<void(int64_t, int64_t, int64_t)>& f) {
  const int64_t slots = smaller(items, threads);
  std::vector<std::thread> running;
  for (int64_t s = 0; s < slots; ++s) running.emplace_back(f, s, s * items / slots, (s + 1) * items / slots);
  for (std::thread& t : running) t.join();
}

// The mask of one element by cct_kernels/philox.py: 0 where dropped, else the scale of kept values.
double dropout_factor(const DropoutArgs& d, uint32_t site, int64_t row, int64_t column);
DropoutArgs make_dropout(double p);

// y and rstd of one row's LayerNorm.
Values layernorm(const double* x, const Values& gamma, const Values& beta, double eps);

// How a call is made: storage and products in BFloat16, threads.
struct Setting {
  bool x_bf16, bf16;
  int64_t threads;
};

void expect_near(const std::string& what, const Values& got, const Values& exact, double tolerance);

// A gradient: `analytic` is held against central differences of `loss` at `at`, along random directions.
void expect_gradient(const std::string& what, const Values& analytic, Values at, double tolerance,
                     const std::function<double(const Values&)>& loss);

inline double dot(const Values& a, const Values& b) {
  double total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

// What a driver defines. where: the setting in words.
void test(const std::string& where, const Setting& set);

#if defined(CCT_ISA)
namespace CCT_ISA {

// The panels of a weight, as op.h's pack_weight makes them: (columns, K) when transposed, else (K, columns); group 0: none.
inline Array packed(const Values& weight, int64_t K, int64_t columns, bool transposed, int64_t group, bool weight_bf16,
                    bool bf16) {
  const Array source(weight, weight_bf16);
  PackArgs a{};
  a.weight = source.data();
  a.weight_bf16 = weight_bf16;
  a.bf16 = bf16;
  a.transposed = transposed;
  a.K = K;
  a.columns = columns;
  a.group = group ? group : columns;
  const int64_t count = columns / a.group * ((a.group + 63) / 64);
  const int64_t size = (K + 31) / 32 * 32 * 64;
  Array out(count * size, bf16);
  for (int64_t p = 0; p < count; ++p) pack_panel(a, p, out.data() + p * size * (bf16 ? 2 : 4));
  return out;
}

}  // namespace CCT_ISA
using namespace CCT_ISA;
#endif

}  // namespace cct
