// Words of the format turned into table indices: three ternary weights to a byte.
#pragma once
#include "cpu/lookup/micro.h"
#include "cpu/words/ternary_columns.h"

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

// The indices of groups of three columns, of 16 rows.
class IndexPacker {
 public:
  IndexPacker(const Frozen& f, Scratch& scratch) : columns_(f, scratch) {}
  static int64_t scratch_bytes(const Frozen& f) { return TernaryColumns::scratch_bytes(f); }
  void read_rows(int64_t row0, int64_t rows) { columns_.read_rows(row0, rows); }

  // The runs of one chunk; quads lie `stride` bytes apart.
  void pack(const LookupShape& shape, int64_t chunk, uint8_t* out, int64_t stride) const {
    const int64_t groups = shape.groups_of(chunk), run = shape.run_taps * groups;
    for (int64_t entry = 0; entry < shape.entries; ++entry) {
      int64_t column = entry * shape.run_taps * shape.channels + TRIPLE * chunk * shape.chunk, group = 0;
      for (int64_t first = 0; first < run; first += QUAD, out += stride) {
        vu32 keep = vu32::set(0), negative = keep;
        if (group + QUAD <= groups) {
          keep = spread_bits(columns_.keep(column));
          negative = spread_bits(columns_.negative(column));
          step(QUAD, groups, shape.channels, group, column);
        } else {
          for (int64_t b = 0; b < std::min(QUAD, run - first); ++b) {
            const uint32_t place = static_cast<uint32_t>(8 * b);
            keep = keep | shift_left(columns_.keep(column) & vu32::set(7), place);
            negative = negative | shift_left(columns_.negative(column) & vu32::set(7), place);
            step(1, groups, shape.channels, group, column);
          }
        }
        index(keep, negative).store(out);
      }
    }
  }

 private:
  // Past the last group of a tap comes the first of the next.
  FK_INLINE static void step(int64_t count, int64_t groups, int64_t channels, int64_t& group, int64_t& column) {
    group += count;
    column += TRIPLE * count;
    if (group == groups) {
      group = 0;
      column += channels - TRIPLE * groups;
    }
  }

  // Sum of 3^i (keep_i - 2 negative_i) as its size, and 16 where it is below zero.
  FK_INLINE static vu32 index(vu32 keep, vu32 negative) {
    const __m512i below = weigh_bits(negative).v;
    const __m512i value = _mm512_sub_epi8(weigh_bits(keep).v, _mm512_add_epi8(below, below));
    return vu32{_mm512_abs_epi8(value)} | (vu32{value} & vu32::set(0x10101010u));
  }

  TernaryColumns columns_;
};

}  // namespace fk::FK_ISA_NS
#endif
