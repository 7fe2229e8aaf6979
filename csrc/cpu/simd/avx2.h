// 8 lanes: AVX2 with FMA, BMI2 and F16C. Included by simd.h alone.
#pragma once
#include <immintrin.h>

namespace fk::FK_ISA_NS {

constexpr int VL = 8;

struct vu32 {
  __m256i v;
  static FK_INLINE vu32 load(const void* p) { return {_mm256_loadu_si256(static_cast<const __m256i*>(p))}; }
  static FK_INLINE vu32 set(uint32_t x) { return {_mm256_set1_epi32(static_cast<int>(x))}; }
  static FK_INLINE vu32 iota() { return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)}; }
  FK_INLINE void store(void* p) const { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
};

struct vf32 {
  __m256 v;
  static FK_INLINE vf32 load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static FK_INLINE vf32 set(float x) { return {_mm256_set1_ps(x)}; }
  static FK_INLINE vf32 zero() { return {_mm256_setzero_ps()}; }
  FK_INLINE void store(float* p) const { _mm256_storeu_ps(p, v); }
};

struct vmask {
  __m256i v;  // all ones where true
};

FK_INLINE vu32 operator&(vu32 a, vu32 b) { return {_mm256_and_si256(a.v, b.v)}; }
FK_INLINE vu32 operator|(vu32 a, vu32 b) { return {_mm256_or_si256(a.v, b.v)}; }
FK_INLINE vu32 operator^(vu32 a, vu32 b) { return {_mm256_xor_si256(a.v, b.v)}; }
FK_INLINE vu32 operator+(vu32 a, vu32 b) { return {_mm256_add_epi32(a.v, b.v)}; }
FK_INLINE vu32 operator-(vu32 a, vu32 b) { return {_mm256_sub_epi32(a.v, b.v)}; }
FK_INLINE vu32 andnot(vu32 a, vu32 b) { return {_mm256_andnot_si256(a.v, b.v)}; }  // ~a & b
FK_INLINE vu32 majority_not(vu32 a, vu32 b, vu32 c) { return andnot(a, b | c) | (b & c); }
FK_INLINE vu32 xor3(vu32 a, vu32 b, vu32 c) { return a ^ b ^ c; }
template <int N>
FK_INLINE vu32 shl(vu32 a) {
  return {_mm256_slli_epi32(a.v, N)};
}
template <int N>
FK_INLINE vu32 shr(vu32 a) {
  return {_mm256_srli_epi32(a.v, N)};
}
template <int N>
FK_INLINE vu32 shr_signed(vu32 a) {
  return {_mm256_srai_epi32(a.v, N)};
}

// 64-bit products of the even lanes; the high half of each 64 bits moved low; the low, or the high, halves of each 64
// bits of e beside those of o.
FK_INLINE vu32 mul_even(vu32 a, vu32 b) { return {_mm256_mul_epu32(a.v, b.v)}; }
FK_INLINE vu32 odd_to_even(vu32 a) { return {_mm256_srli_epi64(a.v, 32)}; }
FK_INLINE vu32 merge_even(vu32 e, vu32 o) { return {_mm256_blend_epi32(e.v, _mm256_slli_epi64(o.v, 32), 0xAA)}; }
FK_INLINE vu32 merge_odd(vu32 e, vu32 o) { return {_mm256_blend_epi32(_mm256_srli_epi64(e.v, 32), o.v, 0xAA)}; }

FK_INLINE vu32 min(vu32 a, vu32 b) { return {_mm256_min_epu32(a.v, b.v)}; }

// Within each 16 bytes: the lower, or the upper, lanes of a and b in turns; the same of pairs of lanes.
FK_INLINE vu32 low_lanes(vu32 a, vu32 b) { return {_mm256_unpacklo_epi32(a.v, b.v)}; }
FK_INLINE vu32 high_lanes(vu32 a, vu32 b) { return {_mm256_unpackhi_epi32(a.v, b.v)}; }
FK_INLINE vu32 low_pairs(vu32 a, vu32 b) { return {_mm256_unpacklo_epi64(a.v, b.v)}; }
FK_INLINE vu32 high_pairs(vu32 a, vu32 b) { return {_mm256_unpackhi_epi64(a.v, b.v)}; }

FK_INLINE vf32 operator+(vf32 a, vf32 b) { return {_mm256_add_ps(a.v, b.v)}; }
FK_INLINE vf32 operator-(vf32 a, vf32 b) { return {_mm256_sub_ps(a.v, b.v)}; }
FK_INLINE vf32 operator*(vf32 a, vf32 b) { return {_mm256_mul_ps(a.v, b.v)}; }
FK_INLINE vf32 fma(vf32 a, vf32 b, vf32 c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
FK_INLINE vf32 relu(vf32 a) { return {_mm256_max_ps(_mm256_setzero_ps(), a.v)}; }  // of a NaN: the second operand
FK_INLINE vf32 as_float(vu32 a) { return {_mm256_castsi256_ps(a.v)}; }
FK_INLINE vu32 as_bits(vf32 a) { return {_mm256_castps_si256(a.v)}; }
FK_INLINE vf32 to_float(vu32 a) { return {_mm256_cvtepi32_ps(a.v)}; }  // signed lanes

FK_INLINE vmask equal(vu32 a, vu32 b) { return {_mm256_cmpeq_epi32(a.v, b.v)}; }
FK_INLINE vmask greater(vu32 a, vu32 b) { return {_mm256_cmpgt_epi32(a.v, b.v)}; }  // signed lanes
FK_INLINE vmask test(vu32 a, vu32 b) {                                              // (a & b) != 0
  return {_mm256_xor_si256(_mm256_cmpeq_epi32((a & b).v, _mm256_setzero_si256()), _mm256_set1_epi32(-1))};
}
FK_INLINE vu32 select(vmask m, vu32 a, vu32 b) { return {_mm256_blendv_epi8(b.v, a.v, m.v)}; }
FK_INLINE vf32 select(vmask m, vf32 a, vf32 b) { return {_mm256_blendv_ps(b.v, a.v, _mm256_castsi256_ps(m.v))}; }
FK_INLINE vf32 keep_where(vmask m, vf32 a) { return {_mm256_and_ps(_mm256_castsi256_ps(m.v), a.v)}; }
FK_INLINE vu32 keep_where(vmask m, vu32 a) { return {_mm256_and_si256(m.v, a.v)}; }
FK_INLINE uint32_t to_bits(vmask m) { return _mm256_movemask_ps(_mm256_castsi256_ps(m.v)); }  // bit i = lane i
FK_INLINE vmask from_bits(uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return {_mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane), lane)};
}

FK_INLINE float f16_to_float(uint16_t x) { return _cvtsh_ss(x); }
FK_INLINE uint16_t float_to_f16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
FK_INLINE vf32 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
FK_INLINE void store_f16(uint16_t* p, vf32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
FK_INLINE vf32 load_bf16(const uint16_t* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return as_float(shl<16>({_mm256_cvtepu16_epi32(half)}));
}
FK_INLINE void store_bf16(uint16_t* p, vf32 a) {
  const vu32 bits = as_bits(a);
  const vu32 rounded = shr<16>(bits + vu32::set(0x7FFFu) + (shr<16>(bits) & vu32::set(1)));
  const vu32 nan = shr<16>(bits) | vu32::set(0x40u);
  const vmask is_nan = {_mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q))};
  const __m256i packed = _mm256_packus_epi32(select(is_nan, nan, rounded).v, _mm256_setzero_si256());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}

// Bits of `source`, lowest first, put at the set bits of `mask`; and the reverse.
FK_INLINE uint32_t deposit(uint32_t source, uint32_t mask) { return _pdep_u32(source, mask); }
FK_INLINE uint32_t extract(uint32_t source, uint32_t mask) { return _pext_u32(source, mask); }

// A word of the format with bit k = column k, and back.
FK_INLINE uint32_t natural_bits(uint32_t word) {
  return _pdep_u32(word, 0x55555555u) | _pdep_u32(word >> 16, 0xAAAAAAAAu);
}
FK_INLINE uint32_t format_bits(uint32_t bits) {
  return _pext_u32(bits, 0x55555555u) | _pext_u32(bits, 0xAAAAAAAAu) << 16;
}

// All ones in byte k where bit k is 1.
FK_INLINE __m256i byte_mask(uint32_t bits) {
  const __m256i spread =
      _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i bit = _mm256_set1_epi64x(static_cast<int64_t>(0x8040201008040201ull));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(bits)), spread);
  return _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit);
}

// 32 bytes / int16 from 32 bits in natural order: `set` where the bit is 1.
FK_INLINE void expand_bytes(uint32_t bits, uint8_t set, uint8_t clear, uint8_t* out) {
  const __m256i x = _mm256_blendv_epi8(_mm256_set1_epi8(static_cast<char>(clear)),
                                       _mm256_set1_epi8(static_cast<char>(set)), byte_mask(bits));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x);
}
FK_INLINE void expand_int16(uint32_t bits, int16_t set, int16_t clear, int16_t* out) {
  const __m256i bytes = byte_mask(bits);
  for (int half = 0; half < 2; ++half) {
    const __m128i part = half ? _mm256_extracti128_si256(bytes, 1) : _mm256_castsi256_si128(bytes);
    const __m256i x = _mm256_blendv_epi8(_mm256_set1_epi16(clear), _mm256_set1_epi16(set), _mm256_cvtepi8_epi16(part));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 16 * half), x);
  }
}
// Bit k = byte k of 32 is not zero.
FK_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return ~static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(x, _mm256_setzero_si256())));
}

}  // namespace fk::FK_ISA_NS
