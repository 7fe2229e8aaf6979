// Words of the format turned into table indices.
#pragma once
#include "cpu/lookup/lookup.h"

#if FK_USES_LOOKUP
namespace fk::FK_LEVEL_NS {

// See PackIndices; at most VL rows.
void pack_indices(const Frozen& f, const LookupPanel& panel, int64_t block, int64_t vector, int64_t vectors,
                  int64_t row0, int64_t rows);

}  // namespace fk::FK_LEVEL_NS
#endif
