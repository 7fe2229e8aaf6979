// Keep and sign words of a vector of rows.
#pragma once
#include "frozen/weight.h"
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

// All words of `rows` <= VL rows from `row0` on: [word][row], and a word of zeros behind the last. Lanes past `rows`
// are 0 in keep and anything in sign; a code other than signs has signs of 0. Asks for the stored words of the next
// rows.
void read_rows(const Frozen& f, int64_t row0, int64_t rows, uint32_t* keep, uint32_t* sign);

}  // namespace fk::FK_ISA_NS
