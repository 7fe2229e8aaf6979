// 4 lanes by the compiler's own vectors: whatever the baseline of the target offers. Included by simd.h alone.
#pragma once
#include "cpu/simd/scalar_bits.h"

namespace fk::FK_ISA_NS {

constexpr int VL = 4;

typedef uint32_t lanes_u32 __attribute__((vector_size(16)));
typedef int32_t lanes_i32 __attribute__((vector_size(16)));
typedef uint64_t lanes_u64 __attribute__((vector_size(16)));
typedef float lanes_f32 __attribute__((vector_size(16)));

struct vu32 {
  lanes_u32 v;
  static FK_INLINE vu32 load(const void* p) {
    vu32 x;
    memcpy(&x.v, p, sizeof(x.v));
    return x;
  }
  static FK_INLINE vu32 set(uint32_t x) { return {lanes_u32{x, x, x, x}}; }
  static FK_INLINE vu32 iota() { return {lanes_u32{0, 1, 2, 3}}; }
  FK_INLINE void store(void* p) const { memcpy(p, &v, sizeof(v)); }
};

struct vf32 {
  lanes_f32 v;
  static FK_INLINE vf32 load(const float* p) {
    vf32 x;
    memcpy(&x.v, p, sizeof(x.v));
    return x;
  }
  static FK_INLINE vf32 set(float x) { return {lanes_f32{x, x, x, x}}; }
  static FK_INLINE vf32 zero() { return set(0.0f); }
  FK_INLINE void store(float* p) const { memcpy(p, &v, sizeof(v)); }
};

struct vmask {
  lanes_u32 v;  // all ones where true
};

FK_INLINE vu32 operator&(vu32 a, vu32 b) { return {a.v & b.v}; }
FK_INLINE vu32 operator|(vu32 a, vu32 b) { return {a.v | b.v}; }
FK_INLINE vu32 operator^(vu32 a, vu32 b) { return {a.v ^ b.v}; }
FK_INLINE vu32 operator+(vu32 a, vu32 b) { return {a.v + b.v}; }
FK_INLINE vu32 operator-(vu32 a, vu32 b) { return {a.v - b.v}; }
FK_INLINE vu32 andnot(vu32 a, vu32 b) { return {~a.v & b.v}; }
FK_INLINE vu32 majority_not(vu32 a, vu32 b, vu32 c) { return andnot(a, b | c) | (b & c); }
FK_INLINE vu32 xor3(vu32 a, vu32 b, vu32 c) { return {a.v ^ b.v ^ c.v}; }
template <int N>
FK_INLINE vu32 shl(vu32 a) {
  return {a.v << N};
}
template <int N>
FK_INLINE vu32 shr(vu32 a) {
  return {a.v >> N};
}
template <int N>
FK_INLINE vu32 shr_signed(vu32 a) {
  return {(lanes_u32)((lanes_i32)a.v >> N)};
}

// 64-bit products of the even lanes; the high half of each 64 bits moved low; the low, or the high, halves of each 64
// bits of e beside those of o.
FK_INLINE vu32 mul_even(vu32 a, vu32 b) {
  const lanes_u64 low = {0xFFFFFFFFu, 0xFFFFFFFFu};
  return {(lanes_u32)(((lanes_u64)a.v & low) * ((lanes_u64)b.v & low))};
}
FK_INLINE vu32 odd_to_even(vu32 a) { return {(lanes_u32)((lanes_u64)a.v >> 32)}; }
FK_INLINE vu32 merge_even(vu32 e, vu32 o) {
  const lanes_u64 low = {0xFFFFFFFFu, 0xFFFFFFFFu};
  return {(lanes_u32)(((lanes_u64)e.v & low) | ((lanes_u64)o.v << 32))};
}
FK_INLINE vu32 merge_odd(vu32 e, vu32 o) {
  const lanes_u64 high = {0xFFFFFFFFull << 32, 0xFFFFFFFFull << 32};
  return {(lanes_u32)(((lanes_u64)e.v >> 32) | ((lanes_u64)o.v & high))};
}

FK_INLINE vu32 min(vu32 a, vu32 b) {
  const lanes_u32 less = (lanes_u32)(a.v < b.v);
  return {(a.v & less) | (b.v & ~less)};
}

FK_INLINE vf32 operator+(vf32 a, vf32 b) { return {a.v + b.v}; }
FK_INLINE vf32 operator-(vf32 a, vf32 b) { return {a.v - b.v}; }
FK_INLINE vf32 operator*(vf32 a, vf32 b) { return {a.v * b.v}; }
FK_INLINE vf32 fma(vf32 a, vf32 b, vf32 c) { return {a.v * b.v + c.v}; }
FK_INLINE vf32 as_float(vu32 a) { return {(lanes_f32)a.v}; }
FK_INLINE vu32 as_bits(vf32 a) { return {(lanes_u32)a.v}; }
FK_INLINE vf32 to_float(vu32 a) { return {__builtin_convertvector((lanes_i32)a.v, lanes_f32)}; }  // signed lanes
FK_INLINE vf32 relu(vf32 a) { return {(lanes_f32)((lanes_u32)a.v & ~(lanes_u32)(a.v < 0.0f))}; }  // NaN is not below 0

FK_INLINE vmask test(vu32 a, vu32 b) { return {(lanes_u32)((a.v & b.v) != 0u)}; }
FK_INLINE vmask equal(vu32 a, vu32 b) { return {(lanes_u32)(a.v == b.v)}; }
FK_INLINE vmask greater(vu32 a, vu32 b) { return {(lanes_u32)((lanes_i32)a.v > (lanes_i32)b.v)}; }  // signed lanes
FK_INLINE vu32 select(vmask m, vu32 a, vu32 b) { return {(a.v & m.v) | (b.v & ~m.v)}; }
FK_INLINE vf32 select(vmask m, vf32 a, vf32 b) { return as_float(select(m, as_bits(a), as_bits(b))); }
FK_INLINE vf32 keep_where(vmask m, vf32 a) { return {(lanes_f32)((lanes_u32)a.v & m.v)}; }
FK_INLINE vu32 keep_where(vmask m, vu32 a) { return {a.v & m.v}; }
FK_INLINE uint32_t to_bits(vmask m) {  // bit i = lane i
  return (m.v[0] & 1u) | (m.v[1] & 2u) | (m.v[2] & 4u) | (m.v[3] & 8u);
}
FK_INLINE vmask from_bits(uint32_t bits) { return test(vu32::set(bits), {lanes_u32{1, 2, 4, 8}}); }

FK_INLINE float f16_to_float(uint16_t x) { return soft_f16_to_float(x); }
FK_INLINE uint16_t float_to_f16(float x) { return soft_float_to_f16(x); }
FK_INLINE vf32 load_f16(const uint16_t* p) {
  return {lanes_f32{f16_to_float(p[0]), f16_to_float(p[1]), f16_to_float(p[2]), f16_to_float(p[3])}};
}
FK_INLINE void store_f16(uint16_t* p, vf32 a) {
  for (int i = 0; i < VL; ++i) p[i] = float_to_f16(a.v[i]);
}
FK_INLINE vf32 load_bf16(const uint16_t* p) {
  return {lanes_f32{bf16_to_float(p[0]), bf16_to_float(p[1]), bf16_to_float(p[2]), bf16_to_float(p[3])}};
}
FK_INLINE void store_bf16(uint16_t* p, vf32 a) {
  for (int i = 0; i < VL; ++i) p[i] = float_to_bf16(a.v[i]);
}

// 32 bytes / int16 from 32 bits in natural order: `set` where the bit is 1.
FK_INLINE void expand_bytes(uint32_t bits, uint8_t set, uint8_t clear, uint8_t* out) {
  for (int k = 0; k < 32; ++k) out[k] = bits >> k & 1u ? set : clear;
}
FK_INLINE void expand_int16(uint32_t bits, int16_t set, int16_t clear, int16_t* out) {
  for (int k = 0; k < 32; ++k) out[k] = bits >> k & 1u ? set : clear;
}
// Bit k = byte k of 32 is not zero.
FK_INLINE uint32_t nonzero_bytes(const uint8_t* p) {
  uint32_t bits = 0;
  for (int k = 0; k < 32; ++k) bits |= static_cast<uint32_t>(p[k] != 0) << k;
  return bits;
}

}  // namespace fk::FK_ISA_NS
