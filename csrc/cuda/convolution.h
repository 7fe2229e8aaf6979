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

// Offsets of inputs and of words are 32-bit numbers in kernels.
constexpr int64_t MOST_OFFSET = (int64_t{1} << 29) - 1;

constexpr int64_t size_of_input(const Convolution& c, int dimension) {
  return dimension == 0 ? c.batch : dimension == 1 ? c.channels : c.wide[dimension - 2];
}
constexpr int64_t size_of_result(const Convolution& c, int dimension) {
  return dimension == 0 ? c.batch : dimension == 1 ? c.weight.rows : c.narrow[dimension - 2];
}

// Elements from the first of x or y to the last.
constexpr int64_t reach_of_input(const Convolution& c) {
  int64_t reach = 0;
  for (int i = 0; i < 4; ++i) reach += (size_of_input(c, i) - 1) * c.x_stride[i];
  return reach;
}
constexpr int64_t reach_of_result(const Convolution& c) {
  int64_t reach = 0;
  for (int i = 0; i < 4; ++i) reach += (size_of_result(c, i) - 1) * c.y_stride[i];
  return reach;
}

// Whether offsets of 32 bits reach every element and word, and a grid every row.
constexpr bool is_within_reach(const Convolution& c) {
  for (int i = 0; i < 2; ++i) {
    if (c.stride[i] > 1 << 24 || c.padding[i] > 1 << 24 || c.dilation[i] > 1 << 24) return false;
  }
  return reach_of_input(c) <= MOST_OFFSET && reach_of_result(c) <= MOST_OFFSET &&
         int64_t{c.weight.rows} * c.weight.words <= MOST_OFFSET && c.weight.rows <= 1 << 20;
}

// Whether eight channels, or four of float32, can be one load wherever they begin at a multiple of that.
inline bool reads_aligned(const Convolution& c) {
  const int step = c.weight.dtype == FLOAT32 ? 4 : 8;
  for (int i = 0; i < 4; ++i) {
    if (i != 1 && size_of_input(c, i) > 1 && c.x_stride[i] % step) return false;
  }
  return reinterpret_cast<uintptr_t>(c.weight.x) % 16 == 0;
}

// Elements from a pixel of y to the next, where they lie evenly.
FK_HD int64_t pixel_stride(const Convolution& c) {
  return c.narrow[1] > 1 ? c.y_stride[3] : c.narrow[0] > 1 ? c.y_stride[2] : c.y_stride[0];
}
inline bool lies_evenly(const Convolution& c) {
  int64_t expected = pixel_stride(c);
  for (int i = 3; i >= 0; --i) {
    if (i == 1) continue;
    if (size_of_result(c, i) > 1 && c.y_stride[i] != expected) return false;
    expected *= size_of_result(c, i);
  }
  return true;
}

}  // namespace fk::cuda
