// How much of its input a block of a convolution stages: with a vast dilation nearly all of it is padding.
#pragma once
#include "frozen/geometry.h"

namespace fk {

// Whether the input under a block that reads `lines` x `columns` pixels at its first tap has at most `most` pixels.
inline bool window_fits(const Geometry& g, int64_t lines, int64_t columns, int64_t most) {
  lines += (g.taps[1] - 1) * g.dilation[1];
  columns += (g.taps[2] - 1) * g.dilation[2];
  return columns <= most && lines * columns <= most && g.taps[0] * lines * columns <= most;
}

}  // namespace fk
