// How the host side shares work among threads.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace cct {

// The cores that the threads of a region run on. A thread that slept is often woken on the core of the one that woke it, and
// would stand in line behind it for its whole time slice: single images after a pause took 10 ms more.
class Cores {
 public:
  // A thread begins: it moves to a core of its own if another thread has this one and there is one.
  void enter() {
#if defined(__linux__)
    const int core = sched_getcpu();
    if (core < 0 || core >= kMost || !(taken_[core / 64].fetch_or(bit(core)) & bit(core))) return;
    cpu_set_t allowed, others;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    others = allowed;
    for (int c = 0; c < kMost; ++c)
      if (taken_[c / 64] & bit(c)) CPU_CLR(c, &others);
    if (CPU_COUNT(&others) == 0 || sched_setaffinity(0, sizeof others, &others)) return;
    sched_setaffinity(0, sizeof allowed, &allowed);
    if (const int now = sched_getcpu(); now >= 0 && now < kMost) taken_[now / 64] |= bit(now);
#endif
  }

 private:
  static constexpr int kMost = 1024;  // as in cpu_set_t
  static uint64_t bit(int core) { return uint64_t{1} << core % 64; }
  std::atomic<uint64_t> taken_[kMost / 64] = {};
};

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// When threads last shared work, or one did it all.
inline std::atomic<std::chrono::steady_clock::time_point> g_last_work{};
// Whether the others sleep by now: OpenMP's turn in circles for 5 to 15 ms.
inline bool others_sleep() { return std::chrono::steady_clock::now() - g_last_work.load() > std::chrono::milliseconds(10); }

// While one lives this thread does all the work: where the others sleep, to wake them takes 0.1 to 5 ms, at the mercy of the
// system. Who makes what changes, not what is made.
class Alone {
 public:
  explicit Alone(bool yes) : before_(t_alone) { t_alone = t_alone || yes; }
  ~Alone() { t_alone = before_; }
  Alone(const Alone&) = delete;
  static bool here() { return t_alone; }

 private:
  static inline thread_local bool t_alone = false;
  const bool before_;
};
constexpr double kNotWorthWaking = 1 << 26;  // multiplications and additions, 1 to 2 ms of a thread

// f(t) for t in [0, threads), each on a thread of its own where there are so many.
//
// The first thread waits for the others by giving way: one that stands in line behind it shall run, if only to move away.
// OpenMP's barrier would turn in circles.
template <typename F>
void parallel(int64_t threads, F f) {
  struct Worked {  // at last, also where f throws
    ~Worked() { g_last_work = std::chrono::steady_clock::now(); }
  } worked;
  if (Alone::here() || threads == 1) {
    for (int64_t t = 0; t < threads; ++t) f(t);
    return;
  }
  constexpr int kTurns = 500;  // about 20 us
  std::atomic<int64_t> running = threads;
  Cores cores;
  at::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
    cores.enter();
    {
      struct Done {  // also where f throws
        std::atomic<int64_t>& running;
        const int64_t count;
        ~Done() { running -= count; }
      } done{running, last - first};
      for (int64_t t = first; t < last; ++t) f(t);
    }
    for (int turns = 0; first == 0 && running > 0; ++turns) turns < kTurns ? pause() : std::this_thread::yield();
  });
}

// Slices of a thread's share of the work: the more, the less a thread waits for one that is slower or was interrupted.
constexpr int64_t kForwardSlices = 4;
// Gradients are summed for each slice: those of many threads take much memory, and long to add up.
inline int64_t backward_slices() { return at::get_num_threads() > 16 ? 1 : 2; }

inline int64_t count_slices(int64_t items, int64_t per_thread) { return std::min(items, per_thread * at::get_num_threads()); }

// f(first, last, slot, thread) over `items` in contiguous slices, at most `per_thread` for each thread. The slices, and so
// every sum made over one, are the same from run to run for a given number of threads. Which thread has one is not: a thread
// that is done with its own takes those of others. thread: which of them, below at::get_num_threads().
template <typename F>
void thread_slices(int64_t items, int64_t per_thread, F f) {
  const int64_t slots = count_slices(items, per_thread), threads = std::min<int64_t>(slots, at::get_num_threads());
  struct alignas(64) Queue {
    std::atomic<int64_t> next;
  };
  std::vector<Queue> queues(threads);
  for (int64_t t = 0; t < threads; ++t) queues[t].next = t * slots / threads;
  parallel(threads, [&](int64_t t) {
    for (int64_t i = 0; i < threads; ++i) {
      const int64_t owner = (t + i) % threads, end = (owner + 1) * slots / threads;
      for (int64_t s; (s = queues[owner].next++) < end;) f(s * items / slots, (s + 1) * items / slots, s, t);
    }
  });
}
template <typename F>
void for_slices(int64_t items, int64_t per_thread, F f) {
  thread_slices(items, per_thread, [&](int64_t first, int64_t last, int64_t slot, int64_t) { f(first, last, slot); });
}
template <typename F>
void for_slices(int64_t items, F f) {
  for_slices(items, 1, f);
}

}  // namespace cct
