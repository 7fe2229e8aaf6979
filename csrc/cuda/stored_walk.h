// Kept bits of a stored weight's words: a lane owns a word and walks its bits from the top, four at a time.
#pragma once
#include "cuda/device.h"

namespace fk::cuda {

constexpr int STORED_CHUNK = 32;  // words between offsets: one for each lane
static_assert(STORED_CHUNK == CHUNK_WORDS, "a lane owns a word of a chunk");

#ifndef FK_EMULATED
// The lowest bits, their count by its remainder from 32.
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
// The upper half of a pair shifted to the left, by the shift's remainder from 32.
FK_DEVICE uint32_t shifted(uint32_t low, uint32_t high, uint32_t shift) {
  uint32_t result;
  asm("shf.l.wrap.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(shift));
  return result;
}
// Into the second-level cache.
FK_DEVICE void fetch_line(const uint8_t* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
#else
FK_DEVICE uint32_t shifted(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
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

// Values of a dtype, four at a time. `four`: of two fours that follow one another in memory those up to the element of
// the upper one whose address is `last`. `value`: one of four.
template <int VALUES>
struct Stored;
template <>
struct Stored<FLOAT32> {
  using Element = float;
  using Four = float4;
  static FK_DEVICE Four four(const Four& lower, const Four& upper, uint32_t last) {
    const bool far = (last & 8) != 0, odd = (last & 4) != 0;
    const float a = far ? lower.w : lower.y, b = far ? upper.x : lower.z, c = far ? upper.y : lower.w;
    const float d = far ? upper.z : upper.x, e = far ? upper.w : upper.y;
    return {odd ? b : a, odd ? c : b, odd ? d : c, odd ? e : d};
  }
  static FK_DEVICE float value(const Four& four, int i) {
    return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
  }
};
struct StoredHalves {
  using Element = uint16_t;
  using Four = uint2;
  static FK_DEVICE Four four(const Four& lower, const Four& upper, uint32_t last) {
    const bool far = (last & 4) != 0;
    const uint32_t a = far ? lower.y : lower.x, b = far ? upper.x : lower.y, c = far ? upper.y : upper.x;
    const uint32_t shift = 8 * last + 16;
    return {shifted(a, b, shift), shifted(b, c, shift)};
  }
};
template <>
struct Stored<BFLOAT16> : StoredHalves {
  static FK_DEVICE float value(const Four& four, int i) {
    const uint32_t pair = i < 2 ? four.x : four.y;
    return to_float(i % 2 ? pair & 0xFFFF0000u : pair << 16);
  }
};
template <>
struct Stored<FLOAT16> : StoredHalves {
  static FK_DEVICE float value(const Four& four, int i) {
    const uint32_t pair = i < 2 ? four.x : four.y;
    return half_to_float(i % 2 ? pair >> 16 : pair & 0xFFFFu);
  }
};
template <>
struct Stored<INT8> {
  using Element = uint8_t;
  using Four = uint32_t;
  static FK_DEVICE Four four(Four lower, Four upper, uint32_t last) {
    return shifted(lower, upper, 8 * ~last) ^ 0x80808080u;
  }
  // As the low bits of 2^23: a conversion would wait for the unit that finds bits.
  static FK_DEVICE float value(Four four, int i) {
    constexpr uint32_t TWO_23 = 0x4B000000u;
    const uint32_t bits = i == 0   ? permute<0x7650>(four, TWO_23)
                          : i == 1 ? permute<0x7651>(four, TWO_23)
                          : i == 2 ? permute<0x7652>(four, TWO_23)
                                   : permute<0x7653>(four, TWO_23);
    return to_float(bits) - 8388736.0f;
  }
};

// Where the fours end that the tensor of values has, which begins at a multiple of 16 bytes.
template <int VALUES>
FK_DEVICE const typename Stored<VALUES>::Element* end_of_fours(const Product& p, int chunks) {
  const int64_t count = p.offsets[static_cast<int64_t>(p.rows) * chunks];
  return static_cast<const typename Stored<VALUES>::Element*>(p.values) + (count & ~int64_t{3});
}

// A word's values, from the last back. They are loaded in aligned fours, a quarter of the loads of single ones.
template <int VALUES>
class WordValues {
 public:
  using Element = typename Stored<VALUES>::Element;
  using Four = typename Stored<VALUES>::Four;

  // Of `count` values, one or more, that end at `end`; at `whole` the fours end that the tensor has.
  FK_DEVICE WordValues(const Element* end, int count, const Element* whole) {
    last_ = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(end - 1));
    const int top = static_cast<int>(last_ / sizeof(Element) & 3);
    // no pointer from an integer: its memory would be of any kind
    const Element* const from = end - 1 - top;
    at_ = reinterpret_cast<const Four*>(from);
    below_ = count - top - 1;
    if (end <= whole) {
      upper_ = *at_;
    } else {
      Element elements[4] = {};
      FK_UNROLL for (int i = 0; i < 3; ++i) {
        if (i <= top) elements[i] = from[i];
      }
      upper_ = as_four(elements);
    }
  }
  FK_DEVICE Four next() {
    --at_;
    Four lower = {};
    if (below_ > 0) lower = *at_;
    below_ -= 4;
    const Four four = Stored<VALUES>::four(lower, upper_, last_);
    upper_ = lower;
    return four;
  }

 private:
  static FK_DEVICE float4 as_four(const float (&e)[4]) { return {e[0], e[1], e[2], e[3]}; }
  static FK_DEVICE uint2 as_four(const uint16_t (&e)[4]) {
    return {e[0] | static_cast<uint32_t>(e[1]) << 16, e[2] | static_cast<uint32_t>(e[3]) << 16};
  }
  static FK_DEVICE uint32_t as_four(const uint8_t (&e)[4]) {
    return e[0] | static_cast<uint32_t>(e[1]) << 8 | static_cast<uint32_t>(e[2]) << 16;
  }

  const Four* at_;
  Four upper_;
  uint32_t last_;  // of the address of the last value, whose place in its four all fours share
  int below_;      // values in the fours below
};

// The next four kept weights of a word, from its top bit down.
template <int VALUES>
struct Kept {
  int bit[4];
  bool exists[4];
  typename Stored<VALUES>::Four four;

  // Of a word with kept bits; those that are taken are cleared.
  FK_DEVICE Kept(uint32_t& word, WordValues<VALUES>& values) : four(values.next()) {
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      exists[i] = i == 0 || word != 0;
      bit[i] = 31 - __clz(static_cast<int>(word));
      word = low_bits(word, bit[i]);
    }
  }
  FK_DEVICE float value(int i) const { return Stored<VALUES>::value(four, 3 - i); }
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
