// Threads for kernels: torch's own OpenMP pool where the process has one, since a second pool would spin against it.
#pragma once
#include <dlfcn.h>
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <type_traits>
#include <vector>

namespace fk {

namespace detail {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline GompParallel gomp_parallel() {
  static const GompParallel found = reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  return found;
}

// Runs body(data) on up to `threads` threads at once; how many actually come is not promised.
inline void run_team(int threads, void (*body)(void*), void* data) {
  if (threads <= 1) return body(data);
  if (const GompParallel team = gomp_parallel()) return team(body, data, static_cast<unsigned>(threads), 0);
  std::vector<std::thread> others;
  try {
    others.reserve(threads - 1);
    for (int i = 1; i < threads; ++i) others.emplace_back(body, data);
  } catch (const std::system_error&) {
    // The threads that did start, and this one, take all the tasks.
  }
  body(data);
  for (std::thread& other : others) other.join();
}

}  // namespace detail

// Calls fn(task) or fn(task, worker) for each task in [0, tasks). Workers are numbered below min(threads, tasks); one
// worker runs one task at a time. Which worker gets which task is not fixed, so results must not depend on it.
// The first exception is rethrown in the caller, after all workers have stopped.
template <class Fn>
void parallel_for(int threads, int64_t tasks, const Fn& fn) {
  struct Team {
    const Fn& fn;
    int64_t tasks;
    std::atomic<int64_t> next{0};
    std::atomic<int> workers{0};
    std::mutex mutex;
    std::exception_ptr error;

    void work() {
      const int worker = workers.fetch_add(1);
      for (int64_t task; (task = next.fetch_add(1)) < tasks;) {
        try {
          if constexpr (std::is_invocable_v<const Fn&, int64_t, int>) {
            fn(task, worker);
          } else {
            fn(task);
          }
        } catch (...) {
          const std::lock_guard<std::mutex> lock(mutex);
          if (!error) error = std::current_exception();
          next.store(tasks);
        }
      }
    }
  };
  if (tasks <= 0) return;
  const int size = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
  Team team{fn, tasks, {}, {}, {}, {}};
  detail::run_team(size, [](void* data) { static_cast<Team*>(data)->work(); }, &team);
  if (team.error) std::rethrow_exception(team.error);
}

}  // namespace fk
