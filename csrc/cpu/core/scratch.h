// Working memory of one thread, kept between calls: a fresh mapping for each task would cost more in page faults.
#pragma once
#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>

namespace fk {

class Scratch {
 public:
  // What lies in one slot outlives a scratch of another slot in the same thread.
  explicit Scratch(int64_t bytes, int slot = 0) {
    static thread_local Block blocks[2];
    Block& block = blocks[slot];
    if (block.bytes < bytes) {
      block.memory.reset();
      block.bytes = 0;
      block.memory.reset(static_cast<char*>(aligned_alloc(64, static_cast<size_t>((bytes + 63) / 64 * 64))));
      if (!block.memory) throw std::bad_alloc();
      block.bytes = bytes;
    }
    next_ = block.memory.get();
  }

  // 64-byte aligned; the sum of all takes, each rounded up to 64 bytes, must fit.
  template <class T>
  T* take(int64_t count) {
    char* const taken = next_;
    next_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return reinterpret_cast<T*>(taken);
  }

 private:
  struct Free {
    void operator()(char* p) const { free(p); }
  };
  struct Block {
    std::unique_ptr<char, Free> memory;
    int64_t bytes = 0;
  };
  char* next_;
};

}  // namespace fk
