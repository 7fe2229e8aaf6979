// The table kernel with integers of one unit in its tables, for processors that look up and add integers side by side.
#pragma once
#include "cpu/lookup/lookup.h"

#define FK_USES_INTEGER_LOOKUP (FK_USES_LOOKUP && FK_HAS_INTEGER_PIPES)

namespace fk::FK_ISA_NS {

bool integer_lookup_serves(const Call& call);

// narrow = W wide; images and pixels that integers do not suit go to tables of floats.
void convolve_integer_lookup(const Call& call, PackIndices pack, bool past_caches);

}  // namespace fk::FK_ISA_NS
