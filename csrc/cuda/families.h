// The kernel families, each launched and prepared in its own file. For nvcc alone.
#pragma once
#include <cuda_runtime.h>

#include "cuda/product.h"

namespace fk::cuda {

cudaError_t launch_bits(const Product& p, int multiprocessors, cudaStream_t stream);
cudaError_t prepare_bits();

}  // namespace fk::cuda
