// Entries of a table moved beside each other where the bits of a row's words are set.
#pragma once
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

constexpr int64_t LIST_SLACK = 16;  // entries past the last that `compress` may write

// Lanes of 8 that a byte of a word moves to the front.
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

// The lanes of x whose bits are set moved to the front, and back to their places; other lanes are anything.
#if FK_HAS_AVX512
FK_INLINE vu32 to_front(vu32 x, uint32_t lanes) {
  return {_mm512_maskz_compress_epi32(static_cast<__mmask16>(lanes), x.v)};
}
FK_INLINE vu32 from_front(vu32 x, uint32_t lanes) {
  return {_mm512_maskz_expand_epi32(static_cast<__mmask16>(lanes), x.v)};
}
#elif FK_HAS_AVX2
FK_INLINE vu32 to_front(vu32 x, uint32_t lanes) {
  return {_mm256_permutevar8x32_epi32(x.v, vu32::load(FRONT_LANES.lane[lanes]).v)};
}

// Where each lane's entry is among those that FrontLanes moved.
struct FormerLanes {
  alignas(32) uint32_t lane[256][8];
  constexpr FormerLanes() : lane() {
    for (int byte = 0; byte < 256; ++byte) {
      uint32_t found = 0;
      for (int bit = 0; bit < 8; ++bit) {
        lane[byte][bit] = found % 8;
        found += static_cast<uint32_t>(byte >> bit & 1);
      }
    }
  }
};
inline constexpr FormerLanes FORMER_LANES{};

FK_INLINE vu32 from_front(vu32 x, uint32_t lanes) {
  return {_mm256_permutevar8x32_epi32(x.v, vu32::load(FORMER_LANES.lane[lanes]).v)};
}

// All ones in the lanes whose bits of a byte are set.
struct KeptLanes {
  alignas(32) uint32_t lane[256][8];
  constexpr KeptLanes() : lane() {
    for (int byte = 0; byte < 256; ++byte) {
      for (int bit = 0; bit < 8; ++bit) lane[byte][bit] = byte >> bit & 1 ? ~0u : 0;
    }
  }
};
inline constexpr KeptLanes KEPT_LANES{};
#endif

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

}  // namespace fk::FK_ISA_NS
