// Words of the format turned into offsets of table entries: a byte for three ternary weights.
#pragma once
#include "cpu/pixel_tables/shape.h"
#include "cpu/words/ternary_columns.h"

namespace fk::FK_ISA_NS {

// Offsets of a panel of rows: [pass][VL rows][word][row], four offsets to a word.
struct OffsetPanel {
  int64_t rows;  // a multiple of VL
  uint32_t* words;

  static int64_t words_of(const TableShape& shape, int64_t rows) { return shape.quads * round_up(rows, VL); }
  // Of rows from `row` on, a multiple of VL.
  uint32_t* at(const Pass& pass, int64_t row) const { return words + pass.quad * rows + pass.quads() * row; }
};

// Where the four entries of a word of offsets stand: in which word of entries, from which bit on.
struct Quad {
  uint32_t count;
  bool together;  // in one word, in order
  uint32_t shift[QUAD_OFFSETS];
  int64_t at[QUAD_OFFSETS];
};

struct OffsetLayout {
  std::vector<Quad> quads;  // of all passes

  OffsetLayout(const Geometry& g, const TableShape& shape) {
    const int64_t tap_quads = divide_up(shape.triples, QUAD_OFFSETS);
    for (const Pass& pass : shape.passes) {
      Quad quad{};
      const auto flush = [&] {
        if (quad.count) quads.push_back(quad);
        quad = {};
      };
      // Offsets of a pass go by column, line, triple.
      for (int64_t k = 0; k < pass.columns; ++k) {
        for (int64_t j = 0; j < pass.lines; ++j) {
          const int64_t tap = (pass.plane * g.taps[1] + pass.line + j) * g.taps[2] + pass.column + k;
          for (int64_t t = 0; t < pass.triples; ++t) {
            const int64_t triple = pass.first_triple + t;
            quad.at[quad.count] = tap * tap_quads + triple / QUAD_OFFSETS;
            quad.shift[quad.count++] = static_cast<uint32_t>(8 * (triple % QUAD_OFFSETS));
            if (quad.count < QUAD_OFFSETS) continue;
            quad.together = quad.shift[0] == 0 && quad.at[3] == quad.at[0] && quad.shift[3] == 24;
            flush();
          }
        }
      }
      flush();
    }
  }
};

// Makes the offsets of VL rows.
class OffsetPacker {
 public:
  OffsetPacker(const Frozen& f, const Geometry& g, const TableShape& shape, const OffsetLayout& layout,
               Scratch& scratch)
      : columns_(f, scratch),
        g_(g),
        shape_(shape),
        layout_(layout),
        tap_quads_(divide_up(shape.triples, QUAD_OFFSETS)),
        entries_(scratch.take<uint32_t>(g.tap_count() * tap_quads_ * VL)) {}
  static int64_t scratch_bytes(const Frozen& f, const Geometry& g, const TableShape& shape) {
    const int64_t quads = g.tap_count() * divide_up(shape.triples, QUAD_OFFSETS);
    return TernaryColumns::scratch_bytes(f) + 4 * quads * VL + 64;
  }

  // Entries of the tables, 0 to 26, times 8, four to a word: [tap][quad of triples][row].
  void read_rows(int64_t row0, int64_t rows) {
    columns_.read_rows(row0, rows);
    uint32_t* out = entries_;
    for (int64_t tap = 0; tap < g_.tap_count(); ++tap) {
      for (int64_t channel = 0; channel < TRIPLE_CHANNELS * QUAD_OFFSETS * tap_quads_;
           channel += TRIPLE_CHANNELS * QUAD_OFFSETS, out += VL) {
        const int64_t left = std::min(TRIPLE_CHANNELS * QUAD_OFFSETS, shape_.channels - channel);
        const int64_t column = tap * shape_.channels + channel;
        const vu32 channels = vu32::set((1u << left) - 1);
        const vu32 keep = weigh_bits(spread_bits(columns_.keep(column) & channels));
        const vu32 below = weigh_bits(spread_bits(columns_.negative(column) & channels));
        // 13 + keep - 2 negative, and no byte borrows from the next.
        shl<3>(vu32::set(0x0D0D0D0Du) + keep - below - below).store(out);
      }
    }
  }

  // The words of a pass.
  void pack(const Pass& pass, uint32_t* out) const {
    const Quad* quad = layout_.quads.data() + pass.quad;
    for (int64_t i = 0; i < pass.quads(); ++i, ++quad, out += VL) {
      vu32 entries = vu32::load(entries_ + quad->at[0] * VL);
      if (!quad->together) {
        entries = shift_right(entries, quad->shift[0]) & vu32::set(0xFF);
        for (uint32_t b = 1; b < quad->count; ++b) {
          const vu32 next = vu32::load(entries_ + quad->at[b] * VL);
          entries = entries | shift_left(shift_right(next, quad->shift[b]) & vu32::set(0xFF), 8 * b);
        }
      }
      entries.store(out);
    }
  }

 private:
  TernaryColumns columns_;
  const Geometry& g_;
  const TableShape& shape_;
  const OffsetLayout& layout_;
  const int64_t tap_quads_;
  uint32_t* const entries_;
};

}  // namespace fk::FK_ISA_NS
