// The families of kernels: what the file of each defines.
#pragma once
#include "cuda/convolution.h"
#include "cuda/launch.h"

namespace fk::cuda {

#define FK_FAMILY(name, Layer)                                                  \
  const char* name##_refuses(const Layer& layer);                               \
  Error launch_##name(const Layer& layer, const Device& device, Stream stream); \
  Error prepare_##name();
FK_FAMILY(bits, Product)
FK_FAMILY(bytes, Product)
FK_FAMILY(stored, Product)
FK_FAMILY(convolve, Convolution)
FK_FAMILY(stem, Convolution)
#undef FK_FAMILY

}  // namespace fk::cuda
