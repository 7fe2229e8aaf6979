// Linear layers and convolutions with sign and constant codes, by table: three weights cost one lookup and one
// addition.
#pragma once
#include "cpu/conv/layer.h"

// Tile registers are faster where there are any.
#define FK_USES_LOOKUP (FK_HAS_AVX512 && !FK_HAS_TILES)

namespace fk::FK_ISA_NS {

// Whether this is faster than multiplying. Knows shapes alone: results must not depend on residency or threads.
bool lookup_serves(const Call& call);

// narrow = W wide
void convolve_lookup(const Call& call);

}  // namespace fk::FK_ISA_NS
