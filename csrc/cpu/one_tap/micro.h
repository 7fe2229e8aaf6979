// Register tiles of some pixels by one to three vectors of rows, their inputs read where they lie.
#pragma once
#include <array>
#include <utility>

#include "cpu/conv/pixels.h"

namespace fk::FK_ISA_NS {

// Most pixels of a tile, and of one of three vectors, for layers of so many rows that one of two would leave a vector
// to a tile with too few sums. 32 registers need none.
#if FK_HAS_AVX512
constexpr int TILE_PIXELS = 14, TRIPLE_PIXELS = 0;
#else
constexpr int TILE_PIXELS = 6, TRIPLE_PIXELS = 4;
#endif
constexpr int64_t LINE_BYTES = 64;
static_assert(TILE_PIXELS <= VL);  // VL columns ask for a line of each pixel

// Memory that is touched soon. A column asks for a line of the inputs and a line of the result of one pixel, the next
// column for those of the next pixel, `step` and `out_step` bytes further; after VL columns for the lines that follow.
struct Ahead {
  const char* inputs;
  int64_t step, block;  // block: bytes of VL inputs
  const char* out;
  int64_t out_step;
};

// Where the sums of a chain go: they join those of the chains before in `joined` [pixel][vectors * VL], and after the
// last chain, where `out` is given, are finished and stored there.
struct ChainEnd {
  float* joined;
  bool first;
  float* out;  // of the first pixel, or null
  int64_t step;
  const float *factor, *bias;
  bool with_relu;
  int64_t lanes;  // of the last vector
};

// Inputs of a tile, `step` apart from pixel to pixel, and weights [column][vectors * VL].
struct PointProduct {
  const float* inputs;
  int64_t step, depth;
  const float* weights;
};

template <int PIXELS, int VECTORS>
FK_INLINE void end_chain(const vf32 (&sum)[PIXELS][VECTORS], const ChainEnd& end) {
  constexpr int WIDTH = VECTORS * VL;
  if (!end.out) {
#pragma GCC unroll 16
    for (int p = 0; p < PIXELS; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        float* const joined = end.joined + p * WIDTH + v * VL;
        (end.first ? sum[p][v] : vf32::load(joined) + sum[p][v]).store(joined);
      }
    }
    return;
  }
  Finish finish[VECTORS];
#pragma GCC unroll 4
  for (int v = 0; v < VECTORS; ++v) {
    finish[v] = {vf32::load(end.factor + v * VL), vf32::load(end.bias + v * VL), end.with_relu};
  }
  const bool whole = end.lanes == VL;
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      float* const out = end.out + p * end.step + v * VL;
      const vf32 total = end.first ? sum[p][v] : vf32::load(end.joined + p * WIDTH + v * VL) + sum[p][v];
      if (v + 1 == VECTORS && !whole) {
        store_first<FLOAT32>(out, finish[v](total), end.lanes);
      } else {
        finish[v](total).store(out);
      }
    }
  }
}

// One chain.
template <int PIXELS, int VECTORS>
FK_INLINE void multiply_chain(const PointProduct& product, const Ahead& ahead, const ChainEnd& end) {
  constexpr int BASES = (PIXELS + 2) / 3;  // an address reaches three pixels: base, base + step, base + 2 * step
  const int64_t step = product.step, depth = product.depth;
  const float* weights = product.weights;
  vf32 sum[PIXELS][VECTORS];
#pragma GCC unroll 16
  for (int p = 0; p < PIXELS; ++p) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) sum[p][v] = vf32::zero();
  }
  const float* base[BASES];
#pragma GCC unroll 8
  for (int i = 0; i < BASES; ++i) base[i] = product.inputs + 3 * i * step;
  const char *in_block = ahead.inputs, *out_block = ahead.out;
  for (int64_t k = 0; k < depth; in_block += ahead.block, out_block += LINE_BYTES) {
    const int64_t stop = std::min<int64_t>(k + VL, depth);
    const char *in = in_block, *out = out_block;
    for (; k < stop; ++k, in += ahead.step, out += ahead.out_step) {
      __builtin_prefetch(in);
      __builtin_prefetch(out);
      vf32 right[VECTORS];
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) right[v] = vf32::load(weights + v * VL);
#pragma GCC unroll 16
      for (int p = 0; p < PIXELS; ++p) {
        const vf32 left = vf32::set(base[p / 3][p % 3 * step]);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) sum[p][v] = multiply_add(left, right[v], sum[p][v]);
      }
#pragma GCC unroll 8
      for (int i = 0; i < BASES; ++i) ++base[i];
      weights += VECTORS * VL;
    }
  }
  end_chain(sum, end);
}

// One chain of each of `strips` strips of rows that follow each other: calls would cost a fifth where columns are few.
template <int PIXELS, int VECTORS>
void multiply_strips(PointProduct product, Ahead ahead, ChainEnd end, int64_t strips) {
  constexpr int WIDTH = VECTORS * VL;
  for (int64_t i = 0;;) {
    multiply_chain<PIXELS, VECTORS>(product, ahead, end);
    if (++i == strips) return;
    product.weights += product.depth * WIDTH;
    ahead.inputs = reinterpret_cast<const char*>(product.inputs);
    ahead.out += 4 * WIDTH;
    end.out += WIDTH, end.factor += WIDTH, end.bias += WIDTH;
  }
}

using MultiplyStrips = void (*)(PointProduct, Ahead, ChainEnd, int64_t);

template <int VECTORS, int... PIXELS>
constexpr std::array<MultiplyStrips, sizeof...(PIXELS)> point_tiles(std::integer_sequence<int, PIXELS...>) {
  return {multiply_strips<PIXELS + 1, VECTORS>...};
}

FK_INLINE MultiplyStrips find_strips(int64_t pixels, int64_t vectors) {
  static constexpr auto one = point_tiles<1>(std::make_integer_sequence<int, TILE_PIXELS>());
  static constexpr auto two = point_tiles<2>(std::make_integer_sequence<int, TILE_PIXELS>());
  static constexpr auto three = point_tiles<3>(std::make_integer_sequence<int, TRIPLE_PIXELS>());
  const size_t place = static_cast<size_t>(pixels - 1);
  if (three.size() && vectors == 3) return three[place];
  return vectors == 1 ? one[place] : two[place];
}

}  // namespace fk::FK_ISA_NS
