// The inputs of a layer of few pixels, gathered as floats, and what their range allows.
#pragma once
#include <cmath>
#include <vector>

#include "cpu/conv/layer.h"

namespace fk::FK_LEVEL_NS {

// x[pixel][column] with zeros for padding, and past the last column up to a multiple of 512.
struct VectorInput {
  int64_t pixels, ld;
  int dtype;
  std::vector<float> x;

  VectorInput(const Frozen& f, const Geometry& g, const Activations& wide, const Grid& grid, const Run* runs,
              int64_t run_count)
      : pixels(grid.pixels()), ld(round_up(f.cols, 512)), dtype(wide.dtype), x(static_cast<size_t>(pixels * ld)) {
    const Layer layer(f, g);
    const int64_t next = wide.stride[CHANNEL], step = grid.step[2] * wide.stride[SPATIAL + 2];
    std::vector<Span> spans(static_cast<size_t>(pixels));
    for (int64_t tap = 0; tap < layer.taps; ++tap) {
      const int64_t count = find_spans(grid, wide, narrow_shift(g, tap), runs, run_count, spans.data());
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t p = 0; p < spans[i].count; ++p) {
          with_dtype(wide.dtype, [&](auto dtype) {
            const auto* const from =
                static_cast<const typename Element<dtype>::Type*>(wide.data) + spans[i].offset + p * step;
            read<dtype>(from, next, layer.channels, x.data() + (spans[i].lane + p) * ld + tap * layer.channels);
          });
        }
      }
    }
  }

  const float* of(int64_t pixel) const { return x.data() + pixel * ld; }

  // Bits of the largest magnitude of a pixel.
  uint32_t largest(int64_t pixel) const {
    const float* const from = of(pixel);
    vu32 most = vu32::set(0);
    for (int64_t i = 0; i < ld; i += VL) {
      const vu32 bits = vu32::load(from + i) & vu32::set(0x7FFFFFFFu);
      most = select(greater(bits, most), bits, most);
    }
    uint32_t lane[VL], all = 0;
    most.store(lane);
    for (const uint32_t bits : lane) all = std::max(all, bits);
    return all;
  }

  // Inputs of a pixel that are not 0 and of lesser magnitude than `bits`.
  int64_t count_below(int64_t pixel, uint32_t bits) const {
    const float* const from = of(pixel);
    int64_t count = 0;
    for (int64_t i = 0; i < ld; i += VL) {
      const vu32 magnitude = vu32::load(from + i) & vu32::set(0x7FFFFFFFu);
      count +=
          __builtin_popcount(to_bits(greater(vu32::set(bits), magnitude)) & ~to_bits(equal(magnitude, vu32::set(0))));
    }
    return count;
  }
};

// Whether fixed point keeps what the inputs say: all finite, and in each pixel at most a quarter of the columns are
// inputs that are 2^lost times smaller than the largest, or more.
inline bool in_common_range(const VectorInput& input, int64_t cols, int lost) {
  for (int64_t p = 0; p < input.pixels; ++p) {
    const uint32_t largest = input.largest(p), step = static_cast<uint32_t>(lost) << 23;
    if (largest >= 0x7F800000u) return false;
    if (largest > step && 4 * input.count_below(p, largest - step) > cols) return false;
  }
  return true;
}

}  // namespace fk::FK_LEVEL_NS
