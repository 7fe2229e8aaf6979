// Fragments of mma.m16n8k16 for convolutions: float32 cut into parts as operand B, and sums on their way to y. Lane
// (g, t) of a warp is lane 4g + t.
#pragma once
#include "cuda/halves.h"

namespace fk::cuda {

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

// Two floats as pairs of their three parts. What is left of the second part is finite.
FK_DEVICE void to_parts(float low, float high, uint32_t (&pairs)[3]) {
  pairs[0] = cut_pair(low, high);
  low = left_of(low), high = left_of(high);
  pairs[1] = cut_pair(low, high);
  pairs[2] = cut_pair(low - upper_half(low), high - upper_half(high));
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
