// The families of kernels, each defined by the file of its name.
#pragma once
#include "cuda/convolution.h"
#include "cuda/launch.h"

namespace fk::cuda {

template <class Layer>
struct Family {
  const char* (*refuses)(const Layer&);  // why not, or null
  Error (*launch)(const Layer&, const Device&, Stream);
  Error (*prepare)();
};

extern const Family<Product> BITS, BYTES, STORED;
extern const Family<Convolution> CONVOLVE, STEM;

inline Error launch_instance(void (*kernel)(Product, int), const Product& p, const Plan& plan, const Device& device,
                             Stream stream) {
  return launch(kernel, plan, device, stream, p, plan.tiles);
}
inline Error launch_instance(void (*kernel)(Convolution), const Convolution& c, const Plan& plan, const Device& device,
                             Stream stream) {
  return launch(kernel, plan, device, stream, c);
}

// Of the functions that the family's header holds.
#define FK_DEFINE_FAMILY(FAMILY, Layer, name)                                                                      \
  namespace fk::cuda {                                                                                             \
  static Error launch_##name(const Layer& layer, const Device& device, Stream stream) {                            \
    const Plan plan = plan_##name(layer, device.multiprocessors);                                                  \
    return with_##name(layer, [&](auto* kernel) { return launch_instance(kernel, layer, plan, device, stream); }); \
  }                                                                                                                \
  static Error prepare_##name() {                                                                                  \
    Error error = nullptr;                                                                                         \
    each_##name([&](auto* kernel) { error = error ? error : allow_shared(kernel); });                              \
    return error;                                                                                                  \
  }                                                                                                                \
  const Family<Layer> FAMILY = {name##_refuses, launch_##name, prepare_##name};                                    \
  }

}  // namespace fk::cuda
