// How a layer is cut for the pixel tables: panels of rows, tasks of rows and pixels.
#pragma once
#include "cpu/pixel_tables/shape.h"

namespace fk::FK_ISA_NS {

// The result's pixels are cut into tiles of `vectors` lines by `width` pixels; a task takes VL tiles, one in each lane.
// With one tap a task takes `vectors` lines of `width` vectors of pixels.
struct TablePlan {
  TableShape shape;
  int64_t vectors = 1, width = 1;
  int64_t tiles_down = 1, tiles_along = 1, planes = 1;
  int64_t pixel_tasks = 1;
  int64_t panel_groups, panel_rows, task_rows;  // groups of a panel: one, where it holds a part of their rows

  TablePlan(const Geometry& g, const Layer& layer, int64_t pixels, int threads);

  // Whether there is a cut whose tables and inputs fit.
  static bool possible(const Geometry& g, const TableShape& shape);

  int64_t window_lines(const Geometry& g) const { return lines_under(g, vectors); }
  int64_t window_columns(const Geometry& g) const { return columns_under(g, width); }

 private:
  struct Cut;
  static int64_t lines_under(const Geometry& g, int64_t vectors) {
    return has_one_tap(g) ? vectors : (vectors - 1) * g.stride[1] + (g.taps[1] - 1) * g.dilation[1] + 1;
  }
  static int64_t columns_under(const Geometry& g, int64_t width) {
    return has_one_tap(g) ? width : (width - 1) * g.stride[2] + (g.taps[2] - 1) * g.dilation[2] + 1;
  }
  void cut_rows(const Layer& layer);
  static bool fits(const Geometry& g, const TableShape& shape, const Cut& cut);
  static int64_t table_bytes(const TableShape& shape, const Cut& cut);
  double work(const Geometry& g, const Cut& cut) const;
};

constexpr int64_t MOST_COLUMNS = 64;  // of a window under tiles

}  // namespace fk::FK_ISA_NS
