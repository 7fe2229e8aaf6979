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

template <int DTYPE>
FK_DEVICE uint32_t pack_pair(float low, float high) {
  return DTYPE == BFLOAT16 ? pack_bfloat16(low, high) : pack_float16(low, high);
}
// Two elements that lie one after another, aligned to both.
template <int DTYPE>
FK_DEVICE void write_pair(void* y, int64_t at, float low, float high) {
  if constexpr (DTYPE == FLOAT32) {
    *reinterpret_cast<float2*>(static_cast<float*>(y) + at) = float2{low, high};
  } else {
    *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(y) + at) = pack_pair<DTYPE>(low, high);
  }
}

// A lane has two pixels of row g. It gives one to the lane of row g ^ 1 and writes both rows of the other, which is the
// first where g is even; `at` is its place in the even row.
template <int DTYPE>
FK_DEVICE void write_exchanged(void* y, bool odd, int64_t at, bool exists, float first, float second) {
  if constexpr (DTYPE == FLOAT32) {
    const float mine = odd ? second : first, other = __shfl_xor_sync(~0u, odd ? first : second, 4);
    if (exists) write_pair<DTYPE>(y, at, odd ? other : mine, odd ? mine : other);
  } else {
    const uint32_t mine = pack_pair<DTYPE>(first, second), other = __shfl_xor_sync(~0u, mine, 4);
    const uint32_t both = __byte_perm(mine, other, odd ? 0x3276 : 0x5410);
    if (exists) *reinterpret_cast<uint32_t*>(static_cast<uint16_t*>(y) + at) = both;
  }
}

}  // namespace fk::cuda
