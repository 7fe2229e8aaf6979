// Products on fused multiply-adds: blocks of codes as floats times packed pixels, in registers. They serve every layer.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

// narrow = W wide
void convolve_panels(const Call& call);
// wide = W^T narrow
void convolve_transposed_panels(const Call& call);

}  // namespace fk::FK_ISA_NS
