#include "cpu/lookup/plan.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

namespace {

// Costs in lookups of one vector of rows.
constexpr int64_t BUILD_COST = 2, TILE_COST = 40, STORE_COST = 6, TASK_COST = 4000;

struct Cut {
  int64_t lines, columns, blocks;
};

}  // namespace

LookupPlan::LookupPlan(const Geometry& g, const Layer& layer, bool integers, int threads)
    : shape(lookup_shape(g, layer.channels, integers)) {
  cut_rows(layer);
  cut_pixels(g, integers ? INTEGER_STRIP_BYTES : STRIP_BYTES, threads);
}

void LookupPlan::cut_rows(const Layer& layer) {
  blocks = divide_up(layer.rows, BLOCK_ROWS);
  vectors = std::min<int64_t>(TILE_ROW_VECTORS, divide_up(layer.rows, VL));
  const int64_t fit = std::max<int64_t>(1, PANEL_BYTES / (64 * vectors * shape.quads()));
  panel_groups = std::clamp<int64_t>(fit / blocks, 1, layer.groups);
  const int64_t parts = divide_up(blocks, fit);
  panel_blocks = divide_up(blocks, parts);
}

// The cut with the least work on the busiest thread. Sums do not depend on it.
void LookupPlan::cut_pixels(const Geometry& g, int64_t strip_bytes, int threads) {
  const bool slide = taps_slide(g);
  const int64_t height = slide ? g.narrow[1] : 1;
  const int64_t width = slide ? g.narrow[2] : g.batch * g.narrow[0] * g.narrow[1] * g.narrow[2];
  planes = slide ? g.batch * g.narrow[0] : 1;
  const int64_t entries = shape.entries * shape.run_taps * shape.groups;
  int64_t least = INT64_MAX;
  const auto try_cut = [&](const Cut& cut) {
    const int64_t pixels = cut.lines * cut.columns, tiles = divide_up(pixels, TILE_PIXELS);
    const LookupWindow window(g, cut.lines, cut.columns);
    const bool minimal = cut.lines == 1 && cut.columns <= TILE_PIXELS && cut.blocks == 1;
    if (!minimal && slide && 4 * window.floats(shape.chunk) > strip_bytes) return false;
    const int64_t held =
        cut.blocks * vectors * VL + (slide ? 0 : staged_step(shape));  // floats of a pixel: its sums, its staged inputs
    if (!minimal && 4 * pixels * held > SUM_BYTES) return false;
    const int64_t tables = (slide ? window.pixels() : tiles * TILE_PIXELS) * shape.groups;
    const int64_t work = cut.blocks * (pixels * vectors * entries + tiles * TILE_COST * shape.chunks()) +
                         tables * BUILD_COST + pixels * cut.blocks * vectors * STORE_COST + TASK_COST;
    const int64_t down = divide_up(height, cut.lines), along = divide_up(width, cut.columns);
    const int64_t parts = divide_up(panel_blocks, cut.blocks);
    const int64_t tasks = panel_groups * parts * planes * down * along;
    const int64_t total = divide_up(tasks, threads) * work;
    if (total < least) {
      least = total;
      lines = cut.lines, columns = cut.columns, splits = parts;
      tiles_down = down, tiles_along = along;
    }
    return true;
  };
  const int64_t whole = slide ? 1 : TILE_PIXELS;
  for (int64_t part = panel_blocks;; part = (part + 1) / 2) {
    for (int64_t along = 1;; along += (along + 1) / 2) {
      const int64_t w = std::min(width, round_up(divide_up(width, along), whole));
      for (int64_t down = height; down > 0; down -= 1 + down / 8) {
        if (!try_cut({divide_up(height, down), w, part})) break;
      }
      if (w <= TILE_PIXELS) break;
    }
    if (part == 1) break;
  }
}

}  // namespace fk::FK_ISA_NS
#endif
