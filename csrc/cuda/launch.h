// Launching a kernel of a family on a stream. For nvcc alone.
#pragma once
#include <cuda_runtime.h>

#include "cuda/product.h"

namespace fk::cuda {

// The kernel may begin while the one before it still runs: it waits where it reads that one's results (device.h).
template <class... Parameters, class... Arguments>
cudaError_t launch(void (*kernel)(Parameters...), const Plan& plan, cudaStream_t stream,
                   const Arguments&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.blocks[0], plan.blocks[1]);
  config.blockDim = dim3(plan.threads);
  config.dynamicSmemBytes = plan.shared;
  config.stream = stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

// Once for each kernel and device, before a launch of it is captured: blocks may have all shared memory there is.
template <class Kernel>
cudaError_t allow_shared(Kernel* kernel) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                              SHARED_LIMIT);
}

}  // namespace fk::cuda
