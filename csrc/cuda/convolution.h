// A convolution of two spatial dimensions and one group, as kernels for few pixels take it.
#pragma once
#include "cuda/product.h"

namespace fk::cuda {

struct Convolution {
  Product weight;  // with the data of both sides; its pixels are those of y, its strides are not used
  int batch, channels;
  int wide[2], narrow[2], taps[2], stride[2], padding[2], dilation[2];  // height and width
  int64_t x_stride[4], y_stride[4];                                     // batch, channel, height and width, in elements
};

}  // namespace fk::cuda
