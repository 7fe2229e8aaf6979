#include "cuda/bits.h"

#include "cuda/families.h"
#include "cuda/launch.h"

namespace fk::cuda {

cudaError_t launch_bits(const Product& p, int multiprocessors, cudaStream_t stream) {
  const Plan plan = plan_bits(p, multiprocessors);
  return with_bits(p, [&](auto kernel) { return launch(kernel, plan, stream, p, plan.tiles); });
}

cudaError_t prepare_bits() {
  cudaError_t error = cudaSuccess;
  each_bits([&](auto kernel) { error = error ? error : allow_shared(kernel); });
  return error;
}

}  // namespace fk::cuda
