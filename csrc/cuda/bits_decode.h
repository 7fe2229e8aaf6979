// What the kernels of `bits.h` share: operands of several pixels, sums of warps, and results.
#pragma once
#include "cuda/halves.h"

namespace fk::cuda {

// Where the code has no signs the keep bits serve as those: all weights are negative, and so is the scale.
FK_DEVICE const uint32_t* sign_plane(const Product& p) { return p.code == SIGN_CODE ? p.sign : p.keep; }
FK_DEVICE float half_scale(const Product& p) {
  return read_seed(p.header).scale * (p.code == SIGN_CODE ? UNIT : -UNIT);
}

// Warps of a block that have registers, by the eights of columns that the operand x has.
constexpr int bits_warps(int eights) { return eights == 1 ? 16 : 8; }

// Three columns of the operand are the parts of one pixel of float32.
constexpr int PARTS = 3;
FK_DEVICE int parts_of(const Product& p) { return p.dtype == FLOAT32 ? PARTS : 1; }
FK_DEVICE int pixel_of(int column, int parts) { return parts == 1 ? column : column / PARTS; }

FK_DEVICE uint4 cut_eight(const float (&value)[8]) {
  return {cut_pair(value[0], value[1]), cut_pair(value[2], value[3]), cut_pair(value[4], value[5]),
          cut_pair(value[6], value[7])};
}

// Where the fragments of a block's sums hold a row of D and a column of its tile of 8, in floats: lane (row % 8, column
// / 2) has both columns of row % 8, then those of row + 8.
FK_DEVICE int place_of(int row, int column) { return ((row & 7) * 4 + column / 2) * 4 + (row >> 3) * 2 + (column & 1); }

// One result from the sums of a block's warps, in order of the warps; of each the smallest part first. `sums` are those
// of a fragment of the first warp, `eight` floats before the fragment of the next eight columns.
FK_DEVICE float sum_of_warps(const float* sums, int warps, int warp_floats, int eight, int row, int column, int parts) {
  float total = 0.0f;
  for (int warp = 0; warp < warps; ++warp) {
    for (int part = parts - 1; part >= 0; --part) {
      const int at = column + part;
      total += sums[warp * warp_floats + (at >> 3) * eight + place_of(row, at & 7)];
    }
  }
  return total;
}

FK_DEVICE void write_result(const Product& p, int pixel, int channel, float sum) {
  write_element(p.y, p.dtype, pixel * p.y_stride + channel,
                finished(sum, p.gain, p.bias, p.bias_dtype, p.relu, channel));
}

}  // namespace fk::cuda
