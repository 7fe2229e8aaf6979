// 4 lanes: NEON of 64-bit ARM, with FMA and float16 conversions, which each such processor has. Included by simd.h
// alone.
#pragma once
#include <arm_neon.h>

#include "cpu/simd/scalar_bits.h"

namespace fk::FK_ISA_NS {

constexpr int VL = 4;

struct vu32 {
  uint32x4_t v;
  static FK_INLINE vu32 load(const void* p) { return {vreinterpretq_u32_u8(vld1q_u8(static_cast<const uint8_t*>(p)))}; }
  static FK_INLINE vu32 set(uint32_t x) { return {vdupq_n_u32(x)}; }
  static FK_INLINE vu32 iota() { return {uint32x4_t{0, 1, 2, 3}}; }
  FK_INLINE void store(void* p) const { vst1q_u8(static_cast<uint8_t*>(p), vreinterpretq_u8_u32(v)); }
};

struct vf32 {
  float32x4_t v;
  static FK_INLINE vf32 load(const float* p) { return {vld1q_f32(p)}; }
  static FK_INLINE vf32 set(float x) { return {vdupq_n_f32(x)}; }
  static FK_INLINE vf32 zero() { return set(0.0f); }
  FK_INLINE void store(float* p) const { vst1q_f32(p, v); }
};

struct vmask {
  uint32x4_t v;  // all ones where true
};

FK_INLINE vu32 operator&(vu32 a, vu32 b) { return {vandq_u32(a.v, b.v)}; }
FK_INLINE vu32 operator|(vu32 a, vu32 b) { return {vorrq_u32(a.v, b.v)}; }
FK_INLINE vu32 operator^(vu32 a, vu32 b) { return {veorq_u32(a.v, b.v)}; }
FK_INLINE vu32 operator+(vu32 a, vu32 b) { return {vaddq_u32(a.v, b.v)}; }
FK_INLINE vu32 operator-(vu32 a, vu32 b) { return {vsubq_u32(a.v, b.v)}; }
FK_INLINE vu32 andnot(vu32 a, vu32 b) { return {vbicq_u32(b.v, a.v)}; }  // ~a & b
FK_INLINE vu32 majority_not(vu32 a, vu32 b, vu32 c) { return {vbslq_u32(a.v, (b & c).v, (b | c).v)}; }
FK_INLINE vu32 xor3(vu32 a, vu32 b, vu32 c) { return a ^ b ^ c; }
template <int N>
FK_INLINE vu32 shl(vu32 a) {
  return {vshlq_n_u32(a.v, N)};
}
// Right shifts by 0 are no instruction.
template <int N>
FK_INLINE vu32 shr(vu32 a) {
  if constexpr (N == 0) {
    return a;
  } else {
    return {vshrq_n_u32(a.v, N)};
  }
}
template <int N>
FK_INLINE vu32 shr_signed(vu32 a) {
  if constexpr (N == 0) {
    return a;
  } else {
    return {vreinterpretq_u32_s32(vshrq_n_s32(vreinterpretq_s32_u32(a.v), N))};
  }
}

// 64-bit products of the even lanes; the high half of each 64 bits moved low; even lanes of e beside those of o.
FK_INLINE vu32 mul_even(vu32 a, vu32 b) {
  const uint32x2_t left = vmovn_u64(vreinterpretq_u64_u32(a.v)), right = vmovn_u64(vreinterpretq_u64_u32(b.v));
  return {vreinterpretq_u32_u64(vmull_u32(left, right))};
}
FK_INLINE vu32 odd_to_even(vu32 a) { return {vreinterpretq_u32_u64(vshrq_n_u64(vreinterpretq_u64_u32(a.v), 32))}; }
FK_INLINE vu32 merge_even(vu32 e, vu32 o) { return {vtrn1q_u32(e.v, o.v)}; }
FK_INLINE vu32 merge_odd(vu32 e, vu32 o) { return {vtrn2q_u32(e.v, o.v)}; }

FK_INLINE vu32 min(vu32 a, vu32 b) { return {vminq_u32(a.v, b.v)}; }

FK_INLINE vf32 operator+(vf32 a, vf32 b) { return {vaddq_f32(a.v, b.v)}; }
FK_INLINE vf32 operator-(vf32 a, vf32 b) { return {vsubq_f32(a.v, b.v)}; }
FK_INLINE vf32 operator*(vf32 a, vf32 b) { return {vmulq_f32(a.v, b.v)}; }
FK_INLINE vf32 fma(vf32 a, vf32 b, vf32 c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
FK_INLINE vf32 relu(vf32 a) { return {vmaxq_f32(a.v, vdupq_n_f32(0.0f))}; }  // of a NaN: NaN
FK_INLINE vf32 as_float(vu32 a) { return {vreinterpretq_f32_u32(a.v)}; }
FK_INLINE vu32 as_bits(vf32 a) { return {vreinterpretq_u32_f32(a.v)}; }
FK_INLINE vf32 to_float(vu32 a) { return {vcvtq_f32_s32(vreinterpretq_s32_u32(a.v))}; }  // signed lanes

FK_INLINE vmask equal(vu32 a, vu32 b) { return {vceqq_u32(a.v, b.v)}; }
FK_INLINE vmask greater(vu32 a, vu32 b) {  // signed lanes
  return {vcgtq_s32(vreinterpretq_s32_u32(a.v), vreinterpretq_s32_u32(b.v))};
}
FK_INLINE vmask test(vu32 a, vu32 b) { return {vtstq_u32(a.v, b.v)}; }  // (a & b) != 0
FK_INLINE vu32 select(vmask m, vu32 a, vu32 b) { return {vbslq_u32(m.v, a.v, b.v)}; }
FK_INLINE vf32 select(vmask m, vf32 a, vf32 b) { return {vbslq_f32(m.v, a.v, b.v)}; }
FK_INLINE vu32 keep_where(vmask m, vu32 a) { return {vandq_u32(m.v, a.v)}; }
FK_INLINE vf32 keep_where(vmask m, vf32 a) { return as_float(keep_where(m, as_bits(a))); }
FK_INLINE uint32_t to_bits(vmask m) { return vaddvq_u32(vandq_u32(m.v, uint32x4_t{1, 2, 4, 8})); }  // bit i = lane i
FK_INLINE vmask from_bits(uint32_t bits) { return test(vu32::set(bits), {uint32x4_t{1, 2, 4, 8}}); }

FK_INLINE vf32 load_f16(const uint16_t* p) { return {vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))}; }
FK_INLINE void store_f16(uint16_t* p, vf32 a) { vst1_u16(p, vreinterpret_u16_f16(vcvt_f16_f32(a.v))); }
FK_INLINE float f16_to_float(uint16_t x) {
  return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(x))), 0);
}
FK_INLINE uint16_t float_to_f16(float x) {
  return vget_lane_u16(vreinterpret_u16_f16(vcvt_f16_f32(vdupq_n_f32(x))), 0);
}
FK_INLINE vf32 load_bf16(const uint16_t* p) { return as_float({vshll_n_u16(vld1_u16(p), 16)}); }
FK_INLINE void store_bf16(uint16_t* p, vf32 a) {
  const vu32 bits = as_bits(a);
  const vu32 rounded = bits + vu32::set(0x7FFFu) + (shr<16>(bits) & vu32::set(1));
  const vmask is_number = {vceqq_f32(a.v, a.v)};
  vst1_u16(p, vshrn_n_u32(select(is_number, rounded, bits | vu32::set(0x400000u)).v, 16));
}

// All ones in byte k of a half where bit k of its 16 is 1.
FK_INLINE uint8x16_t byte_mask(uint32_t bits) {
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x8_t low = vdup_n_u8(static_cast<uint8_t>(bits)), high = vdup_n_u8(static_cast<uint8_t>(bits >> 8));
  return vtstq_u8(vcombine_u8(low, high), bit);
}

// 32 bytes / int16 from 32 bits in natural order: `set` where the bit is 1.
FK_INLINE void expand_bytes(uint32_t bits, uint8_t set, uint8_t clear, uint8_t* out) {
  for (int half = 0; half < 2; ++half) {
    vst1q_u8(out + 16 * half, vbslq_u8(byte_mask(bits >> 16 * half), vdupq_n_u8(set), vdupq_n_u8(clear)));
  }
}
FK_INLINE void expand_int16(uint32_t bits, int16_t set, int16_t clear, int16_t* out) {
  const int16x8_t one = vdupq_n_s16(set), zero = vdupq_n_s16(clear);
  for (int half = 0; half < 2; ++half) {
    const int8x16_t bytes = vreinterpretq_s8_u8(byte_mask(bits >> 16 * half));
    const uint16x8_t low = vreinterpretq_u16_s16(vmovl_s8(vget_low_s8(bytes)));
    const uint16x8_t high = vreinterpretq_u16_s16(vmovl_s8(vget_high_s8(bytes)));
    vst1q_s16(out + 16 * half, vbslq_s16(low, one, zero));
    vst1q_s16(out + 16 * half + 8, vbslq_s16(high, one, zero));
  }
}
// Bit k = byte k of 32 is not zero.
FK_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  const uint8x16_t bit = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  const uint8x16_t low = vld1q_u8(p), high = vld1q_u8(p + 16);
  uint8x16_t sum = vpaddq_u8(vandq_u8(vtstq_u8(low, low), bit), vandq_u8(vtstq_u8(high, high), bit));
  sum = vpaddq_u8(sum, sum);
  return vgetq_lane_u32(vreinterpretq_u32_u8(vpaddq_u8(sum, sum)), 0);
}

}  // namespace fk::FK_ISA_NS
