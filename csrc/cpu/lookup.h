// Linear layers and convolutions with sign and constant codes, by table: three weights cost one lookup and one
// addition.
#pragma once
#include "gemm_block.h"

namespace fk::FK_ISA_NS {

// Whether narrow = W wide is faster by table than by multiplication. Knows shapes alone: results must not depend on
// residency or threads.
bool lookup_serves(const Frozen& f, const Geometry& g);

void lookup_convolve(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                     const Bias& bias, int threads);

}  // namespace fk::FK_ISA_NS
