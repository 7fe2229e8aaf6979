#include "cpu/conv/layer.h"

#include <vector>

namespace fk::FK_ISA_NS {

void merge_pixels(Geometry& g, Activations& a, Activations& b) {
  for (int d = 0; d < 3; ++d) {
    // An output padding leaves wide pixels that no narrow one reaches.
    if (g.taps[d] != 1 || g.stride[d] != 1 || g.padding[d] != 0 || g.wide[d] != g.narrow[d]) return;
  }
  constexpr int places[4] = {BATCH, SPATIAL, SPATIAL + 1, SPATIAL + 2};
  int64_t size[4] = {g.batch, g.narrow[0], g.narrow[1], g.narrow[2]};
  for (int outer = 2; outer >= 0; --outer) {
    // The nearest inner dimension of more than one pixel takes this one in.
    for (int inner = 3; inner > outer; --inner) {
      const int64_t n = size[inner];
      const bool empty = n == 1, joined = a.stride[places[outer]] == n * a.stride[places[inner]] &&
                                          b.stride[places[outer]] == n * b.stride[places[inner]];
      bool between = false;
      for (int d = outer + 1; d < inner; ++d) between |= size[d] != 1;
      if (between || !(empty || joined)) continue;
      if (empty) {
        a.stride[places[inner]] = a.stride[places[outer]];
        b.stride[places[inner]] = b.stride[places[outer]];
      }
      size[inner] = n * size[outer];
      size[outer] = 1;
      break;
    }
  }
  g.batch = size[0];
  for (int d = 0; d < 3; ++d) g.narrow[d] = g.wide[d] = size[d + 1];
}

float Result::bias_of(int64_t channel) const {
  if (!epilogue.bias) return 0.0f;
  float value = 0.0f;
  with_dtype(epilogue.bias_dtype, [&](auto dtype) {
    const auto* const bias = static_cast<const typename Element<dtype>::Type*>(epilogue.bias);
    value = load_one<dtype>(bias + channel * epilogue.bias_stride);
  });
  return value;
}

// Where one load does, no lane goes through memory: a vector load of lanes just stored waits for every store before
// them.
Finish Result::finish_of(int64_t channel, int64_t lanes) const {
  Finish finish{vf32::set(scale), vf32::zero(), epilogue.relu};
  alignas(64) float values[VL] = {};
  if (epilogue.gain && epilogue.gain_stride == 1 && lanes == VL) {
    finish.factor = finish.factor * vf32::load(epilogue.gain + channel);
  } else if (epilogue.gain) {
    for (int64_t i = 0; i < lanes; ++i) values[i] = factor_of(channel + i);
    finish.factor = vf32::load(values);
  }
  if (epilogue.bias && epilogue.bias_dtype == FLOAT32 && epilogue.bias_stride == 1 && lanes == VL) {
    finish.bias = vf32::load(static_cast<const float*>(epilogue.bias) + channel);
  } else if (epilogue.bias) {
    for (int64_t i = 0; i < lanes; ++i) values[i] = bias_of(channel + i);
    finish.bias = vf32::load(values);
  }
  return finish;
}

void Result::store_lanes(const float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                         int64_t count) const {
  const int64_t step = pixel_step();
  std::vector<int64_t> offsets(static_cast<size_t>(count));  // found once, not again for each channel
  for (int64_t i = 0; i < count; ++i) offsets[static_cast<size_t>(i)] = offset(runs[i]);
  with_dtype(side.dtype, [&](auto dtype) {
    auto* to = static_cast<typename Element<dtype>::Type*>(side.data) + channel * side.stride[CHANNEL];
    for (int64_t c = 0; c < channels; ++c, to += side.stride[CHANNEL], sums += ld) {
      const Finish finish = finish_of_all(channel + c);
      for (int64_t i = 0; i < count; ++i) {
        write<dtype>(sums + runs[i].lane, runs[i].count, to + offsets[static_cast<size_t>(i)], step, finish);
      }
    }
  });
}

void Result::store_channels(const float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                            int64_t count) const {
  const int64_t step = pixel_step(), next = side.stride[CHANNEL];
  with_dtype(side.dtype, [&](auto dtype) {
    auto* const base = static_cast<typename Element<dtype>::Type*>(side.data) + channel * next;
    for (int64_t c0 = 0; c0 < channels; c0 += VL) {
      const int64_t lanes = std::min<int64_t>(VL, channels - c0);
      const Finish finish = finish_of(channel + c0, lanes);
      for (int64_t i = 0; i < count; ++i) {
        auto* to = base + offset(runs[i]) + c0 * next;
        const float* from = sums + runs[i].lane * ld + c0;
        for (int64_t p = 0; p < runs[i].count; ++p, to += step, from += ld) {
          write<dtype>(from, lanes, to, next, finish);
        }
      }
    }
  });
}

}  // namespace fk::FK_ISA_NS
