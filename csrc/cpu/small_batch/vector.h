// Layers of one to four result pixels: batch 1. Each weight is used once or little more, so what counts is how many
// instructions turn stored or drawn bits into a term of a sum, not the multiplications.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

// narrow = W wide * scale + bias, or false where another kernel must do it: more pixels, groups, codes without a
// kernel here, or inputs that a sum of table entries or of integers would not treat as a sum of products does. `g` is
// merged (see merge_pixels). What decides is the shape, the code and the inputs, never residency or threads.
bool convolve_vector(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                     const Epilogue& epilogue, int threads);

}  // namespace fk::FK_ISA_NS
