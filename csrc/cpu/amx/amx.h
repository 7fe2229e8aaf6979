// Products on tile registers (AMX).
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_LEVEL_NS {

// narrow = W wide
bool tiles_serve(const Call& call);
void convolve_tiles(const Call& call);
// wide = W^T narrow
bool transposed_tiles_serve(const Call& call);
void convolve_transposed_tiles(const Call& call);

}  // namespace fk::FK_LEVEL_NS
