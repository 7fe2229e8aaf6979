// Launching the kernels of a family: by CUDA's runtime, or on the emulator of tests/cuda.
#pragma once
#include "cuda/product.h"

#ifndef FK_EMULATED
#include <cuda_runtime.h>
#endif

namespace fk::cuda {

using Stream = void*;       // a cudaStream_t
using Error = const char*;  // CUDA's words for what went wrong, or null

struct Device {
  int multiprocessors;
  bool overlaps;  // has programmatic dependent launch: sm_90 and later
};

#ifdef FK_EMULATED

template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), const Plan& plan, const Device&, Stream, const Arguments&... arguments) {
  emulator::launch(dim3(plan.blocks[0], plan.blocks[1]), dim3(plan.threads), plan.shared,
                   [&] { kernel(arguments...); });
  return nullptr;
}
template <class Kernel>
Error allow_shared(Kernel*) {
  return nullptr;
}

#else

// The words for an error, and none left behind for torch to find.
inline Error words_of(cudaError_t error) {
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();
  return cudaGetErrorString(error);
}

// The kernel may begin while the one before it still runs: it waits where it reads that one's results (device.h).
template <class... Parameters, class... Arguments>
Error launch(void (*kernel)(Parameters...), const Plan& plan, const Device& device, Stream stream,
             const Arguments&... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(plan.blocks[0], plan.blocks[1]);
  config.blockDim = dim3(plan.threads);
  config.dynamicSmemBytes = plan.shared;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = &overlap;
  config.numAttrs = device.overlaps ? 1 : 0;
  return words_of(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

// Once for each kernel and device, before a launch of it is captured: blocks may have all shared memory there is.
template <class Kernel>
Error allow_shared(Kernel* kernel) {
  return words_of(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                       cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED_LIMIT));
}

#endif

}  // namespace fk::cuda
