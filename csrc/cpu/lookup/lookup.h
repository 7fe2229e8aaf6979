// Linear layers and convolutions with sign and constant codes, by table: three weights cost one lookup and one
// addition.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

// Whether this is faster than multiplying. Knows shapes alone: results must not depend on residency or threads.
bool lookup_serves(const Frozen& f, const Geometry& g);

// narrow = W wide; `grid` is the narrow side's, and pixels are merged already where they can be.
void convolve_lookup(const Frozen& f, const Geometry& g, const Activations& wide, const Result& result,
                     const Grid& grid, int threads);

}  // namespace fk::FK_ISA_NS
