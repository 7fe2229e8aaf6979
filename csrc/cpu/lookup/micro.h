// Tables of the signed sums of three inputs, and the products made from them: a register tile of rows by pixels whose
// sums grow by one table entry per three weights.
#pragma once
#include <array>
#include <utility>

#include "cpu/lookup/lookup.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

constexpr int64_t TRIPLE = 3;        // weights per table entry
constexpr int64_t TABLE = VL;        // floats of a table: entry v = 1 .. 13 in place v; the negatives are not stored
constexpr int64_t QUAD = 4;          // indices of a row that are neighbours in memory
constexpr int TILE_ROW_VECTORS = 4;  // with TILE_PIXELS: 20 sums, 4 indices, a table and its negative, 4 entries
constexpr int TILE_PIXELS = 5;

// Entry v is the sum of digit i of v times input i, digits balanced: v = d0 + 3 d1 + 9 d2, each -1, 0 or 1. A digit of
// zero is a factor too: infinity and NaN reach the entries that a dense product would carry them to.
class TableBuilder {
 public:
  TableBuilder() {
    alignas(64) float digits[TRIPLE][VL] = {};
    for (int v = 1; v <= 13; ++v) {
      int rest = v;
      for (int i = 0; i < TRIPLE; ++i) {
        const int digit = (rest + 1) % 3 - 1;
        digits[i][v] = static_cast<float>(digit);
        rest = (rest - digit) / 3;
      }
    }
    for (int i = 0; i < TRIPLE; ++i) digit_[i] = vf32::load(digits[i]);
  }

  // Tables of `channels` inputs `step` apart, filled up with zeros.
  template <class Step>
  FK_INLINE void build(const float* inputs, Step step, int64_t channels, float* tables) const {
    int64_t c = 0;
    for (; c + TRIPLE <= channels; c += TRIPLE, inputs += TRIPLE * step, tables += TABLE) {
      build_one(inputs[0], inputs[step], inputs[2 * step], tables);
    }
    if (c < channels) build_one(inputs[0], c + 1 < channels ? inputs[step] : 0.0f, 0.0f, tables);
  }

 private:
  FK_INLINE void build_one(float x0, float x1, float x2, float* table) const {
    const vf32 sum = fma(digit_[2], vf32::set(x2), fma(digit_[1], vf32::set(x1), digit_[0] * vf32::set(x0)));
    sum.store(table);
  }

  vf32 digit_[TRIPLE];
};

// The tables that one pixel's sums read, in order: `run` neighbours from each of `count` offsets on.
struct Path {
  const int64_t* offsets;  // floats
  int64_t count, run;
};

// One table for each of P pixels, one entry for each of R vectors of rows. The order of lookups and additions is the
// program's, since a compiler that reorders them runs out of registers.
template <int R, int P>
FK_INLINE void add_entries(const uint8_t* indices, const float* const* tables, int64_t at, __m512 (&sum)[P][R]) {
  const __m512 minus = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1.0f);
  __m512i index[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) index[r] = _mm512_loadu_si512(indices + r * 64);
#pragma GCC unroll 5
  for (int p = 0; p < P; ++p) {
    const __m512 low = _mm512_load_ps(tables[p] + at), high = _mm512_xor_ps(low, minus);
    __m512 entry[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      asm volatile("vmovaps %1, %0\n\tvpermt2ps %3, %2, %0" : "=&v"(entry[r]) : "v"(low), "v"(index[r]), "v"(high));
    }
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      // The same sum either way. AMD multiplies on pipes that neither look up nor add, so half the additions go there.
      if ((p + r) % 2) {
        asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sum[p][r]) : "v"(entry[r]), "v"(one));
      } else {
        asm volatile("vaddps %1, %0, %0" : "+v"(sum[p][r]) : "v"(entry[r]));
      }
    }
  }
}

// Sums [pixel][row] of R vectors of rows and P pixels. Indices: R vectors per quad, row by row the bytes of four
// tables; an entry's index is the low five bits of a lane, so the next byte is one unaligned load away and nothing is
// shifted.
template <int R, int P>
void look_up(const uint8_t* indices, const Path& path, const float* const* pixel_tables, bool add, float* sums,
             int64_t ld) {
  const float* tables[P];
  __m512 sum[P][R];
#pragma GCC unroll 5
  for (int p = 0; p < P; ++p) {
    tables[p] = pixel_tables[p];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) sum[p][r] = _mm512_setzero_ps();
  }
  for (int64_t i = 0; i < path.count; ++i) {
    int64_t at = path.offsets[i];
    int64_t left = path.run;
    for (; left >= QUAD; left -= QUAD, at += QUAD * TABLE, indices += R * 64) {
#pragma GCC unroll 4
      for (int b = 0; b < QUAD; ++b) add_entries<R, P>(indices + b, tables, at + b * TABLE, sum);
    }
    for (int64_t b = 0; b < left; ++b, at += TABLE) add_entries<R, P>(indices + b, tables, at, sum);
    if (left) indices += R * 64;
  }
#pragma GCC unroll 5
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      float* const to = sums + p * ld + r * VL;
      _mm512_storeu_ps(to, add ? _mm512_add_ps(_mm512_loadu_ps(to), sum[p][r]) : sum[p][r]);
    }
  }
}

using LookUp = void (*)(const uint8_t*, const Path&, const float* const*, bool, float*, int64_t);

template <int R, int... P>
constexpr std::array<LookUp, sizeof...(P)> lookups(std::integer_sequence<int, P...>) {
  return {look_up<R, P + 1>...};
}

FK_INLINE LookUp find_lookup(int64_t row_vectors, int64_t pixels) {
  constexpr auto pixel_counts = std::make_integer_sequence<int, TILE_PIXELS>();
  static constexpr std::array<LookUp, TILE_PIXELS> found[TILE_ROW_VECTORS] = {
      lookups<1>(pixel_counts), lookups<2>(pixel_counts), lookups<3>(pixel_counts), lookups<4>(pixel_counts)};
  return found[row_vectors - 1][pixels - 1];
}

}  // namespace fk::FK_ISA_NS
#endif
