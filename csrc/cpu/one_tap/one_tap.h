// narrow = W wide with one tap and many pixels whose channels are neighbours in memory: inputs are read where they lie,
// sums stay in registers and are stored once.
#pragma once
#include "cpu/conv/layer.h"

#define FK_USES_ONE_TAP (FK_HAS_AVX2 && !FK_HAS_TILES)

namespace fk::FK_ISA_NS {

#if FK_USES_ONE_TAP
bool one_tap_serves(const Call& c);
void convolve_one_tap(const Call& c);
#endif

}  // namespace fk::FK_ISA_NS
