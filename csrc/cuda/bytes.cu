#include "cuda/bytes.h"

#include "cuda/families.h"
#include "cuda/launch.h"

namespace fk::cuda {

cudaError_t launch_bytes(const Product& p, int multiprocessors, cudaStream_t stream) {
  const Plan plan = plan_bytes(p, multiprocessors);
  return with_bytes(p, [&](auto* kernel) { return launch(kernel, plan, stream, p, plan.tiles); });
}

cudaError_t prepare_bytes() {
  cudaError_t error = cudaSuccess;
  each_bytes([&](auto* kernel) {
    if (error == cudaSuccess) error = allow_shared(kernel);
  });
  return error;
}

}  // namespace fk::cuda
