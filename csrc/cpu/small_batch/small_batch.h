// Layers of few result pixels. Each weight is used once or little more, so what counts is how many
// instructions turn stored or drawn bits into a term of a sum, not the multiplications.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_LEVEL_NS {

// Dot products of bytes: with AVX2, and with AVX-512 that has VNNI, where no tile registers do them.
#define FK_DOTS (FK_HAS_AVX2 && FK_HAS_AVX512 == FK_HAS_VNNI && !FK_HAS_TILES)

#if FK_HAS_TILES
constexpr const char* SMALL_BATCH_SERVES = "one group, 1 to 4 pixels, inputs of a common range";
#elif FK_HAS_VNNI
constexpr const char* SMALL_BATCH_SERVES =
    "one group, 1 to 16 pixels; sign and constant codes where columns suit; inputs of a common range";
#elif FK_HAS_AVX512
constexpr const char* SMALL_BATCH_SERVES =
    "one group, 1 pixel, or 1 to 4 of uniform and normal codes, inputs of a common range";
#else
constexpr const char* SMALL_BATCH_SERVES =
    "one group, 1 pixel, or 1 to 4 of uniform and normal codes, 1 to 10 of sign and constant codes where columns suit; "
    "inputs of a common range";
#endif

// What decides is the shape, the code and the inputs, never residency or threads.
bool small_batch_serves(const Call& call);
// narrow = W wide, or false where a sum of table entries or of integers would not treat the inputs as a sum of products
// does.
bool convolve_small_batch(const Call& call);

}  // namespace fk::FK_LEVEL_NS
