// Words of the format turned into table indices: three ternary weights to a byte.
#pragma once
#include "cpu/core/scratch.h"
#include "cpu/lookup/micro.h"
#include "cpu/words/natural_order.h"
#include "cpu/words/row_block.h"

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

// Keep and negative bits of 16 rows in column order, and the indices of groups of three columns.
class IndexPacker {
 public:
  IndexPacker(const Frozen& f, Scratch& scratch)
      : f_(f),
        keep_(scratch.take<uint32_t>((f.words + 1) * VL)),
        negative_(scratch.take<uint32_t>((f.words + 1) * VL)) {}
  static int64_t scratch_bytes(const Frozen& f) { return 8 * (f.words + 1) * VL + 128; }

  void read_rows(int64_t row0, int64_t rows) {
    RowBlock block(f_, row0, rows, VL);
    block.next(f_.words, keep_, negative_);
    const bool draws = f_.code == SIGN_CODE;
    for (int64_t i = 0; i < f_.words * VL; i += VL) {
      const vu32 keep = natural_order(vu32::load(keep_ + i));
      keep.store(keep_ + i);
      (draws ? keep & natural_order(vu32::load(negative_ + i)) : vu32::set(0)).store(negative_ + i);
    }
    vu32::set(0).store(keep_ + f_.words * VL);
    vu32::set(0).store(negative_ + f_.words * VL);
  }

  // The runs of one chunk; quads lie `stride` bytes apart.
  void pack(const LookupShape& shape, int64_t chunk, uint8_t* out, int64_t stride) const {
    const int64_t groups = shape.groups_of(chunk), run = shape.run_taps * groups;
    for (int64_t entry = 0; entry < shape.entries; ++entry) {
      int64_t column = entry * shape.run_taps * shape.channels + TRIPLE * chunk * shape.chunk, group = 0;
      for (int64_t first = 0; first < run; first += QUAD, out += stride) {
        vu32 keep = vu32::set(0), negative = keep;
        if (group + QUAD <= groups) {
          keep = spread(bits(keep_, column));
          negative = spread(bits(negative_, column));
          step(QUAD, groups, shape.channels, group, column);
        } else {
          for (int64_t b = 0; b < std::min(QUAD, run - first); ++b) {
            const vu32 place = vu32::set(static_cast<uint32_t>(8 * b)), three = vu32::set(7);
            keep = keep | shift_left(bits(keep_, column) & three, place);
            negative = negative | shift_left(bits(negative_, column) & three, place);
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

  FK_INLINE static vu32 shift_left(vu32 x, vu32 by) { return {_mm512_sllv_epi32(x.v, by.v)}; }

  // Columns from `column` on in the low bits; past the last column of the row, anything.
  FK_INLINE static vu32 bits(const uint32_t* words, int64_t column) {
    const uint32_t shift = static_cast<uint32_t>(column & 31);
    const uint32_t* const at = words + (column >> 5) * VL;
    const __m512i low = _mm512_srlv_epi32(vu32::load(at).v, vu32::set(shift).v);
    return vu32{low} | shift_left(vu32::load(at + VL), vu32::set(32 - shift));
  }

  // Bits 3 b .. 3 b + 2 to the low bits of byte b.
  FK_INLINE static vu32 spread(vu32 x) {
    const vu32 halves = select_bits(vu32::set(0x0000FFFFu), x, shl<10>(x));
    return select_bits(vu32::set(0x00FF00FFu), halves, shl<5>(halves)) & vu32::set(0x07070707u);
  }

  // Sum of 3^i (keep_i - 2 negative_i) as its size, and 16 where it is below zero.
  FK_INLINE static vu32 index(vu32 keep, vu32 negative) {
    const __m512i kept = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 3, 4, 9, 10, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0));
    const __m512i twice = _mm512_add_epi8(kept, kept);
    const __m512i value = _mm512_sub_epi8(_mm512_shuffle_epi8(kept, keep.v), _mm512_shuffle_epi8(twice, negative.v));
    return vu32{_mm512_abs_epi8(value)} | (vu32{value} & vu32::set(0x10101010u));
  }

  const Frozen& f_;
  uint32_t *keep_, *negative_;
};

}  // namespace fk::FK_ISA_NS
#endif
