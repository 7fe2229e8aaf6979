#include "cpu/core/scratch.h"

#include <stdlib.h>

#include <memory>
#include <new>

namespace fk {

namespace {

#ifdef _WIN32
void* lines(size_t bytes) { return _aligned_malloc(bytes, 64); }
struct Free {
  void operator()(char* p) const { _aligned_free(p); }
};
#else
void* lines(size_t bytes) { return aligned_alloc(64, bytes); }
struct Free {
  void operator()(char* p) const { free(p); }
};
#endif
struct Block {
  std::unique_ptr<char, Free> memory;
  int64_t bytes = 0;
};

}  // namespace

char* Scratch::memory(int64_t bytes, int slot) {
  static thread_local Block blocks[2];
  Block& block = blocks[slot];
  if (block.bytes < bytes) {
    block.memory.reset();
    block.bytes = 0;
    block.memory.reset(static_cast<char*>(lines(static_cast<size_t>((bytes + 63) / 64 * 64))));
    if (!block.memory) throw std::bad_alloc();
    block.bytes = bytes;
  }
  return block.memory.get();
}

}  // namespace fk
