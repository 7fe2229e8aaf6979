#include "cuda/convolve.h"
#include "cuda/families.h"

namespace fk::cuda {

Error launch_convolve(const Convolution& c, const Device& device, Stream stream) {
  const Plan plan = plan_convolve(c, device.multiprocessors);
  return with_convolve(c, [&](auto* kernel) { return launch(kernel, plan, device, stream, c); });
}

Error prepare_convolve() {
  Error first = nullptr;
  each_convolve([&](auto* kernel) {
    if (Error error = allow_shared(kernel)) first = error;
  });
  return first;
}

}  // namespace fk::cuda
