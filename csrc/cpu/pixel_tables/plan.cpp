#include "cpu/pixel_tables/plan.h"

#include "cpu/pixel_tables/pixel_tables.h"

#if FK_USES_PIXEL_TABLES
namespace fk::FK_ISA_NS {

namespace {

// Costs in entries added to a vector of sums, fitted to the times of 500 cuts of ResNets' layers.
constexpr double ALONE_COST = 1.25;  // of an entry whose offset serves one vector
constexpr double SUM_COST = 2, BUILD_COST = 90, TASK_COST = 4000;
constexpr double TURN_COST = 100;         // VL lanes of VL places turned
constexpr double POINT_COST = 20;         // a vector of one tap read or written
constexpr int64_t LEAST_PART = 32;        // rows, below which a panel is not cut
constexpr int64_t MOST_POINTS = 8;        // vectors of a line with one tap
constexpr int64_t SUM_BYTES = 384 << 10;  // sums of a task: a second-level cache has 1 MB
constexpr int64_t PACKED_BYTES = 384 << 10;
constexpr int64_t MOST_PANEL_BYTES = 4 << 20, LEAST_PANEL_BYTES = 1 << 20;

}  // namespace

struct TablePlan::Cut {
  int64_t vectors, width, rows;
};

TablePlan::TablePlan(const Geometry& g, const Layer& layer, int64_t pixels, int threads) : shape(g, layer) {
  cut_rows(layer);
  const bool one_tap = has_one_tap(g);
  planes = g.batch * g.narrow[0];
  double least = 0;
  const auto try_cut = [&](const Cut& cut) {
    if (!fits(g, shape, cut)) return;
    const int64_t down = divide_up(g.narrow[1], cut.vectors), along = divide_up(g.narrow[2], cut.width);
    const int64_t tasks =
        one_tap ? divide_up(pixels, VL * cut.vectors * cut.width) : divide_up(planes * down * along, VL);
    const int64_t parts = panel_groups * divide_up(panel_rows, cut.rows);
    const double total = static_cast<double>(divide_up(tasks * parts, threads)) * work(g, cut);
    if (least != 0 && total >= least) return;
    least = total;
    vectors = cut.vectors, width = cut.width, task_rows = cut.rows;
    tiles_down = down, tiles_along = along, pixel_tasks = tasks;
  };
  for (int64_t rows = panel_rows;; rows = round_up(divide_up(rows, 2), VL)) {
    for (int64_t v = 1; v <= MOST_VECTORS; v *= 2) {
      for (int64_t along = 1;; along += one_tap ? 1 : 1 + along / 4) {
        const int64_t w = one_tap ? std::max<int64_t>(MOST_POINTS - along + 1, 1) : divide_up(g.narrow[2], along);
        try_cut({v, w, rows});
        if (w == 1) break;
      }
    }
    if (rows <= LEAST_PART) break;
  }
}

void TablePlan::cut_rows(const Layer& layer) {
  const int64_t dense_bytes = 4 * layer.groups * layer.rows * layer.channels * layer.taps;
  const int64_t most = std::clamp(dense_bytes / 16, LEAST_PANEL_BYTES, MOST_PANEL_BYTES);
  const int64_t fit = std::max<int64_t>(VL, most / (4 * shape.quads) / VL * VL);
  panel_rows = divide_up(layer.rows, divide_up(layer.rows, fit));
  panel_groups = std::clamp<int64_t>(fit / layer.rows, 1, layer.groups);
  task_rows = panel_rows;
}

bool TablePlan::possible(const Geometry& g, const TableShape& shape) { return fits(g, shape, {1, 1, LEAST_PART}); }

bool TablePlan::fits(const Geometry& g, const TableShape& shape, const Cut& cut) {
  const int64_t lines = lines_under(g, cut.vectors), columns = columns_under(g, cut.width);
  if (cut.vectors > shape.vectors || (!has_one_tap(g) && columns > MOST_COLUMNS)) return false;
  const int64_t packed = std::min(shape.packed_channels(), TRIPLE_CHANNELS * shape.triples);
  return table_bytes(shape, cut) <= TABLE_BYTES && 4 * cut.rows * cut.width * cut.vectors * VL <= SUM_BYTES &&
         4 * packed * g.taps[0] * lines * columns * VL <= PACKED_BYTES;
}

int64_t TablePlan::table_bytes(const TableShape& shape, const Cut& cut) {
  return 4 * shape.chunk * shape.columns * places_of(shape.lines, shape.step, cut.vectors) * TABLE_FLOATS;
}

double TablePlan::work(const Geometry& g, const Cut& cut) const {
  const bool one_tap = has_one_tap(g);
  const int64_t stride = one_tap ? 1 : g.stride[2], sums = cut.rows * cut.vectors;
  const int64_t lines = places_of(shape.lines, shape.step, cut.vectors);
  const double entry = cut.vectors == 1 ? ALONE_COST : 1;
  const int64_t passes = static_cast<int64_t>(shape.passes.size());
  double total = TASK_COST;
  // Tables of one column of each pass, by the taps that share them.
  for (int64_t taps = 1; taps <= shape.columns; ++taps) {
    const int64_t columns = std::min(cut.width * taps, (cut.width - 1) * stride + (taps - 1) * g.dilation[2] + 1);
    total += static_cast<double>(columns * lines * shape.triples_by_columns[taps - 1]) * BUILD_COST;
  }
  const double entries = static_cast<double>(g.tap_count() * shape.triples) * entry;
  total += static_cast<double>(cut.width * sums) * (entries + static_cast<double>(passes) * SUM_COST);
  const int64_t inputs = shape.channels * g.taps[0] * lines_under(g, cut.vectors);
  if (one_tap) return total + static_cast<double>((inputs + sums) * cut.width) * POINT_COST;
  const int64_t turns = inputs * divide_up(columns_under(g, cut.width), VL) + sums * divide_up(cut.width, VL);
  return total + static_cast<double>(turns) * TURN_COST;
}

}  // namespace fk::FK_ISA_NS
#endif
