// Which family serves a product, and its launch on a device.
#include <array>
#include <initializer_list>
#include <mutex>

#include "cuda/api.h"
#include "cuda/families.h"

namespace fk::cuda {

namespace {

constexpr const Family<Product>* PRODUCTS[] = {&BITS, &BYTES, &STORED};
constexpr const Family<Convolution>* CONVOLUTIONS[] = {&STEM, &CONVOLVE};

// The first family that serves a layer; else the reason of the last.
template <class Layer>
const Family<Layer>* first_of(std::initializer_list<const Family<Layer>*> families, const Layer& layer,
                              const char** reason) {
  *reason = nullptr;
  for (const Family<Layer>* family : families) {
    const char* const why = family->refuses(layer);
    if (!why) return family;
    *reason = why;
  }
  return nullptr;
}

// By code, dtype and pixels, never by residency: mask and planes give the same bits.
const Family<Product>* find(const Product& p, const char** reason) {
  if (p.code == STORED_CODE) return first_of({&STORED}, p, reason);
  if (p.code == UNIFORM_CODE || p.code == NORMAL_CODE) return first_of({&BYTES}, p, reason);
  // Digits decode signs with 0.8 to 1.0 instructions a weight, halves of a register with 1.4 to 1.7.
  return first_of({&BYTES, &BITS}, p, reason);
}
const Family<Convolution>* find(const Convolution& c, const char** reason) {
  return c.channels < 8 ? first_of({&STEM}, c, reason) : first_of({&CONVOLVE}, c, reason);
}

constexpr int MOST_DEVICES = 64;

#ifdef FK_EMULATED
Error describe(int, Device* device) {
  *device = {4, false};
  return nullptr;
}
#else
Error describe(int number, Device* device) {
  int count = 0, major = 0;
  cudaError_t error = cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, number);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, number);
  *device = {count, major >= 9};
  return words_of(error);
}
#endif

struct Prepared {
  std::mutex mutex;
  bool done = false;
  Device device = {};
};

// What the current device is. Once for each, all kernels are allowed their shared memory there; what fails is tried
// again by the next call.
Error prepare(int number, Device* device) {
  static std::array<Prepared, MOST_DEVICES> all;
  Prepared& one = all[number];
  const std::lock_guard<std::mutex> lock(one.mutex);
  if (!one.done) {
    Error error = describe(number, &one.device);
    const auto prepare_all = [&](const auto& families) {
      for (const auto* family : families) error = error ? error : family->prepare();
    };
    prepare_all(PRODUCTS);
    prepare_all(CONVOLUTIONS);
    if (error) return error;
    one.done = true;
  }
  *device = one.device;
  return nullptr;
}

template <class Layer>
Outcome run_family(const Layer& layer, int number, Stream stream) {
  const char* refused = nullptr;
  const Family<Layer>* const family = find(layer, &refused);
  if (!family) return {refused, nullptr};
  if (number < 0 || number >= MOST_DEVICES) return {nullptr, "more devices than are counted"};
  Device device;
  if (Error error = prepare(number, &device)) return {nullptr, error};
  return {nullptr, family->launch(layer, device, stream)};
}

}  // namespace

#ifdef FK_EMULATED
Status status() { return {0, 0, 1, nullptr}; }
#else
Status status() {
  Status found = {};
  cudaRuntimeGetVersion(&found.runtime);
  cudaDriverGetVersion(&found.driver);
  found.error = words_of(cudaGetDeviceCount(&found.devices));
  if (found.error) found.devices = 0;
  return found;
}
#endif

Outcome run(const Product& p, int device, void* stream) { return run_family(p, device, stream); }
Outcome run(const Convolution& c, int device, void* stream) { return run_family(c, device, stream); }

}  // namespace fk::cuda
