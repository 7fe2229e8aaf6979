// A frozen weight as an open ticket holds it: regenerated, checked, and in a residency.
#pragma once
#include "lib/frozen.h"
#include "lib/records.h"

namespace fk::lib {

struct Weight {
  Record record;
  frozen_residency residency;
  Block<uint8_t> supermask, bytes, values;
  Block<int64_t> offsets;
  Block<uint32_t> keep, sign;
  std::vector<Block<uint32_t>> coats;  // keep planes of the coats after the first
  Block<float> row_scale, gain;        // [rows], or empty

  // What kernels take of coat `coat`, 0 for the first.
  Frozen frozen(size_t coat = 0) const;
  int64_t held_bytes() const;
};

// All weights of a ticket. Tensors that belong to them leave the container. Error FROZEN_TICKET where a seed gives
// other counts or another keep plane than the ticket says, or where weights would take more than `most_bytes`; 0 for a
// limit on keep planes that grows with the file.
std::vector<Weight> make_weights(Container& container, frozen_residency residency, int64_t most_bytes);

}  // namespace fk::lib
