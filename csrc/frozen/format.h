// Weight format, version 1: every bit of a frozen weight as a function of its position. Normative, one weight at a
// time.
#pragma once
#include "philox.h"

namespace fk {

constexpr int FORMAT_VERSION = 1;

// The last two are of section 8, the others are drawn. No kernel is given SIGNS_CODE: its planes are those of
// SIGN_CODE.
enum Code { SIGN_CODE = 0, UNIFORM_CODE = 1, NORMAL_CODE = 2, CONSTANT_CODE = 3, STORED_CODE = 4, SIGNS_CODE = 5 };
enum Purpose : uint32_t {
  SIGN_PURPOSE = 0,
  BYTE_PURPOSE = 1,
  PARTITION_PURPOSE = 16,
  SCORE_PURPOSE = 32,
  SEARCH_PURPOSE = 33
};

// Words of the int32 header that travels with a tensor; they mean uint32, the scale a float's bits.
enum HeaderWord {
  SEED_LO = 0,
  SEED_HI = 1,
  STREAM = 2,
  GENERATION = 3,
  TAU_PRUNE = 4,
  TAU_FREEZE = 5,
  SCALE = 6,
  CODE = 7,
  HEADER_WORDS = 8
};

constexpr int64_t CHUNK_WORDS = 32;          // words per entry of a stream offset table
constexpr int PLANES = 16;                   // bit planes of the partition draw u
constexpr uint32_t FULL_THRESHOLD = 65536u;  // always above u
constexpr uint32_t EVEN_COLUMNS = 0x0000FFFFu, ODD_COLUMNS = 0xFFFF0000u;

// Upper half of the normal code's table: T[128 + i]; T[127 - i] is its negative.
// clang-format off
#define FK_NORMAL_HALF \
    1,   1,   3,   3,   3,   5,   5,   7,   7,   9,   9,   9,   11,  11,  13,  13,  15,  15,  17,  17,  17,  19, \
    19,  21,  21,  23,  23,  23,  25,  25,  27,  27,  29,  29,  31,  31,  33,  33,  35,  35,  35,  37,  37,  39, \
    39,  41,  41,  43,  43,  45,  45,  47,  47,  49,  49,  51,  51,  53,  53,  55,  55,  57,  57,  59,  59,  61, \
    63,  63,  65,  65,  67,  67,  69,  71,  71,  73,  73,  75,  77,  77,  79,  81,  81,  83,  83,  85,  87,  89, \
    89,  91,  93,  95,  95,  97,  99,  101, 103, 103, 105, 107, 109, 111, 113, 115, 117, 119, 121, 123, 125, 129, \
    131, 133, 137, 139, 143, 145, 149, 153, 157, 161, 167, 171, 179, 185, 195, 205, 221, 253
// clang-format on
constexpr int16_t NORMAL_HALF[128] = {FK_NORMAL_HALF};
#if defined(__CUDACC__)
static __device__ const int16_t DEVICE_NORMAL_HALF[128] = {FK_NORMAL_HALF};
#endif

// Bit of column k in its word: even columns fill the low half, odd columns the high half.
FK_HD int beta(int64_t k) { return static_cast<int>(((k & 31) >> 1) | ((k & 1) << 4)); }

FK_HD int column_of_bit(int bit) { return bit < 16 ? 2 * bit : 2 * (bit - 16) + 1; }

// Mask of the bits of the columns below `count` (0..32) of a word.
FK_HD uint32_t column_mask(int count) {
  const uint32_t even = (1u << ((count + 1) >> 1)) - 1u, odd = (1u << (count >> 1)) - 1u;
  return even | (odd << 16);
}

// Natural bit order (bit k = column k) to the format's order, and back.
FK_HD uint32_t to_format_order(uint32_t x) {
  uint32_t t = (x ^ (x >> 1)) & 0x22222222u;
  x ^= t ^ (t << 1);
  t = (x ^ (x >> 2)) & 0x0C0C0C0Cu;
  x ^= t ^ (t << 2);
  t = (x ^ (x >> 4)) & 0x00F000F0u;
  x ^= t ^ (t << 4);
  t = (x ^ (x >> 8)) & 0x0000FF00u;
  return x ^ t ^ (t << 8);
}
FK_HD uint32_t to_natural_order(uint32_t x) {
  uint32_t t = (x ^ (x >> 8)) & 0x0000FF00u;
  x ^= t ^ (t << 8);
  t = (x ^ (x >> 4)) & 0x00F000F0u;
  x ^= t ^ (t << 4);
  t = (x ^ (x >> 2)) & 0x0C0C0C0Cu;
  x ^= t ^ (t << 2);
  t = (x ^ (x >> 1)) & 0x22222222u;
  return x ^ t ^ (t << 1);
}

FK_HD int normal_half(uint32_t i) {
#if defined(__CUDA_ARCH__)
  return DEVICE_NORMAL_HALF[i];
#else
  return NORMAL_HALF[i];
#endif
}
FK_HD int normal_code(uint32_t byte) { return byte < 128 ? -normal_half(127 - byte) : normal_half(byte - 128); }

// Code of a draw: the sign bit for sign, the byte for uniform and normal.
FK_HD int code_value(int code, uint32_t draw) {
  switch (code) {
    case SIGN_CODE:
      return 1 - 2 * static_cast<int>(draw);
    case UNIFORM_CODE:
      return 2 * static_cast<int>(draw) - 255;
    case NORMAL_CODE:
      return normal_code(draw);
    default:
      return 1;
  }
}

FK_HD uint32_t sign_word(int64_t w, uint32_t row, uint32_t stream, uint32_t generation, uint32_t key0, uint32_t key1) {
  return philox(static_cast<uint32_t>(w >> 2), row, SIGN_PURPOSE | generation << 8, stream, key0, key1).x[w & 3];
}

FK_HD uint32_t draw_byte(int64_t k, uint32_t row, uint32_t stream, uint32_t generation, uint32_t key0, uint32_t key1) {
  const Words4 four = philox(static_cast<uint32_t>(k >> 4), row, BYTE_PURPOSE | generation << 8, stream, key0, key1);
  return (four.x[(k >> 2) & 3] >> (8 * (k & 3))) & 255u;
}

FK_HD uint32_t score_draw(int64_t k, uint32_t row, uint32_t stream, uint32_t key0, uint32_t key1) {
  return philox(static_cast<uint32_t>(k >> 2), row, SCORE_PURPOSE, stream, key0, key1).x[k & 3];
}

// The 16-bit draw u that the partition thresholds cut.
FK_HD uint32_t partition_draw(int64_t k, uint32_t row, uint32_t stream, uint32_t key0, uint32_t key1) {
  uint32_t u = 0;
  for (uint32_t q = 0; q < PLANES / 4; ++q) {
    const Words4 four = philox(static_cast<uint32_t>(k >> 5), row, PARTITION_PURPOSE + q, stream, key0, key1);
    for (int i = 0; i < 4; ++i) u = u << 1 | ((four.x[i] >> beta(k)) & 1u);
  }
  return u;
}

// -1 pruned, +1 locked, 0 free.
FK_HD int partition_of(uint32_t u, uint32_t tau_prune, uint32_t tau_freeze) {
  return u < tau_prune ? -1 : u < tau_freeze ? 1 : 0;
}

}  // namespace fk
