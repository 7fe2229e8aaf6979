// What a keep plane and packed values say, as lists: an entry for each weight that is kept, in stream order.
#pragma once
#include <stdexcept>
#include <string>

#include "cpu/conv/pixels.h"

namespace fk::FK_ISA_NS {

constexpr int64_t LIST_SLACK = 16;  // entries past the last that `compress` and `read_values` may write

// Lanes of 8 that a byte of a keep word moves to the front.
struct FrontLanes {
  alignas(32) uint32_t lane[256][8];
  constexpr FrontLanes() : lane() {
    for (int byte = 0; byte < 256; ++byte) {
      int found = 0;
      for (uint32_t bit = 0; bit < 8; ++bit) {
        if (byte >> bit & 1) lane[byte][found++] = bit;
      }
    }
  }
};
inline constexpr FrontLanes FRONT_LANES{};

// out = the entries of `table` (4 bytes each, one for each bit of the words) whose bits are set; how many.
inline int64_t compress(const uint32_t* words, int64_t count, const void* table, void* out) {
  const char* from = static_cast<const char*>(table);
  char* const to = static_cast<char*>(out);
#if FK_HAS_AVX512
  // Masks by way of sign bits, since moving them from integers takes the one port that compresses.
  const __m512i low = _mm512_sub_epi32(_mm512_set1_epi32(31), vu32::iota().v);
  const __m512i high = _mm512_sub_epi32(_mm512_set1_epi32(15), vu32::iota().v);
  char* at = to;
#pragma GCC unroll 4
  for (int64_t i = 0; i < count; ++i, from += 128) {
    const uint32_t word = words[i];
    const __m512i bits = _mm512_set1_epi32(static_cast<int>(word));
    const __mmask16 even = _mm512_movepi32_mask(_mm512_sllv_epi32(bits, low));
    const __mmask16 odd = _mm512_movepi32_mask(_mm512_sllv_epi32(bits, high));
    _mm512_storeu_si512(at, _mm512_maskz_compress_epi32(even, _mm512_loadu_si512(from)));
    char* const half = at + 4 * __builtin_popcount(word & EVEN_COLUMNS);
    _mm512_storeu_si512(half, _mm512_maskz_compress_epi32(odd, _mm512_loadu_si512(from + 64)));
    at += 4 * __builtin_popcount(word);
  }
  return (at - to) / 4;
#elif FK_HAS_AVX2
  const uint8_t* const bytes = reinterpret_cast<const uint8_t*>(words);
  char* at = to;
#pragma GCC unroll 4
  for (int64_t i = 0; i < 4 * count; ++i, from += 32) {
    const __m256i lanes = _mm256_load_si256(reinterpret_cast<const __m256i*>(FRONT_LANES.lane[bytes[i]]));
    const __m256i all = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), _mm256_permutevar8x32_epi32(all, lanes));
    at += 4 * __builtin_popcount(bytes[i]);
  }
  return (at - to) / 4;
#else
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i, from += 128) {
    for (uint32_t bits = words[i]; bits; bits &= bits - 1) memcpy(to + 4 * found++, from + 4 * __builtin_ctz(bits), 4);
  }
  return found;
#endif
}

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
  with_dtype(f.value_dtype, [&](auto dtype) {
    read<dtype>(static_cast<const typename Element<dtype>::Type*>(f.values) + first, 1, count, to);
  });
}

// Calls fn(column, place) for the columns of a row, and the places of their bits in a table.
template <class Fn>
void each_column(int64_t cols, const Fn& fn) {
  for (int64_t column = 0; column < cols; ++column) fn(column, (column & ~int64_t{31}) + beta(column));
}

}  // namespace fk::FK_ISA_NS
