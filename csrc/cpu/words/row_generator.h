// The generator along a row: lanes are calls that share the row. What does not depend on the row, two rounds and a
// half, is computed once for all rows.
#pragma once
#include "frozen/format.h"
#include "cpu/simd/simd.h"
#include "cpu/words/generate.h"

#if FK_HAS_AVX2
namespace fk::FK_ISA_NS {

// Of VL calls that share a row and a purpose: the parts of rounds 1 and 2 that all rows share, even calls and odd
// apart.
struct alignas(64) CallStart {
  vu32 second[2], x1[2], x2[2], x3[2];
};

class RowGenerator {
 public:
  explicit RowGenerator(const Frozen& f) : stream_(f.stream) {
    uint32_t key0 = f.key0, key1 = f.key1;
    for (int r = 0; r < PHILOX_ROUNDS; ++r, key0 += PHILOX_W0, key1 += PHILOX_W1) key_[r][0] = key0, key_[r][1] = key1;
  }

  // `calls` are the counters c0.
  FK_INLINE CallStart start(vu32 calls, uint32_t c2) const {
    const uint64_t a1 = static_cast<uint64_t>(PHILOX_M1) * c2;
    const vu32 half[2] = {calls, odd_to_even(calls)};
    CallStart s;
    for (int h = 0; h < 2; ++h) {
      const vu32 a0 = mul_even(half[h], vu32::set(PHILOX_M0));
      const vu32 b1 = mul_even(odd_to_even(a0) ^ vu32::set(stream_ ^ key_[0][1]), vu32::set(PHILOX_M1));
      const vu32 x0 = odd_to_even(b1) ^ vu32::set(static_cast<uint32_t>(a1) ^ key_[1][0]);
      const vu32 d0 = mul_even(x0, vu32::set(PHILOX_M0));
      s.second[h] = a0 ^ vu32::set(key_[1][1]);
      s.x1[h] = b1 ^ vu32::set(key_[2][0]);
      s.x2[h] = odd_to_even(d0) ^ vu32::set(key_[2][1]);
      s.x3[h] = d0;
    }
    return s;
  }

  // The calls of N starts, each for a row, lanes in order. Two at a time keep the multipliers busy.
  template <int N>
  FK_INLINE void draw(const CallStart* const (&starts)[N], const uint32_t (&rows)[N], uint32_t c2,
                      Four (&out)[N]) const {
    const uint32_t first = static_cast<uint32_t>(static_cast<uint64_t>(PHILOX_M1) * c2 >> 32) ^ key_[0][0];
    const vu32 m0 = vu32::set(PHILOX_M0), m1 = vu32::set(PHILOX_M1);
    struct {
      vu32 x0, x1, x2, x3;
    } half[2 * N];
#pragma GCC unroll 4
    for (int i = 0; i < 2 * N; ++i) {
      const CallStart& start = *starts[i / 2];
      const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * (first ^ rows[i / 2]);
      const vu32 high = vu32::set(static_cast<uint32_t>(p0 >> 32)), low = vu32::set(static_cast<uint32_t>(p0));
      const vu32 p1 = mul_even(start.second[i % 2] ^ high, m1);
      half[i] = {odd_to_even(p1) ^ start.x1[i % 2], p1, start.x2[i % 2] ^ low, start.x3[i % 2]};
    }
#pragma GCC unroll 10
    for (int r = 3; r < PHILOX_ROUNDS - 1; ++r) {
      const vu32 k0 = vu32::set(key_[r][0]), k1 = vu32::set(key_[r][1]);
#pragma GCC unroll 4
      for (auto& h : half) {
        const vu32 q0 = mul_even(h.x0, m0), q1 = mul_even(h.x2, m1);
        h = {xor3(odd_to_even(q1), h.x1, k0), q1, xor3(odd_to_even(q0), h.x3, k1), q0};
      }
    }
    // The last round joins even and odd calls before it adds the key.
    const vu32 k0 = vu32::set(key_[PHILOX_ROUNDS - 1][0]), k1 = vu32::set(key_[PHILOX_ROUNDS - 1][1]);
#pragma GCC unroll 2
    for (int i = 0; i < N; ++i) {
      const auto &e = half[2 * i], &o = half[2 * i + 1];
      const vu32 e0 = mul_even(e.x0, m0), e1 = mul_even(e.x2, m1), o0 = mul_even(o.x0, m0), o1 = mul_even(o.x2, m1);
      out[i] = {{xor3(merge_odd(e1, o1), merge_even(e.x1, o.x1), k0), merge_even(e1, o1),
                 xor3(merge_odd(e0, o0), merge_even(e.x3, o.x3), k1), merge_even(e0, o0)}};
    }
  }

 private:
  uint32_t key_[PHILOX_ROUNDS][2];
  uint32_t stream_;
};

}  // namespace fk::FK_ISA_NS
#endif
