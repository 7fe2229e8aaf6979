// Kept bits of a stored weight's words: a lane owns a word and walks its bits from the top, a few at a time.
#pragma once
#include "cuda/device.h"

namespace fk::cuda {

constexpr int STORED_CHUNK = 32;  // words between offsets: one for each lane
static_assert(STORED_CHUNK == CHUNK_WORDS, "a lane owns a word of a chunk");

#ifndef FK_EMULATED
FK_DEVICE uint32_t low_bits(uint32_t bits, int count) {
  uint32_t low;
  asm("szext.wrap.u32 %0, %1, %2;" : "=r"(low) : "r"(bits), "r"(count));
  return low;
}
// The count and that of the lane `step` below it in its group, if there is one. The shuffle itself knows.
FK_DEVICE uint32_t add_from_below(uint32_t count, int step, int lanes) {
  asm volatile(
      "{.reg .pred exists; .reg .u32 below; shfl.sync.up.b32 below|exists, %0, %1, %2, -1; @exists add.u32 %0, %0, "
      "below;}"
      : "+r"(count)
      : "r"(step), "r"((32 - lanes) << 8));
  return count;
}
// Into the second-level cache.
FK_DEVICE void fetch_line(const uint8_t* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
#else
FK_DEVICE void fetch_line(const uint8_t* from) {
  // what is not there must not be fetched
  volatile uint8_t byte = *from;
  (void)byte;
}
FK_DEVICE uint32_t low_bits(uint32_t bits, int count) { return bits & ((1u << (count & 31)) - 1u); }
FK_DEVICE uint32_t add_from_below(uint32_t count, int step, int lanes) {
  const uint32_t below = __shfl_up_sync(0xFFFFFFFFu, count, step);
  return (emulator::lane() & (lanes - 1)) >= static_cast<unsigned>(step) ? count + below : count;
}
#endif

// Sums of one row or column, one for each of a block's pixels.
template <int PIXELS>
struct alignas(4 * (PIXELS < 4 ? PIXELS : 4)) Pixels {
  float at[PIXELS];
};

template <int VALUES>
struct Stored;
template <>
struct Stored<FLOAT32> {
  using Element = float;
  static FK_DEVICE float value(float element) { return element; }
};
template <>
struct Stored<BFLOAT16> {
  using Element = uint16_t;
  static FK_DEVICE float value(uint16_t element) { return bfloat16_to_float(element); }
};
template <>
struct Stored<FLOAT16> {
  using Element = uint16_t;
  static FK_DEVICE float value(uint16_t element) { return half_to_float(element); }
};
template <>
struct Stored<INT8> {
  using Element = uint8_t;
  // As the low bits of 2^23: a conversion would wait for the unit that finds bits.
  static FK_DEVICE float value(uint8_t element) { return to_float(element ^ 0x4B000080u) - 8388736.0f; }
};

// The next kept weights of a word, from its top bit down: STEPS loads are on their way at once.
template <int VALUES, int STEPS>
struct Kept {
  int bit[STEPS];
  bool exists[STEPS];
  typename Stored<VALUES>::Element element[STEPS];

  // Of a word with kept bits; `end`: behind the value of its top bit. Bits that are taken are cleared.
  FK_DEVICE Kept(uint32_t& word, const typename Stored<VALUES>::Element* end) {
    FK_UNROLL for (int i = 0; i < STEPS; ++i) {
      exists[i] = i == 0 || word != 0;
      bit[i] = 31 - __clz(static_cast<int>(word));
      word = low_bits(word, bit[i]);
      if (exists[i]) element[i] = end[-1 - i];
    }
  }
  FK_DEVICE float value(int i) const { return Stored<VALUES>::value(element[i]); }
};

// The sum of a lane's count and of those of the lanes below it, among groups of `lanes`, a power of two.
FK_DEVICE uint32_t running_sum(uint32_t count, int lanes) {
  FK_UNROLL for (int step = 1; step < 32; step *= 2) {
    if (step >= lanes) break;
    count = add_from_below(count, step, lanes);
  }
  return count;
}

}  // namespace fk::cuda
