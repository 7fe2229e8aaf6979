// Products of a stored weight, which has values of its own: they read its keep plane and the values that it keeps.
// Infinity and NaN pass only where a weight is kept.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

inline bool is_stored(const Call& c) { return c.f.code == STORED_CODE; }

// narrow = W wide, lanes along the pixels
void convolve_stored(const Call& call);
bool stored_scatter_serves(const Call& c);
// wide = W^T narrow of one tap, lanes along the pixels
void convolve_transposed_stored_scatter(const Call& call);
// wide = W^T narrow, lanes along the pixels
void convolve_transposed_stored(const Call& call);

}  // namespace fk::FK_ISA_NS

namespace fk::FK_LEVEL_NS {

constexpr int64_t STORED_VECTOR_PIXELS = 4;
#define STORED_VECTOR_SERVES \
  "stored weights: one group, 1 or 2 result pixels, up to 3 on AVX2, up to 4 of float32 values on AVX-512"
bool stored_vector_serves(const Call& c);
// narrow = W wide, lanes along the columns
void convolve_stored_vector(const Call& call);
#if FK_HAS_VBMI
// For the kernel above, where few weights are kept: sums[i * pixels + p] of row `row0 + i` and pixel p, whose inputs
// are x[p * 32 * words] on, in the order of the bits. `room` is for `position_floats` floats.
constexpr int64_t GATHERED_PIXELS = 2;
constexpr int64_t GATHERED_SHARE = 4;  // at most one weight in so many is kept
int64_t position_floats(int64_t words);
bool gathers_positions(const Frozen& f, int64_t pixels);
void position_sums(const Frozen& f, int64_t row0, int64_t rows, int64_t pixels, const float* x, float* room,
                   float* sums);
#endif

}  // namespace fk::FK_LEVEL_NS
