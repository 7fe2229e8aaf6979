#include "cuda/stem.h"
#include "cuda/families.h"

namespace fk::cuda {

Error launch_stem(const Convolution& c, const Device& device, Stream stream) {
  const Plan plan = plan_stem(c, device.multiprocessors);
  return with_stem(c, [&](auto* kernel) { return launch(kernel, plan, device, stream, c); });
}

Error prepare_stem() {
  Error first = nullptr;
  each_stem([&](auto* kernel) {
    if (Error error = allow_shared(kernel)) first = error;
  });
  return first;
}

}  // namespace fk::cuda
