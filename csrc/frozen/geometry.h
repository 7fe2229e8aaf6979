// A layer as a product of a frozen weight. Every layer is a 3-d convolution here: missing spatial dimensions have size
// 1, and a linear layer is one tap whose pixels are the rows of its input.
#pragma once
#include <stdint.h>

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
