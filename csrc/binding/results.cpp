#include "binding/results.h"

#include <stdlib.h>

#include <atomic>
#include <cstdint>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace fk {

namespace {

constexpr size_t LINE = 64, HUGE_PAGE = size_t{2} << 20;

// In front of a result.
struct alignas(LINE) Header {
  void* memory;  // what free takes
  size_t bytes;  // from here on, a multiple of HUGE_PAGE; 0 where it is malloc's to keep
};

// No lock: a process that forks while another thread frees a result must not wait for that thread.
std::atomic<Header*> kept[16];
std::atomic<size_t> bytes_kept, bytes_used, most_used;

// By malloc, which finds the block of the last result of a size again. posix_memalign, which torch calls, asks for more
// than it keeps: a block that it left does not fit the next request, and forwards would spread over memory that lay
// idle.
Header* make(size_t bytes, size_t alignment) {
  void* const memory = malloc(bytes + alignment);
  if (!memory) return nullptr;
  const uintptr_t place = (reinterpret_cast<uintptr_t>(memory) + alignment - 1) / alignment * alignment;
  return new (reinterpret_cast<void*>(place)) Header{memory, 0};
}

Header* make_large(size_t bytes) {
  Header* const block = make(bytes, HUGE_PAGE);
  if (!block) return nullptr;
  block->bytes = bytes;
#ifdef __linux__
  madvise(block, bytes, MADV_HUGEPAGE);  // a page fault per 2 MB, not per 4 KB
#endif
  return block;
}

bool keep(Header* block) {
  for (auto& place : kept) {
    Header* empty = nullptr;
    if (place.compare_exchange_strong(empty, block)) return true;
  }
  return false;
}

void give_back(Header* block) {
  bytes_kept -= block->bytes;
  free(block->memory);
}

// The smallest of those kept that fits and is at most twice as large; of none, null.
Header* take_kept(size_t bytes) {
  Header* best = nullptr;
  for (auto& place : kept) {
    Header* block = place.exchange(nullptr);
    if (!block) continue;
    if (block->bytes >= bytes && block->bytes <= 2 * bytes && (!best || block->bytes < best->bytes))
      std::swap(block, best);
    if (block && !keep(block)) give_back(block);
  }
  return best;
}

// Any of those kept.
Header* take_any() {
  for (auto& place : kept) {
    if (Header* const block = place.exchange(nullptr)) return block;
  }
  return nullptr;
}

Header* take_large(size_t bytes) {
  bytes = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
  Header* block = take_kept(bytes);
  if (block) {
    bytes_kept -= block->bytes;
  } else {
    // Room for this one when it is freed: those that are kept may be of sizes that nobody asks for any more.
    while (bytes_kept + bytes > most_used) {
      Header* const other = take_any();
      if (!other) break;
      give_back(other);
    }
    block = make_large(bytes);
    if (!block) return nullptr;
  }
  const size_t used = bytes_used += block->bytes;
  for (size_t most = most_used; most < used && !most_used.compare_exchange_weak(most, used);) continue;
  return block;
}

}  // namespace

void* take_result(size_t bytes) {
  if (bytes > SIZE_MAX / 2) return nullptr;
  bytes += sizeof(Header);
  Header* const block = bytes > LARGEST_HEAP_BLOCK ? take_large(bytes) : make(bytes, LINE);
  return block ? block + 1 : nullptr;
}

void free_result(void* memory) {
  Header* const block = static_cast<Header*>(memory) - 1;
  if (!block->bytes) return free(block->memory);
  bytes_used -= block->bytes;
  const size_t all = bytes_kept += block->bytes;
#ifdef MADV_FREE
  madvise(reinterpret_cast<char*>(block) + HUGE_PAGE, block->bytes - HUGE_PAGE, MADV_FREE);  // not the header's page
#endif
  if (all > most_used || !keep(block)) give_back(block);
}

void release_results() {
  while (Header* const block = take_any()) give_back(block);
}

}  // namespace fk
