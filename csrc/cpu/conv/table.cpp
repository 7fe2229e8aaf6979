#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

const GemmKernels gemm_kernels = {convolve, convolve_transposed, score_gradient};

}  // namespace fk::FK_ISA_NS
