// Memory of large results, kept from one to the next.
#pragma once
#include <cstddef>

namespace fk {

// malloc maps a block above its largest threshold anew at each call, and the system clears every page of it.
constexpr size_t LARGEST_HEAP_BLOCK = size_t{32} << 20;

// Memory for a result, aligned to a cache line at least; null where there is none. Above LARGEST_HEAP_BLOCK it is,
// where one fits, the memory of a result that was freed.
void* take_result(size_t bytes);
// Frees it. Memory above LARGEST_HEAP_BLOCK is kept, at most as much as was in use at one time, and marked as the
// system's to take when it needs some.
void free_result(void* memory);
// Gives the system all that is kept.
void release_results();

}  // namespace fk
