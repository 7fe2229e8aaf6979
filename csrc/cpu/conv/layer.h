// What the products share: sizes of a layer, its blocks, and the way a block of sums becomes a result.
#pragma once
#include "cpu/conv/pixels.h"

namespace fk::FK_ISA_NS {

constexpr int64_t BLOCK_FLOATS = 1 << 15;  // sums held by a task

struct Layer {
  int64_t groups, rows, channels, taps;  // rows and wide channels of one group

  Layer(const Frozen& f, const Geometry& g)
      : groups(g.groups), rows(f.rows / g.groups), channels(f.cols / g.tap_count()), taps(g.tap_count()) {}
};

inline Position tap_position(const Geometry& g, int64_t tap) {
  return {{tap / (g.taps[1] * g.taps[2]), tap / g.taps[2] % g.taps[1], tap % g.taps[2]}};
}

// Where pixels map one to one, dimensions that are contiguous on both sides become one: longer runs.
void merge_pixels(Geometry& g, Activations& a, Activations& b);

// Narrow pixels of a convolution, reading the wide side.
inline Grid narrow_grid(const Geometry& g) {
  Grid grid{};
  grid.batch = g.batch;
  for (int d = 0; d < 3; ++d) {
    grid.size[d] = g.narrow[d];
    grid.step[d] = g.stride[d];
    grid.limit[d] = g.wide[d];
  }
  return grid;
}
inline Position narrow_shift(const Geometry& g, int64_t tap) {
  Position p = tap_position(g, tap);
  for (int d = 0; d < 3; ++d) p.x[d] = p.x[d] * g.dilation[d] - g.padding[d];
  return p;
}

// The epilogue of `channels` channels of a result from `channel` on; then the whole block of sums is stored.
struct Result {
  const Activations& side;
  float scale;
  const Epilogue& epilogue;
  Grid grid;  // result pixel = q * step + shift, all inside
  Position shift;

  // Sums [channel][pixel].
  void store_lanes(const float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                   int64_t count) const;
  // Sums [pixel][channel].
  void store_channels(const float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                      int64_t count) const;

  // For kernels that store results themselves: the epilogue of `lanes` <= VL channels, of one for all lanes, and where
  // a run begins.
  Finish finish_of(int64_t channel, int64_t lanes) const;
  Finish finish_of_all(int64_t channel) const {
    return {vf32::set(factor_of(channel)), vf32::set(bias_of(channel)), epilogue.relu};
  }
  void* place(const Run& run, int64_t channel) const {
    const int64_t bytes = side.dtype == FLOAT32 ? 4 : 2;
    return static_cast<char*>(side.data) + (offset(run) + channel * side.stride[CHANNEL]) * bytes;
  }
  int64_t pixel_step() const { return grid.step[2] * side.stride[SPATIAL + 2]; }  // from pixel to pixel of a run
  int64_t offset(const Run& run) const {                                          // in elements
    int64_t at = run.batch * side.stride[BATCH];
    for (int d = 0; d < 3; ++d) at += (run.q.x[d] * grid.step[d] + shift.x[d]) * side.stride[SPATIAL + d];
    return at;
  }

 private:
  float bias_of(int64_t channel) const;
  float factor_of(int64_t channel) const {
    return epilogue.gain ? scale * epilogue.gain[channel * epilogue.gain_stride] : scale;
  }
};

// A product that a kernel is asked for, its pixels merged where they can be.
struct Call {
  const Frozen& f;
  const Geometry& g;
  const Activations &wide, &narrow;
  const Epilogue& epilogue;
  const int threads;
  const Layer layer;
  const int64_t pixels;  // of the result
};

// What becomes of the sums of narrow = W wide.
inline Result narrow_result(const Call& c) {
  Grid grid = narrow_grid(c.g);
  for (int d = 0; d < 3; ++d) grid.step[d] = 1;
  return {c.narrow, c.f.scale, c.epilogue, grid, Position{}};
}

// Pixels of a task: few enough to keep every thread busy, many enough to pay for decoding the codes.
inline int64_t pixels_per_task(int64_t pixels, int64_t channels, int64_t other_tasks, int threads, bool seed) {
  int64_t block = std::max<int64_t>(64, (seed ? 2 : 1) * BLOCK_FLOATS / channels / 64 * 64);
  block = std::min<int64_t>(block, 512);
  while (block > 64 && other_tasks * ((pixels + block - 1) / block) < 4 * threads) block -= 64;
  const int64_t blocks = (pixels + block - 1) / block;
  return round_up((pixels + blocks - 1) / std::max<int64_t>(blocks, 1), TILE_LANES);
}

}  // namespace fk::FK_ISA_NS
