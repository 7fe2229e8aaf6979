// The three products of a frozen weight that layers are made of.
#pragma once
#include <vector>

#include "cpu/core/isa.h"
#include "frozen/geometry.h"
#include "frozen/weight.h"

namespace fk {

enum Operation { CONVOLVE = 0, CONVOLVE_TRANSPOSED = 1, SCORE_GRADIENT = 2 };
constexpr const char* OPERATION_NAMES[] = {"convolve", "convolve_transposed", "score_gradient"};

struct KernelInfo {
  const char *name, *serves;  // the second in words
};

struct ConvKernels {
  // narrow = epilogue of W wide
  void (*convolve)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                   const Epilogue& epilogue, int threads);
  // wide = epilogue of W^T narrow
  void (*convolve_transposed)(const Frozen& f, const Geometry& g, const Activations& narrow, const Activations& wide,
                              const Epilogue& epilogue, int threads);
  // out[i] = sign(scores[i]) * (narrow wide^T)[free weight i] * code * scale
  void (*score_gradient)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                         const void* scores, void* out, int scores_dtype, int threads);

  // The kernels of an operation in the order they are asked.
  std::vector<KernelInfo> (*list)(Operation operation);
  // The name of the first that serves a layer whose sides have these dtypes and strides; no data is read.
  const char* (*choose)(Operation operation, const Frozen& f, const Geometry& g, const Activations& wide,
                        const Activations& narrow);
};

}  // namespace fk
