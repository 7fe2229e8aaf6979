// Fragments of mma.m16n8k16 for convolutions: sign codes as operand A, float32 cut into parts as operand B, and sums on
// their way to y. Lane (g, t) of a warp is lane 4g + t.
#pragma once
#include "cuda/device.h"

namespace fk::cuda {

// Weights are +-2.0 or +-0.0, whose two bits are at one place in bfloat16 and in float16.
constexpr uint32_t SIGN_AND_TWO = 0xC000C000u;
constexpr float UNIT = 0.5f;  // of a code, in sums of such weights

// Of a word: bits 2f and 2f + 1 of each half are keep and sign of pair 2f of its columns, in `odd` of pair 2f + 1.
struct Fields {
  uint32_t even, odd;
};
FK_DEVICE Fields to_fields(uint32_t keep, uint32_t sign) {
  return {pick(keep, sign << 1, 0x55555555u), pick(keep >> 1, sign, 0x55555555u)};
}

// Operand A of columns 4m to 4m + 3 of the words of rows g and g + 8. The order of columns inside of a product is free
// as long as A and B agree, so each lane has four columns of its own word.
FK_DEVICE void to_operand(const Fields& upper, const Fields& lower, int m, uint32_t (&a)[4]) {
  const int up = 14 - 2 * m;
  a[0] = upper.even << up & SIGN_AND_TWO;
  a[1] = lower.even << up & SIGN_AND_TWO;
  a[2] = upper.odd << up & SIGN_AND_TWO;
  a[3] = lower.odd << up & SIGN_AND_TWO;
}

// 16 bytes of inputs, or zeros where they do not exist: without a branch.
#ifdef FK_EMULATED
FK_DEVICE uint4 load_existing(const uint4* from, bool exists) { return exists ? *from : uint4{0, 0, 0, 0}; }
#else
FK_DEVICE uint4 load_existing(const uint4* from, bool exists) {
  uint4 x = {0, 0, 0, 0};
  // volatile, so that it stays behind wait_for_inputs
  asm volatile("{.reg .pred p; setp.ne.u32 p, %5, 0; @p ld.global.v4.u32 {%0,%1,%2,%3}, [%4];}"
               : "+r"(x.x), "+r"(x.y), "+r"(x.z), "+r"(x.w)
               : "l"(from), "r"(static_cast<uint32_t>(exists)));
  return x;
}
#endif

FK_DEVICE float upper_half(float value) { return to_float(to_bits(value) & 0xFFFF0000u); }

// Two floats as pairs of bfloat16, cut off one after another, three of which sum to each exactly. Of infinity the first
// is all of it.
FK_DEVICE void to_parts(float low, float high, uint32_t (&pairs)[3]) {
  pairs[0] = permute<0x7632>(to_bits(low), to_bits(high));
  low = fabsf(low) == INFINITY ? 0.0f : low - upper_half(low);
  high = fabsf(high) == INFINITY ? 0.0f : high - upper_half(high);
  pairs[1] = permute<0x7632>(to_bits(low), to_bits(high));
  pairs[2] = permute<0x7632>(to_bits(low - upper_half(low)), to_bits(high - upper_half(high)));
}

// Each lane of a quad has four words; after this lane t has word t of each lane, in their order.
FK_DEVICE void transpose_quad(uint32_t (&words)[4], int t) {
  FK_UNROLL for (int bit = 1; bit <= 2; bit *= 2) {
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      if (i & bit) continue;
      const bool upper = t & bit;
      const uint32_t got = __shfl_xor_sync(~0u, upper ? words[i] : words[i + bit], bit);
      words[i] = upper ? got : words[i];
      words[i + bit] = upper ? words[i + bit] : got;
    }
  }
}

FK_DEVICE uint32_t pack_elements(int dtype, float low, float high) {
  return dtype == BFLOAT16 ? pack_bfloat16(low, high) : pack_float16(low, high);
}

// Two elements that lie one after another, of which `count` exist.
FK_DEVICE void write_pair(void* y, int dtype, int64_t at, bool aligned, int count, float low, float high) {
  if (aligned && count == 2) {
    if (dtype == FLOAT32) {
      *reinterpret_cast<float2*>(static_cast<float*>(y) + at) = float2{low, high};
    } else {
      *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(y) + at) = pack_elements(dtype, low, high);
    }
    return;
  }
  if (count > 0) write_element(y, dtype, at, low);
  if (count > 1) write_element(y, dtype, at + 1, high);
}

// The sums of a tile become what y holds. The lane has rows `row` and row + 8 of two pixels.
FK_DEVICE void finish_tile(const Product& p, float unit, int row, float (&sums)[4]) {
  FK_UNROLL for (int j = 0; j < 4; ++j) {
    const int channel = min(row + (j >> 1) * 8, p.rows - 1);
    sums[j] = finished(sums[j] * unit, p.gain, p.bias, p.bias_dtype, p.relu, channel);
  }
}

// Where rows lie one after another: lanes of rows g and g ^ 1 exchange, so that each has both of one pixel, whose
// place is `at`, negative where there is none; the pixel is 2t + (g & 1) of the tile.
FK_DEVICE void write_rows(const Product& p, int row, int64_t at, bool aligned, const float (&values)[4]) {
  const bool odd = row & 1;
  FK_UNROLL for (int h = 0; h < 2; ++h) {
    const float mine = odd ? values[2 * h + 1] : values[2 * h];
    const float other = __shfl_xor_sync(~0u, odd ? values[2 * h] : values[2 * h + 1], 4);
    const int first = (row & ~1) + 8 * h;
    if (at >= 0) write_pair(p.y, p.dtype, at + first, aligned, p.rows - first, odd ? other : mine, odd ? mine : other);
  }
}

}  // namespace fk::cuda
