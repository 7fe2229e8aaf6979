// Sizes of the blocks of floats that products on vectors work on.
#pragma once
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

constexpr int64_t DEPTH = 128;      // longest chain: columns, rows or pixels summed before the sum joins C
constexpr int64_t LD = DEPTH + 16;  // row stride of packed blocks: rows on different cache sets
constexpr int64_t TILE_LANES = 2 * VL;

}  // namespace fk::FK_ISA_NS
