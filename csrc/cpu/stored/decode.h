// What a keep plane and packed values say, as lists: an entry for each weight that is kept, in stream order.
#pragma once
#include <stdexcept>
#include <string>

#include "cpu/conv/pixels.h"
#include "cpu/words/compress.h"

namespace fk::FK_ISA_NS {

// Places are int32. Throws where the floats that a task reads or adds to are more.
inline void require_places(int64_t floats) {
  if (floats < int64_t{1} << 31) return;
  throw std::invalid_argument("a task of this layer has " + std::to_string(floats) +
                              " inputs or sums, expected below 2^31");
}

inline int64_t count_kept(const uint32_t* words, int64_t count) {
  int64_t kept = 0;
  for (int64_t i = 0; i < count; ++i) kept += __builtin_popcount(words[i]);
  return kept;
}

// Place among the kept values of the first that word `word` of a row keeps.
inline int64_t first_value(const Frozen& f, int64_t row, int64_t word) {
  const int64_t chunk = word / CHUNK_WORDS, start = chunk * CHUNK_WORDS;
  return f.offsets[row * f.chunks() + chunk] + count_kept(f.keep + row * f.words + start, word - start);
}

// to[i] = value first + i, without the scale of its row; nothing past the last is read.
inline void read_values(const Frozen& f, int64_t first, int64_t count, float* to) {
  if (f.value_dtype == INT8) {
    const int8_t* const from = static_cast<const int8_t*>(f.values) + first;
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
    return;
  }
  with_any_dtype(f.value_dtype, [&](auto dtype) {
    read<dtype>(static_cast<const typename Element<dtype>::Type*>(f.values) + first, 1, count, to);
  });
}

// Calls fn(column, place) for the columns of a row, and the places of their bits in a table.
template <class Fn>
void each_column(int64_t cols, const Fn& fn) {
  for (int64_t column = 0; column < cols; ++column) fn(column, (column & ~int64_t{31}) + beta(column));
}

}  // namespace fk::FK_ISA_NS
