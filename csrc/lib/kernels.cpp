#include "lib/kernels.h"

#include "cpu/format/ops.h"

namespace fk::FK_TABLE_NS {

extern const LibraryKernels library_kernels;
const LibraryKernels library_kernels = {offsets, keep_plane, sign_plane, byte_plane, embedding};

}  // namespace fk::FK_TABLE_NS
