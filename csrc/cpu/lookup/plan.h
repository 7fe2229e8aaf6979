// How a layer is cut for the table kernel: chunks of channels, panels of rows, tiles of pixels.
#pragma once
#include "cpu/lookup/index.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

constexpr int64_t BLOCK_ROWS = TILE_ROW_VECTORS * VL;
constexpr int64_t WINDOW_BYTES =
    24 << 10;  // tables that a tile of registers reads in one chunk: most of a first-level cache
// Tables of a task in one chunk, in a second-level cache of 1 MB beside its sums: large ones share more at their edges.
constexpr int64_t STRIP_BYTES = 384 << 10, INTEGER_STRIP_BYTES = 640 << 10;
constexpr int64_t SUM_BYTES = 256 << 10;
constexpr int64_t PANEL_BYTES = 2 << 20;  // indices held at once
// Groups of a chunk with one tap: a longer run pays for adding its sums to memory. Sums of integers are exact, sums of
// floats are cut as other kernels cut them.
constexpr int64_t POINTWISE_CHUNK = LD / TRIPLE, INTEGER_POINTWISE_CHUNK = 64;

// The source pixels under a tile of result pixels, a table for each and each group of a chunk: taps share them. Unless
// taps slide, a pixel of the result has tables of its own.
struct LookupWindow {
  int64_t planes, lines, columns;

  LookupWindow(const Geometry& g, int64_t tile_lines, int64_t tile_columns)
      : planes(g.taps[0]),
        lines((tile_lines - 1) * g.stride[1] + (g.taps[1] - 1) * g.dilation[1] + 1),
        columns((tile_columns - 1) * g.stride[2] + (g.taps[2] - 1) * g.dilation[2] + 1) {}

  int64_t pixels() const { return planes * lines * columns; }
  int64_t line_step(int64_t groups) const {
    const int64_t step = columns * groups * TABLE;
    return step % 1024 ? step : step + TABLE;  // lines 4096 bytes apart would share cache sets
  }
  int64_t floats(int64_t groups) const { return planes * lines * line_step(groups); }
};

inline bool taps_slide(const Geometry& g) { return g.tap_count() > 1; }

inline LookupShape lookup_shape(const Geometry& g, int64_t channels, bool integers) {
  LookupShape shape{};
  shape.channels = channels;
  shape.groups = divide_up(channels, TRIPLE);
  const bool joined = g.dilation[2] == 1;
  shape.run_taps = joined ? g.taps[2] : 1;
  shape.entries = g.tap_count() / shape.run_taps;
  if (!taps_slide(g)) {
    shape.chunk = integers ? INTEGER_POINTWISE_CHUNK : POINTWISE_CHUNK;
  } else {
    shape.chunk = LookupWindow(g, 1, TILE_PIXELS).floats(4 * QUAD) * 4 <= WINDOW_BYTES ? 4 * QUAD : 2 * QUAD;
  }
  shape.chunk = std::min(shape.chunk, shape.groups);
  return shape;
}

// Floats from the staged inputs of one pixel to those of the next, with one tap.
inline int64_t staged_step(const LookupShape& shape) { return round_up(TRIPLE * shape.chunk, VL) + VL; }

struct LookupPlan {
  LookupShape shape;
  int64_t vectors, blocks;             // row vectors of a block, blocks of a group
  int64_t panel_groups, panel_blocks;  // groups of a panel, and blocks of each: all of them, or one group's part
  int64_t splits;                      // parts that tasks cut panel_blocks into
  int64_t lines, columns;              // pixels of a tile, at most
  int64_t tiles_down, tiles_along, planes;

  LookupPlan(const Geometry& g, const Layer& layer, bool integers, int threads);
  int64_t tiles() const { return planes * tiles_down * tiles_along; }
  int64_t split_blocks() const { return divide_up(panel_blocks, splits); }

 private:
  void cut_rows(const Layer& layer);
  void cut_pixels(const Geometry& g, int64_t strip_bytes, int threads);
};

}  // namespace fk::FK_ISA_NS
#endif
