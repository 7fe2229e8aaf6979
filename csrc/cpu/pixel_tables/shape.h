// How the columns of a layer are cut into passes of the pixel tables.
#pragma once
#include <vector>

#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

constexpr int64_t TRIPLE_CHANNELS = 3;  // inputs of a table
constexpr int64_t TABLE_ENTRIES = 27;   // their sums with weights of -1, 0 and 1
constexpr int64_t MOST_BASES = 7;       // taps of a pass along the last dimension
constexpr int64_t QUAD_OFFSETS = 4;     // offsets in a 64-bit word
constexpr int64_t MOST_VECTORS = 4;     // vectors of pixels that share an offset

// Offsets of a pass behind each base: as many as keep its tables in a first-level cache.
constexpr int64_t most_offsets(int64_t bases) { return bases == 1 ? 8 : bases <= 3 ? 4 : bases <= 5 ? 2 : 1; }

// A pass adds the products of some channels under some taps to all sums of a task.
struct Pass {
  int64_t first_triple, triples;  // of the channels of a group
  int64_t plane;                  // tap along the first dimension
  int64_t line, lines;            // taps along the second
  int64_t column, columns;        // taps along the last: a base each
  int64_t quad;                   // words of offsets of a row before this pass

  int64_t offsets() const { return triples * lines; }  // behind each base
  int64_t quads() const { return divide_up(columns * offsets(), QUAD_OFFSETS); }
};

struct TableShape {
  int64_t channels, triples;
  int64_t chunk, lines, columns;  // most triples and taps of a pass
  int64_t quads;                  // of a row, all passes together
  std::vector<Pass> passes;
  int64_t triples_by_columns[MOST_BASES] = {};  // triples of all passes of so many columns

  TableShape(const Geometry& g, const Layer& layer)
      : channels(layer.channels), triples(divide_up(layer.channels, TRIPLE_CHANNELS)), quads(0) {
    const int64_t across = g.taps[2], parts = across <= 5 || across == MOST_BASES ? 1 : divide_up(across, 5);
    columns = divide_up(across, parts);
    const int64_t most = most_offsets(columns);
    // Dilated lines would leave holes in the tables, beyond what an offset reaches.
    lines = g.dilation[1] == 1 ? divide_up(g.taps[1], divide_up(g.taps[1], most)) : 1;
    chunk = std::min(triples, most / lines);
    for (int64_t t = 0; t < triples; t += chunk) {
      for (int64_t plane = 0; plane < g.taps[0]; ++plane) {
        for (int64_t line = 0; line < g.taps[1]; line += lines) {
          for (int64_t column = 0; column < across; column += columns) add(g, t, plane, line, column);
        }
      }
    }
  }

 private:
  void add(const Geometry& g, int64_t triple, int64_t plane, int64_t line, int64_t column) {
    Pass pass{triple, std::min(chunk, triples - triple),     plane, line, std::min(lines, g.taps[1] - line),
              column, std::min(columns, g.taps[2] - column), quads};
    quads += pass.quads();
    triples_by_columns[pass.columns - 1] += pass.triples;
    passes.push_back(pass);
  }
};

inline bool has_one_tap(const Geometry& g) { return g.tap_count() == 1; }

// The tables of one column of a window: [triple][entry][place], a vector of pixels each. Places are lines, ordered so
// that the lines of neighbouring result pixels are neighbours.
struct TableColumn {
  int64_t stride, dilation, vectors, per_residue, places;

  TableColumn(const Geometry& g, const TableShape& shape, int64_t pixel_vectors)
      : stride(has_one_tap(g) ? 1 : g.stride[1]), dilation(g.dilation[1]), vectors(pixel_vectors) {
    per_residue = divide_up((vectors - 1) * stride + (shape.lines - 1) * dilation + 1, stride);
    places = per_residue * std::min(stride, (vectors - 1) * stride + (shape.lines - 1) * dilation + 1);
  }
  int64_t place(int64_t line) const { return line % stride * per_residue + line / stride; }
  int64_t entry_floats() const { return places * VL; }
  int64_t triple_floats() const { return TABLE_ENTRIES * entry_floats(); }
};

}  // namespace fk::FK_ISA_NS
