#include "cpu/core/parallel.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

#include <exception>
#include <thread>
#include <vector>

namespace fk {

namespace {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Torch's own OpenMP pool where the process has one, since a second pool would spin against it.
GompParallel gomp_parallel() {
#ifdef _WIN32
  return nullptr;  // the pools of torch's builds for Windows have no such entry
#else
  static const GompParallel found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
#endif
}

}  // namespace

void run_team(int threads, void (*body)(void*), void* data) {
  if (threads <= 1) return body(data);
  if (const GompParallel team = gomp_parallel()) return team(body, data, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  try {
    others.reserve(threads - 1);
    for (int i = 1; i < threads; ++i) others.emplace_back(body, data);
  } catch (const std::exception&) {  // no thread or no memory for one
    // The threads that did start, and this one, take all the tasks.
  }
  body(data);
  for (std::thread& other : others) other.join();
}

}  // namespace fk
