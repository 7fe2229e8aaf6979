// What a GPU computes in one instruction, on the emulator: conversions, permutations of bytes, products of matrices.
#pragma once
#include "emulator.h"

namespace emulator {

inline float from_bfloat16(uint16_t half) { return cast<float>(static_cast<uint32_t>(half) << 16); }
inline float from_float16(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, rest = half & 0x7FFFu;
  if (rest >= 0x7C00) return cast<float>(sign | 0x7F800000u | rest << 13);
  return cast<float>(cast<uint32_t>(cast<float>(rest << 13) * 0x1p112f) | sign);  // the exponents' offsets: 127 and 15
}
// To nearest, ties to even; NaN is 0x7FFF, as of a GPU.
inline uint16_t to_bfloat16(float value) {
  const uint32_t bits = cast<uint32_t>(value);
  if (value != value) return 0x7FFF;
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}
inline uint16_t to_float16(float value) {
  const uint32_t bits = cast<uint32_t>(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
  if (value != value) return 0x7FFF;
  if (rest >= cast<uint32_t>(65520.0f)) return static_cast<uint16_t>(sign | 0x7C00);
  // Below the normal numbers a step is 2^-24, which is the last place of 0.5.
  if (rest < cast<uint32_t>(0x1p-14f))
    return static_cast<uint16_t>(sign | (cast<uint32_t>(cast<float>(rest) + 0.5f) - cast<uint32_t>(0.5f)));
  return static_cast<uint16_t>(sign | (rest - (112u << 23) + 0xFFF + (rest >> 13 & 1)) >> 13);
}

// prmt of PTX, its general form.
inline uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> 4 * i & 15;
    const uint32_t byte = ((static_cast<uint64_t>(b) << 32 | a) >> 8 * (choice & 7)) & 255;
    result |= (choice < 8 ? byte : byte < 128 ? 0 : 255) << 8 * i;
  }
  return result;
}

// mma.sync m16n8k16 and m16n8k32, as a word holds 2 or 4 elements along k, which `element(word, i)` reads. Sums go
// along k in one order; a tensor core's order and rounding are its own.
template <int PER_WORD, class Sum, class Element>
void multiply_fragments(Sum (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const Element& element) {
  const Slot* const slots = exchange({{a[0], a[1], a[2], a[3], b0, b1}}, {"mma", PER_WORD});
  const unsigned group = lane() / 4, in_group = lane() % 4;
  Slot upper[4], left[2][4];
  for (unsigned i = 0; i < 4; ++i) {
    upper[i] = shown(slots, group * 4 + i);
    for (unsigned j = 0; j < 2; ++j) left[j][i] = shown(slots, (in_group * 2 + j) * 4 + i);
  }
  for (int i = 0; i < 4; ++i) {
    const int lower_row = i / 2, column = i % 2;
    for (int half = 0; half < 2; ++half)
      for (int thread = 0; thread < 4; ++thread)
        for (int k = 0; k < PER_WORD; ++k)
          d[i] +=
              element(upper[thread].words[lower_row + 2 * half], k) * element(left[column][thread].words[4 + half], k);
  }
}
template <bool BFLOAT>
void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_fragments<2>(d, a, b0, b1, [](uint32_t word, int i) {
    const uint16_t half = static_cast<uint16_t>(word >> 16 * i);
    return BFLOAT ? from_bfloat16(half) : from_float16(half);
  });
}
inline void multiply_bytes(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  multiply_fragments<4>(d, a, b0, b1, [](uint32_t word, int i) { return static_cast<int8_t>(word >> 8 * i); });
}

}  // namespace emulator
