// to[j][i] = from[i][j] for one tile of VL x VL floats.
#pragma once
#include "simd.h"

namespace fk::FK_ISA_NS {

#if FK_ISA_LEVEL >= 2
inline void transpose_tile(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_ps(from + i * ld_from);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
  // Quarter q of a[4 * i + j] becomes column 4 * q + j of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low0 = _mm512_castps_pd(b[i]), low1 = _mm512_castps_pd(b[i + 2]);
    const __m512d high0 = _mm512_castps_pd(b[i + 1]), high1 = _mm512_castps_pd(b[i + 3]);
    a[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
    a[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
    a[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
    a[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 even0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88);
    const __m512 odd0 = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xDD);
    const __m512 even1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xDD);
    _mm512_storeu_ps(to + j * ld_to, _mm512_shuffle_f32x4(even0, even1, 0x88));
    _mm512_storeu_ps(to + (4 + j) * ld_to, _mm512_shuffle_f32x4(odd0, odd1, 0x88));
    _mm512_storeu_ps(to + (8 + j) * ld_to, _mm512_shuffle_f32x4(even0, even1, 0xDD));
    _mm512_storeu_ps(to + (12 + j) * ld_to, _mm512_shuffle_f32x4(odd0, odd1, 0xDD));
  }
}
#elif FK_ISA_LEVEL == 1
inline void transpose_tile(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  __m256 a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) a[i] = _mm256_loadu_ps(from + i * ld_from);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
  }
  // Half h of a[4 * i + j] becomes column 4 * h + j of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    const __m256d low0 = _mm256_castps_pd(b[i]), low1 = _mm256_castps_pd(b[i + 2]);
    const __m256d high0 = _mm256_castps_pd(b[i + 1]), high1 = _mm256_castps_pd(b[i + 3]);
    a[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(low0, low1));
    a[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(low0, low1));
    a[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(high0, high1));
    a[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(high0, high1));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_ps(to + j * ld_to, _mm256_permute2f128_ps(a[j], a[4 + j], 0x20));
    _mm256_storeu_ps(to + (4 + j) * ld_to, _mm256_permute2f128_ps(a[j], a[4 + j], 0x31));
  }
}
#else
inline void transpose_tile(const float* from, int64_t ld_from, float* to, int64_t ld_to) {
  for (int i = 0; i < VL; ++i) {
    for (int j = 0; j < VL; ++j) to[j * ld_to + i] = from[i * ld_from + j];
  }
}
#endif

}  // namespace fk::FK_ISA_NS
