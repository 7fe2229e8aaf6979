// Bits of a word moved where no instruction does it. Included by the vectors of such a variant.
#pragma once
#include "frozen/format.h"

namespace fk::FK_ISA_NS {

// Bits of `source`, lowest first, put at the set bits of `mask`; and the reverse.
FK_INLINE uint32_t deposit(uint32_t source, uint32_t mask) {
  uint32_t result = 0;
  for (; mask; mask &= mask - 1, source >>= 1) result |= (mask & (0u - mask)) & (0u - (source & 1u));
  return result;
}
FK_INLINE uint32_t extract(uint32_t source, uint32_t mask) {
  uint32_t result = 0;
  for (uint32_t bit = 1; mask; mask &= mask - 1, bit <<= 1) {
    if (source & mask & (0u - mask)) result |= bit;
  }
  return result;
}

// A word of the format with bit k = column k, and back.
FK_INLINE uint32_t natural_bits(uint32_t word) { return to_natural_order(word); }
FK_INLINE uint32_t format_bits(uint32_t bits) { return to_format_order(bits); }

}  // namespace fk::FK_ISA_NS
