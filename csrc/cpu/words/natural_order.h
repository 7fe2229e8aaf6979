// Words whose bits follow the columns.
#pragma once
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

// Bit k = column k in each lane.
FK_INLINE vu32 natural_order(vu32 x) {
  const auto swap = [&](auto shift, uint32_t mask) {
    const vu32 t = (x ^ shr<shift>(x)) & vu32::set(mask);
    x = xor3(x, t, shl<shift>(t));
  };
  swap(std::integral_constant<int, 8>(), 0x0000FF00u);
  swap(std::integral_constant<int, 4>(), 0x00F000F0u);
  swap(std::integral_constant<int, 2>(), 0x0C0C0C0Cu);
  swap(std::integral_constant<int, 1>(), 0x22222222u);
  return x;
}

}  // namespace fk::FK_ISA_NS
