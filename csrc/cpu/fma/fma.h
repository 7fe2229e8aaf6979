// Products on fused multiply-adds: blocks of codes as floats times packed pixels, in registers. They serve every layer.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

// Longest chain of a sum of narrow = W wide. Torch sums small products, and what it takes for dot products, of few
// pixels or of one row, in many short chains; chains of DEPTH had up to three times its error there. Results of 16 bits
// do not show it. Large products keep long chains: short ones take 3 to 15 % longer.
int64_t longest_forward_chain(const Call& call);

// narrow = W wide
void convolve_panels(const Call& call);
// wide = W^T narrow
void convolve_transposed_panels(const Call& call);

}  // namespace fk::FK_ISA_NS
