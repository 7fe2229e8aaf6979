// Vectors of VL 32-bit lanes, one spelling for every instruction set. Loads and stores are unaligned.
#pragma once
#include <stdint.h>
#include <string.h>

#include "cpu/simd/features.h"
#include "frozen/format.h"

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format's byte streams are read in place");

#define FK_INLINE inline __attribute__((always_inline))

namespace fk::FK_ISA_NS {

// bfloat16 and float16 by bits, rounding to nearest even; NaN stays NaN.
FK_INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
FK_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}
FK_INLINE float bf16_to_float(uint16_t x) { return bits_to_float(static_cast<uint32_t>(x) << 16); }
FK_INLINE uint16_t float_to_bf16(float x) {
  const uint32_t bits = float_to_bits(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}
FK_INLINE float soft_f16_to_float(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, magnitude = x & 0x7FFFu;
  if (magnitude >= 0x7C00u) return bits_to_float(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x400u) return bits_to_float(sign | ((magnitude << 13) + 0x38000000u));
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return sign ? -subnormal : subnormal;
}
FK_INLINE uint16_t soft_float_to_f16(float x) {
  const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7FFFFFFFu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u | (magnitude >> 13 & 0x3FFu));
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more round to infinity
  if (magnitude < 0x38800000u) {
    // Adding 0.5 leaves the subnormal, rounded to nearest even, in the low bits of the sum.
    return static_cast<uint16_t>(sign | (float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3F000000u));
  }
  return static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xFFFu + (magnitude >> 13 & 1u)) >> 13));
}

}  // namespace fk::FK_ISA_NS

#if FK_HAS_AVX512
#include "cpu/simd/avx512.h"
#elif FK_HAS_AVX2
#include "cpu/simd/avx2.h"
#elif FK_HAS_NEON
#include "cpu/simd/neon.h"
#else
#include "cpu/simd/portable.h"
#endif

namespace fk::FK_ISA_NS {

FK_INLINE vu32& operator^=(vu32& a, vu32 b) { return a = a ^ b; }

FK_INLINE vf32 multiply_add(vf32 a, vf32 b, vf32 c) {
#if FK_HAS_AVX2 || FK_HAS_NEON
  return fma(a, b, c);
#else
  return a * b + c;
#endif
}

constexpr int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
constexpr int64_t round_up(int64_t n, int64_t multiple) { return divide_up(n, multiple) * multiple; }

}  // namespace fk::FK_ISA_NS

namespace fk::FK_LEVEL_NS {
using namespace fk::FK_ISA_NS;
}
namespace fk::FK_TABLE_NS {
using namespace fk::FK_LEVEL_NS;
}
