// Working memory of one thread, kept between calls: a fresh mapping for each task would cost more in page faults.
#pragma once
#include <stdint.h>

namespace fk {

constexpr int LASTING_SLOT = 1;  // of what outlives the work of slot 0, for one task or for all

class Scratch {
 public:
  // What lies in one slot outlives a scratch of another slot in the same thread.
  explicit Scratch(int64_t bytes, int slot = 0) : next_(memory(bytes, slot)) {}

  // 64-byte aligned; the sum of all takes, each rounded up to 64 bytes, must fit.
  template <class T>
  T* take(int64_t count) {
    char* const taken = next_;
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(taken);
  }

 private:
  static char* memory(int64_t bytes, int slot);

  char* next_;
};

}  // namespace fk
