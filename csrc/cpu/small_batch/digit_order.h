// Inputs cut into signed digits of base 256, in the order that the bits of words ask for.
#pragma once
#include <immintrin.h>

#include "cpu/small_batch/fixed_point.h"
#include "cpu/small_batch/input.h"

namespace fk::FK_LEVEL_NS {

constexpr int LOST_EXPONENT = 22;  // an input this far below the largest keeps 8 bits of 30

// Each lower byte b of the sum stands for the digit b - 128, and its top byte for itself.
FK_INLINE vu32 signed_digits(vu32 fixed, vu32 carry) { return (fixed + carry) ^ carry; }

#if FK_HAS_VBMI
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

// The 128 digits of a word, four of each of 32 columns.
FK_INLINE void store_ordered(const vu32 (&digits)[2], char* out) {
  for (int i = 0; i < 2; ++i) {
    const __m512i at = _mm512_load_si512(DIGIT_ORDER.index[i]);
    _mm512_storeu_si512(out + 64 * i, _mm512_permutex2var_epi8(digits[0].v, at, digits[1].v));
  }
}
#elif !FK_HAS_AVX512
// The same order: bits i, 16 + i, 8 + i and 24 + i are columns 2 i, 2 i + 1, 2 i + 16 and 2 i + 17.
FK_INLINE void store_ordered(const vu32 (&digits)[4], char* out) {
  const __m256i turn = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 3, 11, 7, 15));
  const auto store_half = [&](__m128i x, int i) { _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16 * i), x); };
  for (int i = 0; i < 2; ++i) {
    const __m256i low = _mm256_unpacklo_epi64(digits[i].v, digits[2 + i].v);
    const __m256i high = _mm256_unpackhi_epi64(digits[i].v, digits[2 + i].v);
    const __m256i even = _mm256_shuffle_epi8(low, turn), odd = _mm256_shuffle_epi8(high, turn);
    store_half(_mm256_castsi256_si128(even), 4 * i);
    store_half(_mm256_castsi256_si128(odd), 4 * i + 1);
    store_half(_mm256_extracti128_si256(even, 1), 4 * i + 2);
    store_half(_mm256_extracti128_si256(odd, 1), 4 * i + 3);
  }
}
#endif

}  // namespace fk::FK_LEVEL_NS
