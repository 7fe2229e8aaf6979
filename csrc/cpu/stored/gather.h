// Sums of lists: the pixels that a weight meets lie `at` its place, VL of them to a vector.
#pragma once
#include <array>
#include <utility>

#include "cpu/stored/lines.h"

namespace fk::FK_ISA_NS {

// The weights of a sum, or of a part of it.
struct List {
  const int32_t* at;
  const float* value;
  int64_t count;
};

// A sum of few vectors has several chains, since an addition takes longer than P loads.
constexpr int chains(int64_t vectors) { return vectors >= 8 ? 1 : vectors >= 3 ? 2 : 4; }

// Longest chain of a sum: one of 63 terms had three times torch's largest error.
constexpr int64_t LIST_CHAIN = 32;

template <int P>
FK_INLINE void gather_part(const List& list, const float* x, float* acc) {
  constexpr int CHAINS = chains(P);
  const int32_t* const at = list.at;
  const float* const value = list.value;
  vf32 sum[CHAINS][P];
#pragma GCC unroll 4
  for (int c = 0; c < CHAINS; ++c) {
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[c][p] = vf32::zero();
  }
  int64_t k = 0;
  for (; k + CHAINS <= list.count; k += CHAINS) {
#pragma GCC unroll 4
    for (int c = 0; c < CHAINS; ++c) {
      const vf32 factor = vf32::set(value[k + c]);
      const float* const from = x + at[k + c];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) sum[c][p] = multiply_add(factor, vf32::load(from + p * VL), sum[c][p]);
    }
  }
  for (; k < list.count; ++k) {
    const vf32 factor = vf32::set(value[k]);
    const float* const from = x + at[k];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) sum[0][p] = multiply_add(factor, vf32::load(from + p * VL), sum[0][p]);
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    vf32 all = sum[0][p];
    if constexpr (CHAINS == 2) all = all + sum[1][p];
    if constexpr (CHAINS == 4) all = (all + sum[1][p]) + (sum[2][p] + sum[3][p]);
    (vf32::load(acc + p * VL) + all).store(acc + p * VL);
  }
}

// acc[i] += the sum of list i, in even parts, over P vectors of pixels.
template <int P>
void gather(const List* lists, int64_t count, const float* x, float* acc, int64_t ld) {
  constexpr int CHAINS = chains(P);
  for (int64_t i = 0; i < count; ++i, acc += ld) {
    const int64_t terms = lists[i].count, parts = divide_up(terms, CHAINS * LIST_CHAIN);
    for (int64_t begin = 0, part = 1; part <= parts; ++part) {
      const int64_t end = part == parts ? terms : terms * part / parts;  // one part takes no division
      gather_part<P>({lists[i].at + begin, lists[i].value + begin, end - begin}, x, acc);
      begin = end;
    }
  }
}

using Gather = void (*)(const List*, int64_t, const float*, float*, int64_t);

template <int... P>
constexpr std::array<Gather, sizeof...(P)> gathers(std::integer_sequence<int, P...>) {
  return {gather<P + 1>...};
}

// For a tile of so many pixels.
inline Gather find_gather(int64_t pixels) {
  static constexpr auto all = gathers(std::make_integer_sequence<int, TILE / VL>());
  return all[divide_up(pixels, VL) - 1];
}

}  // namespace fk::FK_ISA_NS
