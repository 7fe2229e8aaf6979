// wide = W^T narrow as convolutions of the narrow side: rows and channels exchanged, taps in reverse. Wide pixels that
// are equal modulo the strides are reached by the same taps, and have a convolution of their own.
#pragma once
#include <vector>

#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

struct Flipped {
  Geometry g;
  Activations result;
  std::vector<int64_t> taps;  // of the weight, in the order of the convolution

  // Of the wide pixels from `at` on. No taps where none reaches them.
  Flipped(const Call& c, const Position& at) : g(c.g), result(c.wide) {
    std::vector<int64_t> reach[3];
    int64_t offset = 0;
    for (int d = 0; d < 3; ++d) {
      const int64_t stride = c.g.stride[d], dilation = c.g.dilation[d], start = at.x[d] + c.g.padding[d];
      for (int64_t tap = c.g.taps[d] - 1; tap >= 0; --tap) {
        if ((start - tap * dilation) % stride == 0) reach[d].push_back(tap);
      }
      if (reach[d].empty()) return;
      g.taps[d] = static_cast<int64_t>(reach[d].size());
      g.dilation[d] = g.taps[d] > 1 ? (reach[d][0] - reach[d][1]) * dilation / stride : 1;
      g.padding[d] = (reach[d][0] * dilation - start) / stride;
      g.stride[d] = 1;
      g.wide[d] = c.g.narrow[d];
      g.narrow[d] = divide_up(c.g.wide[d] - at.x[d], stride);
      offset += at.x[d] * c.wide.stride[SPATIAL + d];
      result.stride[SPATIAL + d] *= stride;
    }
    result.data = static_cast<char*>(c.wide.data) + offset * (c.wide.dtype == FLOAT32 ? 4 : 2);
    for (const int64_t a : reach[0]) {
      for (const int64_t b : reach[1]) {
        for (const int64_t k : reach[2]) taps.push_back((a * c.g.taps[1] + b) * c.g.taps[2] + k);
      }
    }
  }

  Call call(const Call& c, const Frozen& turned) const {
    return {turned, g, c.narrow, result, c.epilogue, c.threads, Layer(turned, g), narrow_grid(g).pixels()};
  }
};

inline std::vector<Flipped> flipped(const Call& c) {
  std::vector<Flipped> all;
  const auto end = [&](int d) { return std::min(c.g.stride[d], c.g.wide[d]); };
  Position at;
  for (at.x[0] = 0; at.x[0] < end(0); ++at.x[0]) {
    for (at.x[1] = 0; at.x[1] < end(1); ++at.x[1]) {
      for (at.x[2] = 0; at.x[2] < end(2); ++at.x[2]) all.emplace_back(c, at);
    }
  }
  return all;
}

}  // namespace fk::FK_ISA_NS
