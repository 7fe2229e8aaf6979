// A layer as a product of a frozen weight. Every layer is a 3-d convolution here: missing spatial dimensions have size
// 1, and a linear layer is one tap whose pixels are the rows of its input.
#pragma once
#include <stdint.h>

#include <algorithm>

namespace fk {

enum { BATCH = 0, CHANNEL = 1, SPATIAL = 2 };  // places in Activations::stride

// Values of one side of a layer; strides in elements, of any sign, 0 included.
struct Activations {
  void* data;
  int dtype;
  int64_t stride[5];  // batch, channel, three spatial
};

// "Wide" is the side that the taps slide over (input of a convolution, output of a transposed one; channels make
// columns), "narrow" the other (channels make rows). For each spatial dimension
// wide pixel = narrow pixel * stride - padding + tap * dilation.
struct Geometry {
  int64_t batch, groups;
  int64_t wide[3], narrow[3], taps[3], stride[3], padding[3], dilation[3];

  int64_t tap_count() const { return taps[0] * taps[1] * taps[2]; }
};

// Of one channel of a padded input. Kernels multiply it by channels and bytes, in 64 bits.
constexpr int64_t MOST_POSITIONS = int64_t{1} << 31;

// Whether kernels can take a layer: its padded input has at most MOST_POSITIONS positions. A stride or a dilation
// beyond the padded input reaches one pixel alone, whatever its value: it becomes that size.
inline bool within_bounds(Geometry& g) {
  __int128 positions = 1;
  bool points = true;  // pixels that map one to one have no window, and may be any number
  for (int d = 0; d < 3; ++d) {
    const __int128 span = __int128{g.narrow[d] - 1} * g.stride[d] + __int128{g.taps[d] - 1} * g.dilation[d] + 1;
    const __int128 padded = __int128{g.wide[d]} + 2 * __int128{std::max<int64_t>(g.padding[d], 0)};
    const __int128 extent = std::max({span, padded, __int128{1}});
    const bool point = g.taps[d] == 1 && g.stride[d] == 1 && g.padding[d] == 0;
    if (!point && extent > MOST_POSITIONS) return false;
    points &= point;
    positions = std::min(positions * extent, __int128{INT64_MAX});
    g.stride[d] = static_cast<int64_t>(std::min<__int128>(g.stride[d], extent));
    g.dilation[d] = static_cast<int64_t>(std::min<__int128>(g.dilation[d], extent));
  }
  return points || positions <= MOST_POSITIONS;
}

// What becomes of a sum: relu(sum * scale * gain + bias), with one bias and one gain per channel of the result.
struct Epilogue {
  const void* bias;  // or null
  int bias_dtype;
  int64_t bias_stride;
  const float* gain;  // or null
  int64_t gain_stride;
  bool relu;  // as torch's: NaN stays NaN
};

}  // namespace fk
