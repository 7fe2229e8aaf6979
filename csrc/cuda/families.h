// The families of kernels. `prepare`: once for each device, before a launch is captured.
#pragma once
#include <cuda_runtime.h>

#include "cuda/product.h"

namespace fk::cuda {

cudaError_t launch_stored(const Product& p, int multiprocessors, cudaStream_t stream);
cudaError_t prepare_stored();

}  // namespace fk::cuda
