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

// The family of kernels that serves a product; null with the reason where none does.
const char* family_of(const Product& p, const char** reason);
const char* family_of(const Convolution& c, const char** reason);

// Launches it on a stream of the current device, whose number is `device`. Null, or CUDA's words for what went wrong.
// Nothing is allocated or waited for.
const char* run(const Product& p, int device, void* stream);
const char* run(const Convolution& c, int device, void* stream);

}  // namespace fk::cuda
