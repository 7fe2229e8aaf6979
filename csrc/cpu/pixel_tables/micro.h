// Adds entries of tables to sums: the loop that does the products.
#pragma once
#include <array>
#include <utility>

#include "cpu/pixel_tables/shape.h"

namespace fk::FK_ISA_NS {

// Where a row's sums come from and go to: VECTORS vectors each, `from` standing still before the first pass.
struct SumRows {
  int64_t rows;
  const float* from;
  int64_t from_step;
  float* to;
};

// For each row, to = from + the entries at its offsets. A word holds four offsets in bytes, those of a row `word_step`
// words apart; the same offset serves all vectors of pixels. Words are loaded whole and cut in registers: a load of
// each offset would take turns of the load ports, which bound the loop.
template <int BASES, int OFFSETS, int VECTORS>
void add_entries(const uint64_t* words, int64_t word_step, const char* const* bases, const SumRows& sums) {
  const char* base[BASES];
  for (int k = 0; k < BASES; ++k) base[k] = bases[k];
  const int64_t rows = sums.rows, from_step = sums.from_step;
  const float* from = sums.from;
  float* to = sums.to;
  for (int64_t row = 0; row < rows; ++row, from += from_step, to += VECTORS * VL) {
    vf32 sum[VECTORS];
    uint64_t word = 0;
#pragma GCC unroll 16
    for (int i = 0; i < BASES * OFFSETS; ++i) {
      const int part = i % static_cast<int>(QUAD_OFFSETS);
      if (part == 0) {
        word = words[i / QUAD_OFFSETS * word_step + row];
        asm volatile("" : "+r"(word));  // or the compiler loads every offset by itself
      }
      const char* entry = base[i / OFFSETS] + (part == 3 ? word >> 48 : word >> 16 * part & 0xFFFF);
      asm("" : "+r"(entry));  // an address in one register: with an index a load takes two slots
#pragma GCC unroll 4
      for (int p = 0; p < VECTORS; ++p) {
        const vf32 value = vf32::load(reinterpret_cast<const float*>(entry) + p * VL);
        sum[p] = i ? sum[p] + value : value;
      }
    }
#pragma GCC unroll 4
    for (int p = 0; p < VECTORS; ++p) (vf32::load(from + p * VL) + sum[p]).store(to + p * VL);
  }
}

using AddEntries = void (*)(const uint64_t*, int64_t, const char* const*, const SumRows&);

template <int BASES, int OFFSETS>
constexpr std::array<AddEntries, MOST_VECTORS> each_vectors() {
  if constexpr (OFFSETS <= most_offsets(BASES)) {
    return {add_entries<BASES, OFFSETS, 1>, add_entries<BASES, OFFSETS, 2>, add_entries<BASES, OFFSETS, 3>,
            add_entries<BASES, OFFSETS, 4>};
  } else {
    return {};
  }
}
template <int BASES, int... OFFSETS>
constexpr std::array<std::array<AddEntries, MOST_VECTORS>, 8> each_offsets(std::integer_sequence<int, OFFSETS...>) {
  return {each_vectors<BASES, OFFSETS + 1>()...};
}

FK_INLINE AddEntries find_add_entries(int64_t bases, int64_t offsets, int64_t vectors) {
  constexpr auto eight = std::make_integer_sequence<int, 8>();
  static constexpr std::array<std::array<AddEntries, MOST_VECTORS>, 8> found[MOST_BASES] = {
      each_offsets<1>(eight), each_offsets<2>(eight), each_offsets<3>(eight), each_offsets<4>(eight),
      each_offsets<5>(eight), each_offsets<6>(eight), each_offsets<7>(eight)};
  return found[bases - 1][offsets - 1][vectors - 1];
}

// The 27 weighted sums of three vectors of inputs, `step` floats apart; entry 13 + d0 + 3 d1 + 9 d2. Weights of zero
// are factors too, so that infinity and NaN reach exactly the entries that a dense product would carry them to.
FK_INLINE void build_table(vf32 x0, vf32 x1, vf32 x2, float* out, int64_t step) {
  const vf32 zero = vf32::zero();
  const vf32 a[3] = {zero - x0, x0 * zero, x0}, b[3] = {zero - x1, x1 * zero, x1}, c[3] = {zero - x2, x2 * zero, x2};
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const vf32 two = a[i] + b[j];
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) (two + c[k]).store(out + (i + 3 * j + 9 * k) * step);
    }
  }
}

}  // namespace fk::FK_ISA_NS
