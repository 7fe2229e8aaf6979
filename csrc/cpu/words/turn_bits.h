// A square of 32 x 32 bits turned: words of 32 rows to words of 32 columns, both in the order of the format's bits.
#pragma once
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

// columns[k] = bits of column k of all rows.
FK_INLINE void turn_bits(const uint32_t* rows, uint32_t* columns) {
#if FK_HAS_AVX2
  // Byte p of all rows comes into one vector, rows in the order of bits: even ones in the lower half.
  const __m256i quads =
      _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  __m256i even[2], odd[2];
  for (int i = 0; i < 2; ++i) {
    const __m256 a = _mm256_loadu_ps(reinterpret_cast<const float*>(rows + 16 * i));
    const __m256 b = _mm256_loadu_ps(reinterpret_cast<const float*>(rows + 16 * i + 8));
    const auto in_order = [&](__m256 x) {
      return _mm256_shuffle_epi8(_mm256_permute4x64_epi64(_mm256_castps_si256(x), 0xD8), quads);
    };
    even[i] = in_order(_mm256_shuffle_ps(a, b, 0x88));
    odd[i] = in_order(_mm256_shuffle_ps(a, b, 0xDD));
  }
  __m256i x[4], y[4];
  for (int i = 0; i < 2; ++i) {
    x[2 * i] = _mm256_permute2x128_si256(even[i], odd[i], 0x20);
    x[2 * i + 1] = _mm256_permute2x128_si256(even[i], odd[i], 0x31);
  }
  for (int i = 0; i < 2; ++i) {
    y[2 * i] = _mm256_unpacklo_epi32(x[2 * i], x[2 * i + 1]);
    y[2 * i + 1] = _mm256_unpackhi_epi32(x[2 * i], x[2 * i + 1]);
  }
  __m256i bytes[4] = {_mm256_unpacklo_epi64(y[0], y[2]), _mm256_unpackhi_epi64(y[0], y[2]),
                      _mm256_unpacklo_epi64(y[1], y[3]), _mm256_unpackhi_epi64(y[1], y[3])};
#pragma GCC unroll 4
  for (int p = 0; p < 4; ++p) {
#pragma GCC unroll 8
    for (int bit = 8 * p + 7; bit >= 8 * p; --bit) {
      columns[column_of_bit(bit)] = static_cast<uint32_t>(_mm256_movemask_epi8(bytes[p]));
      bytes[p] = _mm256_add_epi8(bytes[p], bytes[p]);
    }
  }
#else
  for (int k = 0; k < 32; ++k) {
    uint32_t column = 0;
    for (int row = 0; row < 32; ++row) column |= (rows[row] >> beta(k) & 1u) << beta(row);
    columns[k] = column;
  }
#endif
}

}  // namespace fk::FK_ISA_NS
