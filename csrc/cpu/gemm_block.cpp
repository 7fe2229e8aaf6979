#include "gemm_block.h"

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
  if (!bias.data) return 0.0f;
  float value = 0.0f;
  with_dtype(bias.dtype, [&](auto dtype) {
    value = load_one<dtype>(static_cast<const typename Element<dtype>::Type*>(bias.data) + channel * bias.stride);
  });
  return value;
}

void Result::store_lanes(float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                         int64_t count) const {
  const int64_t step = grid.step[2] * side.stride[SPATIAL + 2];
  const int64_t lanes = count ? runs[count - 1].lane + runs[count - 1].count : 0;
  with_dtype(side.dtype, [&](auto dtype) {
    auto* to = static_cast<typename Element<dtype>::Type*>(side.data) + channel * side.stride[CHANNEL];
    for (int64_t c = 0; c < channels; ++c, to += side.stride[CHANNEL], sums += ld) {
      const vf32 add = vf32::set(bias_of(channel + c)), by = vf32::set(scale);
      for (int64_t i = 0; i < lanes; i += VL) (vf32::load(sums + i) * by + add).store(sums + i);
      for (int64_t i = 0; i < count; ++i) {
        write<dtype>(sums + runs[i].lane, runs[i].count, to + offset(runs[i]), step);
      }
    }
  });
}

void Result::store_channels(float* sums, int64_t ld, int64_t channel, int64_t channels, const Run* runs,
                            int64_t count) const {
  const int64_t step = grid.step[2] * side.stride[SPATIAL + 2];
  const vf32 by = vf32::set(scale);
  with_dtype(side.dtype, [&](auto dtype) {
    auto* const base = static_cast<typename Element<dtype>::Type*>(side.data) + channel * side.stride[CHANNEL];
    // A block of channels at a time, so that their biases stay in registers.
    constexpr int64_t BLOCK = 4 * VL;
    for (int64_t c0 = 0; c0 < channels; c0 += BLOCK) {
      const int64_t block = std::min(BLOCK, channels - c0);
      alignas(64) float add[BLOCK];
      for (int64_t i = 0; i < BLOCK; ++i) add[i] = i < block ? bias_of(channel + c0 + i) : 0.0f;
      for (int64_t i = 0; i < count; ++i) {
        auto* to = base + offset(runs[i]) + c0 * side.stride[CHANNEL];
        float* from = sums + runs[i].lane * ld + c0;
        for (int64_t p = 0; p < runs[i].count; ++p, to += step, from += ld) {
          if (block == BLOCK && side.stride[CHANNEL] == 1) {
            for (int64_t j = 0; j < BLOCK; j += VL) {
              store_vector<dtype>(to + j, vf32::load(from + j) * by + vf32::load(add + j));
            }
          } else {
            for (int64_t j = 0; j < block; j += VL) {
              (vf32::load(from + j) * by + vf32::load(add + j)).store(from + j);
            }
            write<dtype>(from, block, to, side.stride[CHANNEL]);
          }
        }
      }
    }
  });
}

}  // namespace fk::FK_ISA_NS
