// The three products of a frozen weight that layers are made of. Every layer is a 3-d convolution here: missing spatial
// dimensions have size 1, and a linear layer is one tap whose pixels are the rows of its input.
#pragma once
#include <stdint.h>

#include "frozen.h"
#include "isa.h"

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

struct GemmKernels {
  // narrow = epilogue of W wide
  void (*convolve)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                   const Epilogue& epilogue, int threads);
  // wide = epilogue of W^T narrow
  void (*convolve_transposed)(const Frozen& f, const Geometry& g, const Activations& narrow, const Activations& wide,
                              const Epilogue& epilogue, int threads);
  // out[i] = sign(scores[i]) * (narrow wide^T)[free weight i] * code * scale
  void (*score_gradient)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                         const void* scores, void* out, int scores_dtype, int threads);
};

}  // namespace fk

FK_KERNEL_TABLE(fk::GemmKernels, gemm_kernels)
