// Units of tables of integers: block fixed point. A block is a chunk of channels of an image, since taps share tables,
// or of a pixel where there is one tap. Units depend on the inputs of the block alone, so cuts never change a bit.
#pragma once
#include <vector>

#include "cpu/lookup/plan.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

// Inputs times `up` are numbers of `unit`, both powers of two.
struct Scale {
  float up, unit;
};

// Whether sums of at most `bound` have a scale: not where it is NaN, infinite, or so small that its unit is denormal.
inline bool has_scale(float bound) { return bound == 0.0f || (bound > 0x1p-90f && bound < 0x1p96f); }

// Sums of at most `bound` stay below 2^30 units.
inline Scale scale_of(float bound) {
  if (bound == 0.0f) return {1.0f, 1.0f};
  const uint32_t exponent = float_to_bits(bound) >> 23 & 255;  // bound < 2^(exponent - 126)
  return {bits_to_float((127 + 30 + 126 - exponent) << 23), bits_to_float((exponent - 30 + 1) << 23)};
}

// The scales of a layer whose taps slide.
class ImageScales {
 public:
  ImageScales(const Call& c, const LookupShape& shape);

  // Whether integers are as good as floats for an image. Not where a few inputs are so large that the unit which they
  // ask for would cost the others accuracy, nor with infinity or NaN.
  bool suits(int64_t group, int64_t batch) const { return suits_[place(group, batch)]; }
  Scale at(int64_t group, int64_t batch, int64_t chunk) const {
    return scales_[place(group, batch) * chunks_ + static_cast<size_t>(chunk)];
  }

 private:
  size_t place(int64_t group, int64_t batch) const { return static_cast<size_t>(group * batches_ + batch); }

  int64_t batches_;
  size_t chunks_;
  std::vector<char> suits_;
  std::vector<Scale> scales_;
};

// Sum of the sizes of `count` neighbours.
FK_INLINE float sum_of_sizes(const float* inputs, int64_t count) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += VL) {
    const __mmask16 mask = count - i >= VL ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1u);
    sum = _mm512_add_ps(sum, _mm512_abs_ps(_mm512_maskz_loadu_ps(mask, inputs + i)));
  }
  return _mm512_reduce_add_ps(sum);
}

// Adds the size of each input to a sum of its own, up to the next multiple of VL.
FK_INLINE void add_sizes(const float* inputs, int64_t count, float* sums) {
  for (int64_t i = 0; i < count; i += VL) (vf32::load(sums + i) + size_of(vf32::load(inputs + i))).store(sums + i);
}

}  // namespace fk::FK_ISA_NS
#endif
