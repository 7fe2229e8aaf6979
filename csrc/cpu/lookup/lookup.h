// Linear layers and convolutions with sign and constant codes, by table: three weights cost one lookup and one
// addition.
#pragma once
#include "cpu/conv/layer.h"

// Tile registers are faster where there are any.
#define FK_USES_LOOKUP (FK_HAS_AVX512 && !FK_HAS_TILES)

namespace fk::FK_ISA_NS {

// Whether this is faster than multiplying. Knows shapes alone: results must not depend on residency or threads.
bool lookup_serves(const Call& call);

struct LookupPanel;
// Makes the indices of `rows` rows from `row0` on: row vector `vector` of `vectors` in a block of a panel.
using PackIndices = void (*)(const Frozen& f, const LookupPanel& panel, int64_t block, int64_t vector, int64_t vectors,
                             int64_t row0, int64_t rows);

// narrow = W wide, with indices made as the level makes them; `past_caches`: results that they would not keep are
// stored past the caches.
void convolve_lookup(const Call& call, PackIndices pack, bool past_caches);

}  // namespace fk::FK_ISA_NS
