// Where the table indices of a layer lie: three ternary weights to a byte.
#pragma once
#include "cpu/lookup/micro.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

// How the columns of a layer become tables and indices. The channels of a tap, three by three, are `groups` tables;
// chunks of them are summed one after the other. A chunk's part of one row is `entries` runs of tables: a run crosses
// the taps along the last dimension where their tables are neighbours.
struct LookupShape {
  int64_t channels, groups;  // groups = ceil(channels / 3); the last is filled up with inputs of zero
  int64_t chunk;             // most groups of a chunk
  int64_t entries, run_taps;

  int64_t chunks() const { return divide_up(groups, chunk); }
  int64_t groups_of(int64_t c) const { return std::min(chunk, groups - c * chunk); }
  int64_t quads_of(int64_t c) const { return divide_up(run_taps * groups_of(c), QUAD); }
  int64_t quads() const {
    const int64_t last = chunks() - 1;
    return entries * (last * quads_of(0) + quads_of(last));
  }
};

// Indices of a panel of row blocks: [chunk][block][entry][quad][row vector] of 64 bytes.
struct LookupPanel {
  const LookupShape& shape;
  int64_t blocks, vectors;  // row vectors of a block
  uint8_t* indices;

  int64_t bytes() const { return 64 * blocks * vectors * shape.quads() + QUAD; }  // the last load may start 3 late
  uint8_t* at(int64_t c, int64_t block) const {
    const int64_t before = c * shape.quads_of(0) * blocks + block * shape.quads_of(c);
    return indices + 64 * before * shape.entries * vectors;
  }
};

}  // namespace fk::FK_ISA_NS
#endif
