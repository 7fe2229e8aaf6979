#include "cuda/stored.h"

#include "cuda/families.h"
#include "cuda/launch.h"

namespace fk::cuda {

cudaError_t launch_stored(const Product& p, int multiprocessors, cudaStream_t stream) {
  const Plan plan = plan_stored(p, multiprocessors);
  return with_stored(p, [&](auto* kernel) { return launch(kernel, plan, stream, p, plan.tiles); });
}

cudaError_t prepare_stored() {
  cudaError_t error = cudaSuccess;
  each_stored([&](auto* kernel) {
    if (error == cudaSuccess) error = allow_shared(kernel);
  });
  return error;
}

}  // namespace fk::cuda
