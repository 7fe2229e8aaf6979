// What the binding calls. It includes no CUDA header, so any C++ compiler builds the binding.
#pragma once
#include "cuda/product.h"

namespace fk::cuda {

struct Convolution;

struct Status {
  int runtime, driver, devices;  // versions as CUDA counts them, 12040 for 12.4; driver 0: there is none
  const char* error;             // CUDA's words where no device can be used, or null
};
Status status();

// Of a launch: why no kernel serves the layer, or CUDA's words for what went wrong; null otherwise.
struct Outcome {
  const char *refused, *error;
};
// Launches a layer's kernel on a stream of the current device, whose number is `device`. Nothing is allocated or waited
// for.
Outcome run(const Product& p, int device, void* stream);
Outcome run(const Convolution& c, int device, void* stream);

}  // namespace fk::cuda
