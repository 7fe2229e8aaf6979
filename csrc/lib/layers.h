// Products and look-ups of an open ticket's weights, with every argument checked.
#pragma once
#include "lib/weights.h"

namespace fk::lib {

// Gain and bias of a layer with so many outputs, float32 or null.
struct Ends {
  const float *gain, *bias;
  bool relu;
};

void run_linear(const Weight& weight, const float* x, int64_t batch, float* y, const Ends& ends, int threads);

// Sizes of a convolution's result, conv.dims + 2 numbers; Error FROZEN_ARGUMENT for what is no layer of this weight.
std::vector<int64_t> result_shape(const Weight& weight, const frozen_conv& conv, const int64_t* x_shape);
void run_convolution(const Weight& weight, const frozen_conv& conv, const float* x, const int64_t* x_shape, float* y,
                     const std::vector<int64_t>& y_shape, const Ends& ends, int threads);

void run_embedding(const Weight& weight, const int64_t* indices, int64_t count, int64_t padding, float* y, int threads);

}  // namespace fk::lib
