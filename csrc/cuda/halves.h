// Sign codes as halves of a register, which bfloat16 and float16 read alike, and floats as parts that bfloat16 holds.
#pragma once
#include "cuda/device.h"

namespace fk::cuda {

// Weights are +-2, of which the sign and one more bit are set; the scale is halved for it.
constexpr uint32_t TWO = 0xC000C000u;
constexpr float UNIT = 0.5f;  // of a code, in sums of such weights

// In each half of a word: pair f of `even` has keep bit 2f below sign bit 2f, that of `odd` bits 2f + 1. A shift that
// moves a pair to the top of the halves makes two weights of it.
struct Fields {
  uint32_t even, odd;
};
FK_DEVICE Fields to_fields(uint32_t keep, uint32_t sign) {
  return {pick(keep, sign << 1, 0x55555555u), pick(keep >> 1, sign, 0x55555555u)};
}
// Operand A of columns 4m to 4m + 3 of a word of the rows g and g + 8. The order of columns inside a product is free as
// long as A and B agree, so each lane has four columns of its own word.
FK_DEVICE void to_operand(const Fields& upper, const Fields& lower, int m, uint32_t (&a)[4]) {
  const int up = 14 - 2 * m;
  a[0] = upper.even << up & TWO;
  a[1] = lower.even << up & TWO;
  a[2] = upper.odd << up & TWO;
  a[3] = lower.odd << up & TWO;
}

// A float is the sum of three bfloat16, each cut off what the one before leaves: rounded, the largest would be
// infinite. Infinity leaves nothing, where infinity less infinity would be NaN.
FK_DEVICE float upper_half(float value) { return to_float(to_bits(value) & 0xFFFF0000u); }
FK_DEVICE float left_of(float value) { return fabsf(value) == INFINITY ? 0.0f : value - upper_half(value); }
FK_DEVICE uint32_t cut_pair(float low, float high) { return permute<0x7632>(to_bits(low), to_bits(high)); }

}  // namespace fk::cuda
