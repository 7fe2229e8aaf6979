// Sign and constant codes by tables of the sums of three inputs, for a vector of pixels at a time.
#pragma once
#include "cpu/conv/layer.h"

#define FK_USES_PIXEL_TABLES (FK_HAS_AVX2 && !FK_HAS_TILES)

namespace fk::FK_ISA_NS {

#if FK_USES_PIXEL_TABLES
bool pixel_tables_serve(const Call& c);
void convolve_pixel_tables(const Call& c);
#endif

}  // namespace fk::FK_ISA_NS
