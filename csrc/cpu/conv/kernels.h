// The three products of a frozen weight that layers are made of.
#pragma once
#include "cpu/core/isa.h"
#include "frozen/geometry.h"
#include "frozen/weight.h"

namespace fk {

struct GemmKernels {
  // narrow = epilogue of W wide
  void (*convolve)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                   const Epilogue& epilogue, int threads);
  // wide = epilogue of W^T narrow
  void (*convolve_transposed)(const Frozen& f, const Geometry& g, const Activations& narrow, const Activations& wide,
                              const Epilogue& epilogue, int threads);
  // out[i] = sign(scores[i]) * (narrow wide^T)[free weight i] * code * scale
  void (*score_gradient)(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                         const void* scores, void* out, int scores_dtype, int threads);
};

}  // namespace fk

FK_KERNEL_TABLE(fk::GemmKernels, gemm_kernels)
