#include "cpu/format/ops.h"

namespace fk::FK_TABLE_NS {

extern const FormatKernels format_kernels;
const FormatKernels format_kernels = {
    codes,
    draws,
    partition,
    uniform_scores,
    histogram,
    partition_counts,
    offsets,
    free_draws,
    keep_plane,
    pack_plane,
    sign_plane,
    byte_plane,
    count_free,
    pack,
    unpack,
    planes,
    popcount,
    select,
    pack_above,
    weight,
    weight_grad_scores,
    embedding,
    embedding_grad_scores,
    swap,
    flip,
    plane_offsets,
    pack_values,
    stored_weight,
    packed_weight,
    stored_grad_scores,
};

}  // namespace fk::FK_TABLE_NS
