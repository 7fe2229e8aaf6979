// From the integers that Python passes to the geometry, sides and epilogue that kernels take.
#pragma once
#include "binding/pack.h"
#include "frozen/geometry.h"

namespace fk {

// pointer, dtype, strides of batch, channel and three spatial dimensions in elements
using Side = std::array<int64_t, 7>;
// bias: pointer, dtype, stride; gain, float32: pointer, stride; relu. A pointer is 0 for none.
using EpilogueArgs = std::array<int64_t, 6>;
// batch, groups, then by spatial dimension: wide size, narrow size, taps, stride, padding, dilation
using Sizes = std::array<int64_t, 20>;

Activations to_activations(const Side& side);
Epilogue to_epilogue(const EpilogueArgs& args);
// Throws std::invalid_argument for sizes that are no layer of this weight.
Geometry to_geometry(const Frozen& f, const Sizes& sizes);

// invalid_argument with all sizes where kernels cannot take a layer; what is changed is said by within_bounds.
void require_within_bounds(Geometry& g);

}  // namespace fk
