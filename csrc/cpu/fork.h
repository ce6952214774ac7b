// A fork copies the forking thread only: a lock that another thread holds just then would stay locked in the child for ever.
#pragma once

#include <pthread.h>

#include <mutex>

namespace cct {

// The forking thread takes the lock first, so that parent and child both go on with it free. No thread may hold two such locks.
template <std::mutex& lock>
bool hold_in_forks() {
  return pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); }) == 0;
}

}  // namespace cct
