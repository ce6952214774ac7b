// Runs the kernels of csrc/cuda on the host, for tests of their numerics on machines without a GPU: the same .cu files,
// compiled by the host compiler after this header. A block is a set of fibers, one for each thread; blocks run one after the
// other. A barrier that not all threads reach stops the program. CCT_EMULATE_REVERSE=1 runs the threads in the opposite order:
// a race on shared memory then changes the results.
#pragma once

#include <cuda_runtime.h>
#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>
#undef __shared__
#undef __device__
#undef __global__
#undef __host__
#undef __launch_bounds__
#define __shared__ static
#define __device__
#define __global__
#define __host__
#define __launch_bounds__(...)

#define CCT_NAMESPACE cct_emulated
#define CCT_DISPATCH CPU
#define CCT_DYNAMIC_SHARED(name) uint4* name = emulation::dynamic_shared

namespace emulation {

constexpr int kMaxThreads = 1024, kStackBytes = 1 << 17, kSharedBytes = 1 << 18;

inline int environment(const char* name, int otherwise) {
  const char* text = std::getenv(name);
  return text ? std::atoi(text) : otherwise;
}

struct Barrier {
  int expected = 0, arrived = 0;
  long generation = 0;
};

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  bool done = true;
};

struct Block {
  Fiber fibers[kMaxThreads];
  ucontext_t scheduler;
  int threads = 0, current = 0;
  long progress = 0;
  Barrier all, warps[kMaxThreads / 32];
  float exchanged[2][kMaxThreads];
  int turn[kMaxThreads];
  std::function<void()> body;
};
inline Block block;
inline uint4 dynamic_shared[kSharedBytes / sizeof(uint4)];

inline void wait(Barrier& barrier) {
  const long generation = barrier.generation;
  ++block.progress;
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.generation;
    return;
  }
  while (barrier.generation == generation) swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

inline void run_fiber() {
  block.body();
  ++block.progress;
  block.fibers[block.current].done = true;
  swapcontext(&block.fibers[block.current].context, &block.scheduler);
}

}  // namespace emulation

inline uint3 blockIdx;
inline dim3 blockDim, gridDim;
inline struct {
  struct X {
    operator unsigned() const { return emulation::block.current % blockDim.x; }
  } x;
  struct Y {
    operator unsigned() const { return emulation::block.current / blockDim.x; }
  } y;
} threadIdx;

inline void __syncthreads() { emulation::wait(emulation::block.all); }

// Two buffers in turn: nobody reaches the next but one exchange before all have read this one.
inline float __shfl_xor_sync(unsigned, float value, int mask) {
  auto& block = emulation::block;
  const int thread = block.current, turn = block.turn[thread] ^= 1;
  block.exchanged[turn][thread] = value;
  emulation::wait(block.warps[thread / 32]);
  return block.exchanged[turn][thread ^ mask];
}

inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline int min(int a, int b) { return a < b ? a : b; }

namespace emulation {

inline void run_block() {
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[t];
    if (!fiber.stack) fiber.stack.reset(new char[kStackBytes]);
    getcontext(&fiber.context);
    fiber.context.uc_stack = {.ss_sp = fiber.stack.get(), .ss_flags = 0, .ss_size = kStackBytes};
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
    fiber.done = false;
    block.turn[t] = 0;
  }
  block.all = {block.threads};
  for (int w = 0; w < block.threads / 32; ++w) block.warps[w] = {32};
  const int mirror = environment("CCT_EMULATE_REVERSE", 0) ? block.threads - 1 : 0;
  auto run_while_it_moves = [](auto run) {
    for (long before = -1; before != block.progress;) before = block.progress, run();
  };
  run_while_it_moves([&] {
    for (int first = 0; first < block.threads;
         first += 32)  // each warp as far as it gets: the least fair order shows most races
      run_while_it_moves([&] {
        for (int t = first; t < first + 32; ++t) {
          block.current = mirror ? mirror - t : t;
          if (!block.fibers[block.current].done) swapcontext(&block.scheduler, &block.fibers[block.current].context);
        }
      });
  });
  for (int t = 0; t < block.threads; ++t)
    if (!block.fibers[t].done) std::fprintf(stderr, "thread %d waits at a barrier that others do not reach\n", t), std::abort();
}

}  // namespace emulation

namespace cct {

class Device {
 public:
  template <typename T>
  explicit Device(const T&) {}
  int multiprocessors() const { return emulation::environment("CCT_EMULATE_MULTIPROCESSORS", 1); }
  int shared_bytes() const { return emulation::environment("CCT_EMULATE_SHARED_BYTES", 48 * 1024); }

  template <typename... Parameters, typename... Args>
  void launch(void (*kernel)(Parameters...), dim3 blocks, dim3 threads, size_t shared, Args... args) const {
    if (shared > emulation::kSharedBytes) std::abort();
    gridDim = blocks;
    blockDim = threads;
    emulation::block.threads = int(threads.x * threads.y);
    emulation::block.body = [=] { kernel(args...); };
    for (blockIdx.y = 0; blockIdx.y < blocks.y; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < blocks.x; ++blockIdx.x) emulation::run_block();
  }
};

}  // namespace cct
