// 16 lanes: AVX-512 F, BW, VL, DQ and CD, with BMI2 and F16C. Included by simd.h alone.
#pragma once
#include <immintrin.h>

namespace fk::FK_ISA_NS {

constexpr int VL = 16;

struct vu32 {
  __m512i v;
  static FK_INLINE vu32 load(const void* p) { return {_mm512_loadu_si512(p)}; }
  static FK_INLINE vu32 set(uint32_t x) { return {_mm512_set1_epi32(static_cast<int>(x))}; }
  static FK_INLINE vu32 iota() { return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)}; }
  FK_INLINE void store(void* p) const { _mm512_storeu_si512(p, v); }
};

struct vf32 {
  __m512 v;
  static FK_INLINE vf32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static FK_INLINE vf32 set(float x) { return {_mm512_set1_ps(x)}; }
  static FK_INLINE vf32 zero() { return {_mm512_setzero_ps()}; }
  FK_INLINE void store(float* p) const { _mm512_storeu_ps(p, v); }
};

struct vmask {
  __mmask16 v;
};

FK_INLINE vu32 operator&(vu32 a, vu32 b) { return {_mm512_and_si512(a.v, b.v)}; }
FK_INLINE vu32 operator|(vu32 a, vu32 b) { return {_mm512_or_si512(a.v, b.v)}; }
FK_INLINE vu32 operator^(vu32 a, vu32 b) { return {_mm512_xor_si512(a.v, b.v)}; }
FK_INLINE vu32 operator+(vu32 a, vu32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
FK_INLINE vu32 operator-(vu32 a, vu32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
FK_INLINE vu32 andnot(vu32 a, vu32 b) { return {_mm512_andnot_si512(a.v, b.v)}; }  // ~a & b
// (~a & (b | c)) | (b & c)
FK_INLINE vu32 majority_not(vu32 a, vu32 b, vu32 c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x8E)}; }
// Bits of a where m is 1, else of b.
FK_INLINE vu32 select_bits(vu32 m, vu32 a, vu32 b) { return {_mm512_ternarylogic_epi32(m.v, a.v, b.v, 0xCA)}; }
FK_INLINE vu32 xor3(vu32 a, vu32 b, vu32 c) { return {_mm512_ternarylogic_epi32(a.v, b.v, c.v, 0x96)}; }
template <int N>
FK_INLINE vu32 shl(vu32 a) {
  return {_mm512_slli_epi32(a.v, N)};
}
template <int N>
FK_INLINE vu32 shr(vu32 a) {
  return {_mm512_srli_epi32(a.v, N)};
}
template <int N>
FK_INLINE vu32 shr_signed(vu32 a) {
  return {_mm512_srai_epi32(a.v, N)};
}

// 64-bit products of the even lanes; the high half of each 64 bits moved low; the low, or the high, halves of each 64
// bits of e beside those of o.
FK_INLINE vu32 mul_even(vu32 a, vu32 b) { return {_mm512_mul_epu32(a.v, b.v)}; }
FK_INLINE vu32 odd_to_even(vu32 a) { return {_mm512_srli_epi64(a.v, 32)}; }
FK_INLINE vu32 merge_even(vu32 e, vu32 o) {
  return {_mm512_castps_si512(_mm512_mask_moveldup_ps(_mm512_castsi512_ps(e.v), 0xAAAA, _mm512_castsi512_ps(o.v)))};
}
FK_INLINE vu32 merge_odd(vu32 e, vu32 o) {
  return {_mm512_castps_si512(_mm512_mask_movehdup_ps(_mm512_castsi512_ps(o.v), 0x5555, _mm512_castsi512_ps(e.v)))};
}

FK_INLINE vu32 min(vu32 a, vu32 b) { return {_mm512_min_epu32(a.v, b.v)}; }

// Within each 16 bytes: the lower, or the upper, lanes of a and b in turns; the same of pairs of lanes.
FK_INLINE vu32 low_lanes(vu32 a, vu32 b) { return {_mm512_unpacklo_epi32(a.v, b.v)}; }
FK_INLINE vu32 high_lanes(vu32 a, vu32 b) { return {_mm512_unpackhi_epi32(a.v, b.v)}; }
FK_INLINE vu32 low_pairs(vu32 a, vu32 b) { return {_mm512_unpacklo_epi64(a.v, b.v)}; }
FK_INLINE vu32 high_pairs(vu32 a, vu32 b) { return {_mm512_unpackhi_epi64(a.v, b.v)}; }

FK_INLINE vf32 operator+(vf32 a, vf32 b) { return {_mm512_add_ps(a.v, b.v)}; }
FK_INLINE vf32 operator-(vf32 a, vf32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
FK_INLINE vf32 operator*(vf32 a, vf32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
FK_INLINE vf32 fma(vf32 a, vf32 b, vf32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
FK_INLINE vf32 size_of(vf32 a) { return {_mm512_abs_ps(a.v)}; }
FK_INLINE vf32 relu(vf32 a) { return {_mm512_max_ps(_mm512_setzero_ps(), a.v)}; }  // of a NaN: the second operand
FK_INLINE vf32 as_float(vu32 a) { return {_mm512_castsi512_ps(a.v)}; }
FK_INLINE vu32 as_bits(vf32 a) { return {_mm512_castps_si512(a.v)}; }
FK_INLINE vf32 to_float(vu32 a) { return {_mm512_cvtepi32_ps(a.v)}; }  // signed lanes

FK_INLINE vmask test(vu32 a, vu32 b) { return {_mm512_test_epi32_mask(a.v, b.v)}; }  // (a & b) != 0
FK_INLINE vmask equal(vu32 a, vu32 b) { return {_mm512_cmpeq_epi32_mask(a.v, b.v)}; }
FK_INLINE vmask greater(vu32 a, vu32 b) { return {_mm512_cmpgt_epi32_mask(a.v, b.v)}; }  // signed lanes
FK_INLINE vu32 select(vmask m, vu32 a, vu32 b) { return {_mm512_mask_blend_epi32(m.v, b.v, a.v)}; }
FK_INLINE vf32 select(vmask m, vf32 a, vf32 b) { return {_mm512_mask_blend_ps(m.v, b.v, a.v)}; }
FK_INLINE vf32 keep_where(vmask m, vf32 a) { return {_mm512_maskz_mov_ps(m.v, a.v)}; }
FK_INLINE vu32 keep_where(vmask m, vu32 a) { return {_mm512_maskz_mov_epi32(m.v, a.v)}; }
FK_INLINE uint32_t to_bits(vmask m) { return m.v; }  // bit i = lane i
FK_INLINE vmask from_bits(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }

FK_INLINE float f16_to_float(uint16_t x) { return _cvtsh_ss(x); }
FK_INLINE uint16_t float_to_f16(float x) { return _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
FK_INLINE vf32 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FK_INLINE void store_f16(uint16_t* p, vf32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
FK_INLINE vf32 load_bf16(const uint16_t* p) {
  const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return as_float(shl<16>({_mm512_cvtepu16_epi32(half)}));
}
FK_INLINE void store_bf16(uint16_t* p, vf32 a) {
  const vu32 bits = as_bits(a);
  const vu32 rounded = shr<16>(bits + vu32::set(0x7FFFu) + (shr<16>(bits) & vu32::set(1)));
  const vu32 nan = shr<16>(bits) | vu32::set(0x40u);
  const __mmask16 is_nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                      _mm512_cvtepi32_epi16(_mm512_mask_blend_epi32(is_nan, rounded.v, nan.v)));
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

// 32 bytes / int16 from 32 bits in natural order: `set` where the bit is 1.
FK_INLINE void expand_bytes(uint32_t bits, uint8_t set, uint8_t clear, uint8_t* out) {
  const __m256i x = _mm256_mask_blend_epi8(bits, _mm256_set1_epi8(static_cast<char>(clear)),
                                           _mm256_set1_epi8(static_cast<char>(set)));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), x);
}
FK_INLINE void expand_int16(uint32_t bits, int16_t set, int16_t clear, int16_t* out) {
  _mm512_storeu_si512(out, _mm512_mask_blend_epi16(bits, _mm512_set1_epi16(clear), _mm512_set1_epi16(set)));
}
// Bit k = byte k of 32 is not zero.
FK_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm256_test_epi8_mask(x, x);
}

}  // namespace fk::FK_ISA_NS
