// Register-tiled products of small blocks: C[m][lane] += sum over k of A[m][k] * B[k][lane], one fresh chain per call.
// A product of whole layers calls this with fixed ranges of k, so no result depends on how m and lanes are tiled.
#pragma once
#include <array>
#include <utility>

#include "cpu/conv/blocks.h"

namespace fk::FK_ISA_NS {

constexpr int NARROW = 2, MIDDLE = 4, BROAD = 8;  // vectors per tile
static_assert(TILE_LANES == NARROW * VL);
// Where one chain of DEPTH terms would be too long (see longest_forward_chain), for sums of how many terms, and in
// products of how many.
constexpr int64_t SHORT_CHAIN = 32, FEW_TERMS = 1024, SMALL_PRODUCT = 1 << 22;

#if FK_HAS_AVX512
constexpr int MAX_M = 14, MIDDLE_M = 4, BROAD_M = 2;
#elif FK_HAS_AVX2
constexpr int MAX_M = 6, MIDDLE_M = 2, BROAD_M = 1;
#elif FK_HAS_NEON
constexpr int MAX_M = 12, MIDDLE_M = 6, BROAD_M = 2;
#else
constexpr int MAX_M = 4, MIDDLE_M = 2, BROAD_M = 1;
#endif

// Strides of A: m by 1 where unit_m, else by LD; k by step.
template <int M, int N, bool UNIT_M>
void multiply_tile(int64_t depth, const float* a, int64_t step, const float* b, int64_t ldb, float* c, int64_t ldc) {
  constexpr int64_t m_step = UNIT_M ? 1 : LD;
  vf32 sum[M][N];
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) sum[m][n] = vf32::zero();
  }
  for (int64_t k = 0; k < depth; ++k) {
    vf32 right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) right[n] = vf32::load(b + n * VL);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m) {
      const vf32 left = vf32::set(a[m * m_step]);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) sum[m][n] = multiply_add(left, right[n], sum[m][n]);
    }
    a += step;
    b += ldb;
  }
#pragma GCC unroll 16
  for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) (vf32::load(c + n * VL) + sum[m][n]).store(c + n * VL);
    c += ldc;
  }
}

using Tile = void (*)(int64_t, const float*, int64_t, const float*, int64_t, float*, int64_t);

template <int N, bool UNIT_M, int... M>
constexpr std::array<Tile, sizeof...(M)> tiles(std::integer_sequence<int, M...>) {
  return {multiply_tile<M + 1, N, UNIT_M>...};
}

template <bool UNIT_M>
FK_INLINE Tile find_tile(int m, int vectors) {
  static constexpr auto narrow = tiles<NARROW, UNIT_M>(std::make_integer_sequence<int, MAX_M>());
  static constexpr auto middle = tiles<MIDDLE, UNIT_M>(std::make_integer_sequence<int, MIDDLE_M>());
  static constexpr auto broad = tiles<BROAD, UNIT_M>(std::make_integer_sequence<int, BROAD_M>());
  return vectors == BROAD ? broad[m - 1] : vectors == MIDDLE ? middle[m - 1] : narrow[m - 1];
}

// Left operand of a block product.
struct Left {
  const float* data;
  bool unit_m;   // stride of m: 1 or LD
  int64_t step;  // stride of k
};

// `lanes` may end inside a tile of TILE_LANES; B must be readable to its end. Where `exact`, lanes of C past the last
// are left alone, else they are overwritten.
inline void multiply(int64_t ms, int64_t lanes, int64_t depth, Left a, const float* b, int64_t ldb, float* c,
                     int64_t ldc, bool exact = false) {
  if (ms <= 0) return;
  const int64_t groups = (ms + MAX_M - 1) / MAX_M;
  for (int64_t lane = 0; lane < lanes;) {
    const int64_t left = round_up(lanes - lane, TILE_LANES) / VL;
    const int vectors = ms <= BROAD_M && left >= BROAD ? BROAD : ms <= MIDDLE_M && left >= MIDDLE ? MIDDLE : NARROW;
    const int64_t count = lanes - lane < vectors * VL ? lanes - lane : vectors * VL;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t m = ms * g / groups;
      const int size = static_cast<int>(ms * (g + 1) / groups - m);
      const Tile tile = a.unit_m ? find_tile<true>(size, vectors) : find_tile<false>(size, vectors);
      const float* const left_block = a.data + m * (a.unit_m ? 1 : LD);
      float* const out = c + m * ldc + lane;
      if (exact && count < vectors * VL) {
        alignas(64) float rest[MAX_M * BROAD * VL] = {};
        tile(depth, left_block, a.step, b + lane, ldb, rest, vectors * VL);
        for (int i = 0; i < size; ++i) {
          for (int64_t j = 0; j < count; ++j) out[i * ldc + j] += rest[i * vectors * VL + j];
        }
      } else {
        tile(depth, left_block, a.step, b + lane, ldb, out, ldc);
      }
    }
    lane += vectors * VL;
  }
}

// The same with even chains of at most `chain` terms.
inline void multiply_in_chains(int64_t chain, int64_t ms, int64_t lanes, int64_t depth, Left a, const float* b,
                               int64_t ldb, float* c, int64_t ldc, bool exact = false) {
  const int64_t chains = divide_up(depth, chain);
  for (int64_t i = 0; i < chains; ++i) {
    const int64_t k = depth * i / chains, end = depth * (i + 1) / chains;
    multiply(ms, lanes, end - k, {a.data + k * a.step, a.unit_m, a.step}, b + k * ldb, ldb, c, ldc, exact);
  }
}

}  // namespace fk::FK_ISA_NS
