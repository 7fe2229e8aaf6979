// Inputs cut into signed digits of base 256, in the order that the bits of words ask for.
#pragma once
#include <immintrin.h>

#include "cpu/small_batch/input.h"

namespace fk::FK_ISA_NS {

constexpr int LOST_EXPONENT = 22;  // an input this far below the largest keeps 8 bits of 30

// Where the digits of a word's columns go: dword n of its bytes is digit n % 4 of the columns of bits i, 8 + i, 16 + i
// and 24 + i for i = n / 4.
struct DigitOrder {
  alignas(64) uint8_t index[2][64];
  constexpr DigitOrder() : index() {
    for (int n = 0; n < 128; ++n) {
      const int i = n / 16, digit = n / 4 % 4, byte = n % 4;
      index[n / 64][n % 64] = static_cast<uint8_t>(4 * column_of_bit(8 * byte + i) + digit);
    }
  }
};
inline constexpr DigitOrder DIGIT_ORDER;

// Each lower byte b of the sum stands for the digit b - 128, and its top byte for itself.
FK_INLINE __m512i signed_digits(__m512i fixed, __m512i carry) {
  return _mm512_xor_si512(_mm512_add_epi32(fixed, carry), carry);
}

// The 128 digits of a word, four of each of 32 columns.
FK_INLINE void store_ordered(const __m512i (&digits)[2], char* out) {
  for (int i = 0; i < 2; ++i) {
    const __m512i at = _mm512_load_si512(DIGIT_ORDER.index[i]);
    _mm512_store_si512(out + 64 * i, _mm512_permutex2var_epi8(digits[0], at, digits[1]));
  }
}

}  // namespace fk::FK_ISA_NS
