// Inputs as digits for int8 tensor cores: signed bytes d[0..3] of the integer sum(d[i] << 8 i), which is an input over
// a power of two that a slice of 512 columns of a pixel has in common. 29 bits below the leading one of the largest
// input stay, so that one outlier leaves the others more bits than their own type has.
#pragma once
#include "cuda/device.h"

namespace fk::cuda::digits {

constexpr int SLICE = 512, SLICE_WORDS = SLICE / 32;
constexpr int DIGITS = 4;
constexpr int LOWER_BITS = 29;                              // of an integer, below its leading one
constexpr int CHUNK = 16;                                   // columns that a lane makes digits of, and reads at once
constexpr int LANE_CHUNKS = SLICE / 4 / CHUNK;              // of a lane: the four of a row of operand A share a slice
constexpr int STAGE_CHUNKS = SLICE / CHUNK + 4;             // of a digit, with gaps
constexpr int STAGE_BYTES = DIGITS * STAGE_CHUNKS * CHUNK;  // of shared memory for each warp
// The unit, and a 64th of it, stay normal numbers: inputs that are all below 2^-91 lose what lies below 2^-121.
constexpr int SMALLEST_EXPONENT = 36;
constexpr uint32_t NOT_FINITE_EXPONENT = 255;

// Bytes of the columns of a chunk as the weights of a code lie in operand A.
enum Order {
  NATURAL,  // 16 columns one after another
  FIELDS    // 8 columns of the lower half of a word and 8 of the upper, in turn
};

// Place of a chunk's digit in a warp's stage, in bytes: a gap after each eighth chunk, and with it four in a digit,
// lets the lanes of a warp write and read without bank conflicts.
FK_DEVICE uint32_t stage_at(uint32_t digit, uint32_t chunk) {
  return (digit * STAGE_CHUNKS + chunk + chunk / 8) * CHUNK;
}

FK_DEVICE void read_inputs(const Product& p, int pixel, int column, int gap, float (&values)[CHUNK]) {
  const uint16_t* const row = static_cast<const uint16_t*>(p.x) + pixel * p.x_stride;
  uint32_t pairs[CHUNK / 2];
  FK_UNROLL for (int i = 0; i < 2; ++i) {
    const int at = column + i * gap;
    const uint4 eight = at < p.cols ? *reinterpret_cast<const uint4*>(row + at) : make_uint4(0, 0, 0, 0);
    pairs[4 * i] = eight.x, pairs[4 * i + 1] = eight.y, pairs[4 * i + 2] = eight.z, pairs[4 * i + 3] = eight.w;
  }
  if (p.dtype == BFLOAT16) {
    FK_UNROLL for (int i = 0; i < CHUNK / 2; ++i) {
      values[2 * i] = bfloat16_to_float(pairs[i]);
      values[2 * i + 1] = to_float(pairs[i] & 0xFFFF0000u);
    }
  } else {
    FK_UNROLL for (int i = 0; i < CHUNK / 2; ++i) {
      values[2 * i] = half_to_float(pairs[i] & 0xFFFFu);
      values[2 * i + 1] = half_to_float(pairs[i] >> 16);
    }
  }
}

// Exponent field of the largest of a warp's inputs.
FK_DEVICE uint32_t top_exponent(const float (&values)[CHUNK]) {
  float top = 0.0f;
  FK_UNROLL for (int i = 0; i < CHUNK; ++i) top = larger(top, fabsf(values[i]));
  uint32_t bits = to_bits(top);  // as integers: of numbers without a sign the order is the same, and NaN is largest
  FK_UNROLL for (int lane = 16; lane > 0; lane >>= 1) bits = max(bits, __shfl_xor_sync(~0u, bits, lane));
  return bits >> 23;
}

// Byte i of each of four words becomes word i.
FK_DEVICE void transpose(uint32_t (&words)[4]) {
  const uint32_t low01 = permute<0x5140>(words[0], words[1]), high01 = permute<0x7362>(words[0], words[1]);
  const uint32_t low23 = permute<0x5140>(words[2], words[3]), high23 = permute<0x7362>(words[2], words[3]);
  words[0] = permute<0x5410>(low01, low23), words[1] = permute<0x7632>(low01, low23);
  words[2] = permute<0x5410>(high01, high23), words[3] = permute<0x7632>(high01, high23);
}

// The warp writes the digits of a slice of a pixel to its stage. Returns what the lowest digit's one stands for; NaN
// where an input is not finite.
template <Order ORDER>
FK_DEVICE float make_digits(const Product& p, int pixel, int slice, uint32_t lane, uint8_t* stage) {
  float values[CHUNK];
  const int column = slice * SLICE + static_cast<int>(ORDER == FIELDS ? lane / 2 * 32 + lane % 2 * 8 : lane * CHUNK);
  read_inputs(p, pixel, column, ORDER == FIELDS ? 16 : 8, values);
  const uint32_t top = top_exponent(values), exponent = max(top, static_cast<uint32_t>(SMALLEST_EXPONENT));
  const float up = to_float((2 * 127 + LOWER_BITS - exponent) << 23);
  uint32_t by_digit[4][4];
  FK_UNROLL for (int i = 0; i < 4; ++i) {
    FK_UNROLL for (int j = 0; j < 4; ++j) {
      const int at = ORDER == FIELDS ? 2 * i + j / 2 + j % 2 * 8 : 4 * i + j;
      // an offset of half a byte's range makes the lower bytes signed digits
      const uint32_t integer = static_cast<uint32_t>(__float2int_rn(values[at] * up));
      by_digit[i][j] = (integer + 0x00808080u) ^ 0x00808080u;
    }
    transpose(by_digit[i]);
  }
  FK_UNROLL for (int digit = 0; digit < DIGITS; ++digit) {
    uint4& to = *reinterpret_cast<uint4*>(stage + stage_at(digit, lane));
    to = make_uint4(by_digit[0][digit], by_digit[1][digit], by_digit[2][digit], by_digit[3][digit]);
  }
  if (top == NOT_FINITE_EXPONENT) return to_float(0x7FC00000u);
  return to_float((exponent - LOWER_BITS) << 23);
}

// A lane's part of operand B, of which each 8 columns are the digits of two pixels, for a slice.
template <int PAIRS>
struct Inputs {
  uint4 bytes[PAIRS][LANE_CHUNKS];
  float unit[PAIRS];  // of the sums of the lower of the two digits that this lane has sums of

  // For weights that operand A has TIMES times; they decide which chunks of the slice are the lane's.
  template <class Weights>
  FK_DEVICE void load(const Product& p, int slice, uint32_t lane, uint8_t* stage, const Weights& weights) {
    const uint32_t column = lane / 4, sums = lane % 4;
    FK_UNROLL for (int pair = 0; pair < PAIRS; ++pair) {
      unit[pair] = 0.0f;
      FK_UNROLL for (int i = 0; i < LANE_CHUNKS; ++i) bytes[pair][i] = make_uint4(0, 0, 0, 0);
    }
    for (int pixel = 0; pixel < p.pixels; ++pixel) {
      __syncwarp();
      const float made = make_digits<Weights::ORDER>(p, pixel, slice, lane, stage) * (1.0f / Weights::TIMES);
      __syncwarp();
      FK_UNROLL for (int pair = 0; pair < PAIRS; ++pair) {
        if (pixel == 2 * pair + static_cast<int>(sums / 2)) unit[pair] = sums % 2 ? made * 65536.0f : made;
        if (pixel != 2 * pair + static_cast<int>(column / DIGITS)) continue;
        FK_UNROLL for (int i = 0; i < LANE_CHUNKS; ++i) {
          const uint8_t* const from = stage + stage_at(column % DIGITS, weights.chunk_of(i));
          bytes[pair][i] = *reinterpret_cast<const uint4*>(from);
        }
      }
    }
  }
};

}  // namespace fk::cuda::digits
