// Floats scaled and rounded to integers.
#pragma once
#include <immintrin.h>

#include <cmath>

#include "cpu/simd/simd.h"

namespace fk::FK_LEVEL_NS {

// Multiplies by 2^exponent, which may lie beyond the powers of two that a float holds.
class PowerOfTwo {
 public:
  explicit PowerOfTwo(int exponent)
      : half_(vf32::set(std::ldexp(1.0f, exponent / 2))), rest_(vf32::set(std::ldexp(1.0f, exponent - exponent / 2))) {}
  FK_INLINE vf32 times(vf32 x) const { return x * half_ * rest_; }

 private:
  vf32 half_, rest_;
};

FK_INLINE vu32 round_to_integers(vf32 x) {
#if FK_HAS_AVX512
  return {_mm512_cvtps_epi32(x.v)};
#else
  return {_mm256_cvtps_epi32(x.v)};
#endif
}

}  // namespace fk::FK_LEVEL_NS
