// Register-tiled outer products of pixels: c[row][lane] = or += sum over pixels of y[pixel][row] * x[pixel][lane]. A
// list names the pixels, so taps share packed inputs and pixels in the padding are left out.
#pragma once
#include <array>
#include <utility>

#include "cpu/conv/blocks.h"

namespace fk::FK_ISA_NS {

// Where the values of a pixel begin on both sides, in floats.
struct PixelPair {
  int32_t x, y;
};

#if FK_HAS_AVX512
constexpr int SLIVER_ROWS = 14;
#elif FK_HAS_AVX2
constexpr int SLIVER_ROWS = 6;
#else
constexpr int SLIVER_ROWS = 4;
#endif
static_assert(SLIVER_ROWS <= VL, "a pixel of a sliver is a vector");

// Chains of at most `chain` pixels; where `fresh`, the first replaces what is in C.
template <int ROWS, int VECTORS>
void multiply_pixels(const PixelPair* list, int64_t count, int64_t chain, const float* x, const float* y, float* c,
                     int64_t ldc, bool fresh) {
  constexpr int64_t LINE = 64 / sizeof(float);
  for (int row = 0; row < ROWS; ++row) {
    for (int64_t lane = 0; lane < VECTORS * VL; lane += LINE) __builtin_prefetch(c + row * ldc + lane, 1);
  }
  do {
    const PixelPair* const end = list + (count < chain ? count : chain);
    count -= end - list;
    vf32 sum[ROWS][VECTORS];
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 2
      for (int n = 0; n < VECTORS; ++n) sum[row][n] = vf32::zero();
    }
    for (; list != end; ++list) {
      const float *const right = x + list->x, *const left = y + list->y;
      vf32 lanes[VECTORS];
#pragma GCC unroll 2
      for (int n = 0; n < VECTORS; ++n) lanes[n] = vf32::load(right + n * VL);
#pragma GCC unroll 16
      for (int row = 0; row < ROWS; ++row) {
        const vf32 one = vf32::set(left[row]);
#pragma GCC unroll 2
        for (int n = 0; n < VECTORS; ++n) sum[row][n] = multiply_add(one, lanes[n], sum[row][n]);
      }
    }
    float* to = c;
#pragma GCC unroll 16
    for (int row = 0; row < ROWS; ++row, to += ldc) {
#pragma GCC unroll 2
      for (int n = 0; n < VECTORS; ++n) {
        (fresh ? sum[row][n] : vf32::load(to + n * VL) + sum[row][n]).store(to + n * VL);
      }
    }
    fresh = false;
  } while (count > 0);
}

using PixelTile = void (*)(const PixelPair*, int64_t, int64_t, const float*, const float*, float*, int64_t, bool);

template <int VECTORS, int... ROW>
constexpr std::array<PixelTile, sizeof...(ROW)> pixel_tiles(std::integer_sequence<int, ROW...>) {
  return {multiply_pixels<ROW + 1, VECTORS>...};
}

FK_INLINE PixelTile pixel_tile(int64_t rows, int64_t vectors) {
  static constexpr auto one = pixel_tiles<1>(std::make_integer_sequence<int, SLIVER_ROWS>());
  static constexpr auto two = pixel_tiles<2>(std::make_integer_sequence<int, SLIVER_ROWS>());
  return vectors == 1 ? one[rows - 1] : two[rows - 1];
}

}  // namespace fk::FK_ISA_NS
