// CUDA kernels under g++: one fiber for each CUDA thread, blocks one after another. Included before csrc/cuda/device.h.
//
// Each warp runs ahead to the next __syncthreads, in an order that set_order chooses, so that a missing barrier shows
// in results. Under -fsanitize=thread only __syncthreads and __syncwarp order memory, as the language of CUDA has it:
// shuffles and matrix products do not, and blocks are not ordered at all. Dynamic shared memory is of exactly the size
// of the launch and holds NaN. What a GPU would leave undefined throws from `launch`.
#pragma once
#undef _FORTIFY_SOURCE  // which refuses jumps to another stack
#include <setjmp.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <deque>
#include <functional>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#define FK_EMULATED

#ifdef __SANITIZE_THREAD__
#include <sanitizer/tsan_interface.h>
extern "C" void __tsan_write_range(void*, unsigned long);
#define EMULATOR_RACES(...) __VA_ARGS__
// The emulator's own state is no memory of a kernel.
#define EMULATOR_HIDDEN __attribute__((no_sanitize("thread"), noinline))
#else
#define EMULATOR_RACES(...)
#define EMULATOR_HIDDEN
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

constexpr unsigned LANES = 32;
constexpr size_t STACK_BYTES = 128 << 10;
#ifdef __SANITIZE_THREAD__
constexpr size_t OWN_THREADS = 1500;
#else
constexpr size_t OWN_THREADS = 1;
#endif

enum class State { READY, IN_WARP, IN_BLOCK, DONE };

struct Place {
  const char* file;
  int line;
  bool operator==(const Place& other) const {
    return line == other.line && (file == other.file || !strcmp(file, other.file));
  }
  std::string text() const { return std::string(file) + ":" + std::to_string(line); }
};

// What a lane shows the others of its warp.
struct Slot {
  uint32_t words[8];
};

// What a CUDA thread runs on, and what the thread sanitizer takes it for.
struct Thread {
  std::unique_ptr<char[]> stack;
  void* sanitized = nullptr;
};
struct Fiber {
  ucontext_t context;
  jmp_buf jump;
  bool begun;
  Thread thread;
  dim3 index;
  unsigned number, exchanges, barriers[2];
  State state;
  Place place;
};

struct Warp {
  // Two sets in turn: a lane writes one again only when all lanes came past the other, so that one wait is enough.
  Slot slots[2][LANES];
  // What the thread sanitizer orders by: of the warp, and of the block in its first warp.
  char order[2], block_order[2];
};

struct InFlight {
  void* at;
  size_t bytes;
};

struct Machine {
  std::vector<Fiber> fibers;
  // Of the last block, and while races are sought of those before it: memory that is used twice would look like one.
  std::vector<std::unique_ptr<Warp[]>> kept_warps;
  std::vector<std::unique_ptr<uint8_t[]>> kept_shared;
  std::deque<Thread> free_threads, used_threads;
  Warp* warps = nullptr;
  uint8_t* shared = nullptr;
  Fiber* running = nullptr;
  ucontext_t scheduler;
  jmp_buf scheduler_jump;
  void* sanitized = nullptr;
  std::function<void()> body;
  dim3 grid, block, block_index;
  size_t shared_bytes = 0;
  std::string failure;
  int order = 0;
  std::vector<InFlight> in_flight;
  char started, ended, arrived;
};
inline Machine machine;

// 0: warps and lanes forward; 1: backward; others: shuffled with this seed.
inline void set_order(int order) { machine.order = order; }

// A jump makes no system call, which is half of the time; the sanitizers know switches of contexts alone.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
EMULATOR_HIDDEN inline void leave() {
  EMULATOR_RACES(__tsan_switch_to_fiber(machine.sanitized, __tsan_switch_to_fiber_no_sync);)
  swapcontext(&machine.running->context, &machine.scheduler);
}
EMULATOR_HIDDEN inline void enter(Fiber& fiber) {
  machine.running = &fiber;
  EMULATOR_RACES(__tsan_switch_to_fiber(fiber.thread.sanitized, __tsan_switch_to_fiber_no_sync);)
  swapcontext(&machine.scheduler, &fiber.context);
}
#else
inline void leave() {
  if (!_setjmp(machine.running->jump)) _longjmp(machine.scheduler_jump, 1);
}
inline void enter(Fiber& fiber) {
  machine.running = &fiber;
  if (_setjmp(machine.scheduler_jump)) return;
  if (fiber.begun) _longjmp(fiber.jump, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}
#endif

// Of a thread of a kernel: it never runs again, and `launch` throws.
EMULATOR_HIDDEN inline void fail(const std::string& what) {
  machine.failure = what;
  leave();
}
inline void require_aligned(const void* at, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(at) % bytes) fail("an access that is not aligned to " + std::to_string(bytes));
}

EMULATOR_HIDDEN inline void wait(State state, Place place) {
  machine.running->state = state;
  machine.running->place = place;
  leave();
}
// A barrier that orders memory, of the block or of the warp.
EMULATOR_HIDDEN inline void synchronize(State state, Place place) {
  EMULATOR_RACES(Fiber& fiber = *machine.running; const bool all = state == State::IN_BLOCK;
                 // Two objects in turn: who is late to leave one barrier must not acquire what the next one releases.
                 const unsigned turn = fiber.barriers[all]++ & 1;
                 char* const order =
                     all ? &machine.warps[0].block_order[turn] : &machine.warps[fiber.number / LANES].order[turn];
                 __tsan_release(order);)
  wait(state, place);
  EMULATOR_RACES(__tsan_acquire(order);)
}

// Memory of the next launch that a kernel before it may still write or read: under the thread sanitizer a race where
// the launch uses it before it waits for its inputs.
inline void in_flight(void* at, size_t bytes) { machine.in_flight.push_back({at, bytes}); }
EMULATOR_HIDDEN inline void wait_for_inputs() { EMULATOR_RACES(__tsan_acquire(&machine.arrived);) }

EMULATOR_HIDDEN inline const Slot* exchange(const Slot& mine, Place place) {
  Fiber& fiber = *machine.running;
  Slot* const slots = machine.warps[fiber.number / LANES].slots[fiber.exchanges++ & 1];
  slots[fiber.number % LANES] = mine;
  wait(State::IN_WARP, place);
  return slots;
}
EMULATOR_HIDDEN inline Slot shown(const Slot* slots, unsigned lane) { return slots[lane]; }

EMULATOR_HIDDEN inline unsigned lane() { return machine.running->number % LANES; }
EMULATOR_HIDDEN inline dim3 thread_index() { return machine.running->index; }
EMULATOR_HIDDEN inline dim3 block_index() { return machine.block_index; }
EMULATOR_HIDDEN inline dim3 block_size() { return machine.block; }
EMULATOR_HIDDEN inline dim3 grid_size() { return machine.grid; }
EMULATOR_HIDDEN inline void* dynamic_shared() { return machine.shared; }

template <class To, class From>
To cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "a cast keeps the size");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
template <class T>
Slot to_slot(const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot), "too large for a slot");
  Slot slot = {};
  memcpy(&slot, &value, sizeof value);
  return slot;
}
template <class T>
T from_slot(const Slot& slot) {
  T value;
  memcpy(&value, &slot, sizeof value);
  return value;
}
template <class T>
T shuffle(T value, unsigned mask, unsigned source, Place place) {
  if (mask != ~0u) fail("a warp intrinsic of a part of the warp at " + place.text());
  return from_slot<T>(shown(exchange(to_slot(value), place), source % LANES));
}

EMULATOR_HIDDEN inline void finish() {
  machine.running->state = State::DONE;
  leave();
}
EMULATOR_HIDDEN inline void fiber_main() {
  EMULATOR_RACES(__tsan_acquire(&machine.started);)
  machine.body();
  EMULATOR_RACES(__tsan_release(&machine.ended);)
  finish();
}

EMULATOR_HIDDEN inline void forget_blocks() {
  machine.kept_warps.clear();
  machine.kept_shared.clear();
}
// Nothing orders blocks, so they have threads of their own until the launch ends, which orders all before it with all
// after it. The thread sanitizer's memory ends at some thousands: blocks far from each other share them.
EMULATOR_HIDDEN inline Thread take_thread() {
  std::deque<Thread>& from = machine.free_threads.empty() ? machine.used_threads : machine.free_threads;
  Thread thread;
  if (machine.free_threads.empty() && machine.used_threads.size() < OWN_THREADS) {
    thread.stack.reset(new char[STACK_BYTES]);
    EMULATOR_RACES(thread.sanitized = __tsan_create_fiber(0);)
  } else {
    thread = std::move(from.front());
    from.pop_front();
  }
  return thread;
}
EMULATOR_HIDDEN inline void return_threads() {
  for (Thread& thread : machine.used_threads) machine.free_threads.push_back(std::move(thread));
  machine.used_threads.clear();
}
#ifdef __SANITIZE_THREAD__
// An earlier kernel, which nothing orders but the wait for inputs.
EMULATOR_HIDDEN inline void run_before() {
  Thread thread = take_thread();
  const InFlight* const first = machine.in_flight.data();
  const size_t count = machine.in_flight.size();
  __tsan_release(&machine.started);
  __tsan_switch_to_fiber(thread.sanitized, __tsan_switch_to_fiber_no_sync);
  __tsan_acquire(&machine.started);
  for (size_t i = 0; i < count; ++i) __tsan_write_range(first[i].at, first[i].bytes);
  __tsan_release(&machine.arrived);
  __tsan_switch_to_fiber(machine.sanitized, __tsan_switch_to_fiber_no_sync);
  machine.used_threads.push_back(std::move(thread));
}
#endif
EMULATOR_HIDDEN inline void make_block() {
  EMULATOR_RACES(if (false)) forget_blocks();
  const unsigned threads = machine.block.x;
  machine.warps = new Warp[threads / LANES];
  machine.shared = new uint8_t[machine.shared_bytes];
  machine.kept_warps.emplace_back(machine.warps);
  machine.kept_shared.emplace_back(machine.shared);
  for (size_t i = 0; i < machine.shared_bytes; ++i) machine.shared[i] = i % 2 ? 0x7F : 0xFF;  // NaN of any format
  machine.fibers.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = machine.fibers[i];
    fiber.thread = take_thread();
    fiber.index = dim3(i, 0, 0);
    fiber.number = i;
    fiber.exchanges = fiber.barriers[0] = fiber.barriers[1] = 0;
    fiber.begun = false;
    fiber.state = State::READY;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.thread.stack.get();
    fiber.context.uc_stack.ss_size = STACK_BYTES;
    fiber.context.uc_link = &machine.scheduler;
    makecontext(&fiber.context, fiber_main, 0);
  }
  EMULATOR_RACES(__tsan_release(&machine.started);)
}

// Of the threads from `first` to `end`: how many are in the state, and whether all of these are at one place.
struct Waiting {
  unsigned count = 0, done = 0;
  Place place = {};
  Waiting(State state, unsigned first, unsigned end) {
    for (unsigned i = first; i < end; ++i) {
      const Fiber& fiber = machine.fibers[i];
      done += fiber.state == State::DONE;
      if (fiber.state != state) continue;
      if (count++ && !(fiber.place == place))
        throw std::runtime_error("threads wait at " + place.text() + " and at " + fiber.place.text());
      place = fiber.place;
    }
  }
};

EMULATOR_HIDDEN inline void arrange(std::vector<unsigned>& numbers, std::mt19937& random) {
  std::sort(numbers.begin(), numbers.end());
  if (machine.order == 1) std::reverse(numbers.begin(), numbers.end());
  if (machine.order > 1) std::shuffle(numbers.begin(), numbers.end(), random);
}

// Until all lanes are done or wait for the block.
EMULATOR_HIDDEN inline void run_warp(unsigned first, std::mt19937& random) {
  std::vector<unsigned> lanes(LANES);
  for (unsigned i = 0; i < LANES; ++i) lanes[i] = first + i;
  for (;;) {
    arrange(lanes, random);
    for (const unsigned i : lanes) {
      if (machine.fibers[i].state == State::READY) enter(machine.fibers[i]);
      if (!machine.failure.empty()) throw std::runtime_error(machine.failure);
    }
    const Waiting waiting(State::IN_WARP, first, first + LANES);
    if (waiting.count == 0) return;
    if (waiting.count != LANES) throw std::runtime_error("lanes are missing at " + waiting.place.text());
    for (unsigned i = 0; i < LANES; ++i) machine.fibers[first + i].state = State::READY;
  }
}

EMULATOR_HIDDEN inline void run_block() {
  const unsigned threads = machine.block.x;
  std::mt19937 random(machine.order);
  std::vector<unsigned> warps(threads / LANES);
  for (unsigned i = 0; i < warps.size(); ++i) warps[i] = i;
  for (;;) {
    arrange(warps, random);
    for (const unsigned warp : warps) run_warp(warp * LANES, random);
    const Waiting waiting(State::IN_BLOCK, 0, threads);
    if (waiting.done == threads) break;
    if (waiting.done) throw std::runtime_error("threads are gone, and others wait at " + waiting.place.text());
    for (Fiber& fiber : machine.fibers) fiber.state = State::READY;
  }
  for (Fiber& fiber : machine.fibers) machine.used_threads.push_back(std::move(fiber.thread));
}

template <class Body>
void launch(dim3 grid, dim3 block, size_t shared, Body body) {
  if (block.x % LANES || block.x > 1024 || block.y * block.z != 1) throw std::runtime_error("no such block");
  if (grid.x < 1 || grid.y < 1 || grid.y > 65535 || grid.z != 1) throw std::runtime_error("no such grid");
  if (shared > 99 << 10) throw std::runtime_error("more shared memory than a block has");
  machine.grid = grid;
  machine.block = block;
  machine.shared_bytes = shared;
  machine.body = body;
  machine.failure.clear();
  EMULATOR_RACES(machine.sanitized = __tsan_get_current_fiber(); run_before();)
  machine.in_flight.clear();
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      machine.block_index = dim3(x, y, 0);
      make_block();
      run_block();
    }
  }
  EMULATOR_RACES(__tsan_acquire(&machine.ended); __tsan_acquire(&machine.arrived);)
  return_threads();
  forget_blocks();
}

}  // namespace emulator

#include "arithmetic.h"
#include "intrinsics.h"
