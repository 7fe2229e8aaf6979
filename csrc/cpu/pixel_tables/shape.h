// How the columns of a layer are cut into passes of the pixel tables.
#pragma once
#include <numeric>
#include <vector>

#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

constexpr int64_t TRIPLE_CHANNELS = 3;  // inputs of a table
constexpr int64_t TABLE_ENTRIES = 27;   // their sums with weights of -1, 0 and 1
constexpr int64_t TABLE_FLOATS = TABLE_ENTRIES * VL;
constexpr int64_t TABLE_BYTES = 32 << 10;  // tables that one call reads: what many first-level caches hold
constexpr int64_t MOST_BASES = 7;          // taps of a pass along the last dimension
constexpr int64_t MOST_LINES = 3;          // and along the second
constexpr int64_t QUAD_OFFSETS = 4;        // offsets in a word
constexpr int64_t MOST_VECTORS = 4;        // of pixels that share an offset

// Offsets of a pass behind each base: as many as keep the tables of two vectors of pixels in a first-level cache.
constexpr int64_t most_offsets(int64_t bases) {
  return bases == 1 ? 128 / VL : bases <= 3 ? (VL == 8 ? 6 : 4) : bases <= 5 ? 2 : 1;
}

// Lines of a pass: a lone base has tables enough without.
constexpr int64_t most_lines(int64_t bases) { return bases == 1 ? 1 : std::min(most_offsets(bases), MOST_LINES); }

// Vectors that share an offset: many pay where they share tables too.
constexpr int64_t most_vectors(int64_t lines) { return lines > 1 ? MOST_VECTORS : 2; }

// Rows whose sums grow in turns: pairs are slower with one vector, and have no registers with many.
constexpr int rows_at_once(int64_t vectors) { return vectors == 2 ? 2 : 1; }

// Tables of a column and three channels: line j of the taps of vector p is at place p * step + j.
constexpr int64_t places_of(int64_t lines, int64_t step, int64_t vectors) { return (vectors - 1) * step + lines; }

inline bool has_one_tap(const Geometry& g) { return g.tap_count() == 1; }

// A pass adds the products of some channels under some taps to all sums of a task.
struct Pass {
  int64_t first_triple, triples;  // of the channels of a group
  int64_t plane;                  // tap along the first dimension
  int64_t line, lines;            // taps along the second
  int64_t column, columns;        // taps along the last: a base each
  int64_t quad;                   // words of offsets of a row before this pass
  int64_t step;                   // from a vector of pixels to the next, in places of tables

  int64_t offsets() const { return triples * lines; }  // behind each base
  int64_t quads() const { return divide_up(columns * offsets(), QUAD_OFFSETS); }
  int64_t places(int64_t vectors) const { return places_of(lines, step, vectors); }
};

struct TableShape {
  int64_t channels, triples;
  bool one_tap;
  int64_t chunk, lines, columns;   // most triples and taps of a pass
  int64_t step;                    // of all passes
  int64_t quads;                   // of a row, all passes together
  int64_t vectors = MOST_VECTORS;  // that every pass has a loop for
  std::vector<Pass> passes;
  int64_t triples_by_columns[MOST_BASES] = {};  // triples of all passes of so many columns

  TableShape(const Geometry& g, const Layer& layer)
      : channels(layer.channels),
        triples(divide_up(layer.channels, TRIPLE_CHANNELS)),
        one_tap(has_one_tap(g)),
        quads(0) {
    const int64_t across = g.taps[2], parts = across <= 5 || across == MOST_BASES ? 1 : divide_up(across, 5);
    columns = divide_up(across, parts);
    const int64_t most = most_offsets(columns);
    // Vectors share the tables of neighbouring lines. Dilated lines and most strides would leave holes between them,
    // for which there is no loop.
    const bool shared =
        g.dilation[1] == 1 && (g.stride[1] == 1 || (g.stride[1] == 2 && g.taps[1] == 3 && columns <= 3));
    lines = shared ? divide_up(g.taps[1], divide_up(g.taps[1], most_lines(columns))) : 1;
    step = lines == 1 ? 1 : g.stride[1];
    chunk = std::min(triples, most / lines);
    for (int64_t t = 0; t < triples; t += chunk) {
      for (int64_t plane = 0; plane < g.taps[0]; ++plane) {
        for (int64_t line = 0; line < g.taps[1]; line += lines) {
          // Evenly, so that none is left alone: a lone tap has no loop for lines.
          for (int64_t i = 0; i < parts; ++i) add(g, t, plane, line, across * i / parts, across * (i + 1) / parts);
        }
      }
    }
  }

  // Channels that are packed at once: those of whole passes, and whole vectors where they are neighbours in memory. One
  // tap reads each pixel once: many lines of it in a row are faster.
  int64_t packed_channels() const { return std::lcm(TRIPLE_CHANNELS * chunk, VL) * (one_tap ? 4 : 1); }

 private:
  void add(const Geometry& g, int64_t triple, int64_t plane, int64_t line, int64_t column, int64_t end_column) {
    Pass pass{triple,
              std::min(chunk, triples - triple),
              plane,
              line,
              std::min(lines, g.taps[1] - line),
              column,
              end_column - column,
              quads,
              step};
    quads += pass.quads();
    vectors = std::min(vectors, most_vectors(pass.lines));
    triples_by_columns[pass.columns - 1] += pass.triples;
    passes.push_back(pass);
  }
};

}  // namespace fk::FK_ISA_NS
