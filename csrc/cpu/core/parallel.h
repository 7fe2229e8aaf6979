// Threads for kernels.
#pragma once
#include <stdint.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <type_traits>

namespace fk {

// Runs body(data) on up to `threads` threads at once; how many actually come is not promised.
void run_team(int threads, void (*body)(void*), void* data);

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
  run_team(size, [](void* data) { static_cast<Team*>(data)->work(); }, &team);
  if (team.error) std::rethrow_exception(team.error);
}

}  // namespace fk
