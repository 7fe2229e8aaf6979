// What libfrozen needs of one instruction set beside products (csrc/cpu/conv/kernels.h); meanings in
// csrc/cpu/format/kernels.h.
#pragma once
#include "cpu/core/isa.h"
#include "frozen/weight.h"

namespace fk {

struct LibraryKernels {
  void (*offsets)(const Frozen&, int64_t* out, int threads);
  void (*keep_plane)(const Frozen&, uint32_t* out, int threads);
  void (*sign_plane)(const Frozen&, uint32_t* out, int threads);
  void (*byte_plane)(const Frozen&, uint8_t* out, int threads);
  void (*embedding)(const Frozen&, const int64_t* indices, int64_t count, int64_t padding_idx, DType dtype, void* out,
                    int threads);
};

}  // namespace fk
