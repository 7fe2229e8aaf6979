// to[j][i] = from[i][j] for one tile of VL x VL 32-bit values; row strides in bytes. `transpose_rows`: row i of `from`
// is where row(i) points.
#pragma once
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

#if FK_HAS_AVX512
// 16 bytes to each quarter of a vector: loads with a mask, which do not need the one port that shuffles.
template <class Row>
FK_INLINE __m512i load_quarters(const Row& row, int first, int64_t at) {
  const auto quarter = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(row(first + i) + at)); };
  __m512i x = _mm512_castsi128_si512(quarter(0));
  x = _mm512_mask_broadcast_i32x4(x, 0x00F0, quarter(4));
  x = _mm512_mask_broadcast_i32x4(x, 0x0F00, quarter(8));
  return _mm512_mask_broadcast_i32x4(x, 0xF000, quarter(12));
}

template <class Row>
FK_INLINE void transpose_rows(const Row& row, void* to, int64_t stride_to) {
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    // Quarter q of x[i] holds columns 4 * j to 4 * j + 3 of row 4 * q + i.
    __m512i x[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) x[i] = load_quarters(row, i, 16 * j);
    const __m512i low0 = _mm512_unpacklo_epi32(x[0], x[1]), low1 = _mm512_unpacklo_epi32(x[2], x[3]);
    const __m512i high0 = _mm512_unpackhi_epi32(x[0], x[1]), high1 = _mm512_unpackhi_epi32(x[2], x[3]);
    char* const out = static_cast<char*>(to) + 4 * j * stride_to;
    _mm512_storeu_si512(out, _mm512_unpacklo_epi64(low0, low1));
    _mm512_storeu_si512(out + stride_to, _mm512_unpackhi_epi64(low0, low1));
    _mm512_storeu_si512(out + 2 * stride_to, _mm512_unpacklo_epi64(high0, high1));
    _mm512_storeu_si512(out + 3 * stride_to, _mm512_unpackhi_epi64(high0, high1));
  }
}

FK_INLINE void transpose_tile(const void* from, int64_t stride_from, void* to, int64_t stride_to) {
  transpose_rows([&](int i) { return static_cast<const char*>(from) + i * stride_from; }, to, stride_to);
}

// rows[j] lane i = rows[i] lane j, for VL vectors that are in registers already.
FK_INLINE void transpose_vectors(vf32 (&rows)[VL]) {
  __m512 a[16], b[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps(rows[i].v, rows[i + 1].v);
    a[i + 1] = _mm512_unpackhi_ps(rows[i].v, rows[i + 1].v);
  }
  // Quarter q of b[4 * i + j] holds column 4 * q + j of rows 4 * i to 4 * i + 3.
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    const __m512d low0 = _mm512_castps_pd(a[i]), high0 = _mm512_castps_pd(a[i + 1]);
    const __m512d low1 = _mm512_castps_pd(a[i + 2]), high1 = _mm512_castps_pd(a[i + 3]);
    b[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(low0, low1));
    b[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low0, low1));
    b[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(high0, high1));
    b[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(high0, high1));
  }
#pragma GCC unroll 4
  for (int j = 0; j < 4; ++j) {
    const __m512 even0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0x88), odd0 = _mm512_shuffle_f32x4(b[j], b[4 + j], 0xDD);
    const __m512 even1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0x88);
    const __m512 odd1 = _mm512_shuffle_f32x4(b[8 + j], b[12 + j], 0xDD);
    rows[j].v = _mm512_shuffle_f32x4(even0, even1, 0x88);
    rows[8 + j].v = _mm512_shuffle_f32x4(even0, even1, 0xDD);
    rows[4 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0x88);
    rows[12 + j].v = _mm512_shuffle_f32x4(odd0, odd1, 0xDD);
  }
}
#elif FK_HAS_AVX2
// rows[j] lane i = rows[i] lane j, for VL vectors that are in registers already.
FK_INLINE void transpose_vectors(vf32 (&rows)[VL]) {
  __m256 a[8], b[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    b[i] = _mm256_unpacklo_ps(rows[i].v, rows[i + 1].v);
    b[i + 1] = _mm256_unpackhi_ps(rows[i].v, rows[i + 1].v);
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
    rows[j].v = _mm256_permute2f128_ps(a[j], a[4 + j], 0x20);
    rows[4 + j].v = _mm256_permute2f128_ps(a[j], a[4 + j], 0x31);
  }
}

template <class Row>
FK_INLINE void transpose_rows(const Row& row, void* to, int64_t stride_to) {
  vf32 rows[VL];
#pragma GCC unroll 8
  for (int i = 0; i < VL; ++i) rows[i] = vf32::load(reinterpret_cast<const float*>(row(i)));
  transpose_vectors(rows);
#pragma GCC unroll 8
  for (int i = 0; i < VL; ++i) rows[i].store(reinterpret_cast<float*>(static_cast<char*>(to) + i * stride_to));
}

inline void transpose_tile(const void* from, int64_t stride_from, void* to, int64_t stride_to) {
  transpose_rows([&](int i) { return static_cast<const char*>(from) + i * stride_from; }, to, stride_to);
}
#elif FK_HAS_NEON
FK_INLINE void transpose_tile(const void* from, int64_t stride_from, void* to, int64_t stride_to) {
  const auto row = [&](int i) { return vu32::load(static_cast<const char*>(from) + i * stride_from).v; };
  const auto put = [&](int j, uint64x2_t column) {
    vu32{vreinterpretq_u32_u64(column)}.store(static_cast<char*>(to) + j * stride_to);
  };
  const auto pairs = [](uint32x4_t a) { return vreinterpretq_u64_u32(a); };
  const uint32x4_t a = row(0), b = row(1), c = row(2), d = row(3);
  const uint64x2_t even0 = pairs(vtrn1q_u32(a, b)), odd0 = pairs(vtrn2q_u32(a, b));
  const uint64x2_t even1 = pairs(vtrn1q_u32(c, d)), odd1 = pairs(vtrn2q_u32(c, d));
  put(0, vtrn1q_u64(even0, even1));
  put(1, vtrn1q_u64(odd0, odd1));
  put(2, vtrn2q_u64(even0, even1));
  put(3, vtrn2q_u64(odd0, odd1));
}
#else
inline void transpose_tile(const void* from, int64_t stride_from, void* to, int64_t stride_to) {
  for (int i = 0; i < VL; ++i) {
    for (int j = 0; j < VL; ++j) {
      memcpy(static_cast<char*>(to) + j * stride_to + 4 * i, static_cast<const char*>(from) + i * stride_from + 4 * j,
             4);
    }
  }
}
#endif

}  // namespace fk::FK_ISA_NS
