// The generator with one row per lane, and the partition masks made from it.
#pragma once
#include "frozen/weight.h"
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

struct Four {
  vu32 x[4];
};

// Philox for VL rows that share c0, c2 and c3. The counter differs between lanes in c1 alone, so the first three rounds
// are partly scalar; products live in 64-bit lanes, even and odd rows apart, and their garbage high halves are ignored.
class Generator {
 public:
  Generator(uint32_t key0, uint32_t key1, uint32_t stream) : stream_(stream) {
    for (int r = 0; r < PHILOX_ROUNDS; ++r, key0 += PHILOX_W0, key1 += PHILOX_W1) key_[r][0] = key0, key_[r][1] = key1;
  }
  explicit Generator(const Frozen& f) : Generator(f.key0, f.key1, f.stream) {}

  FK_INLINE Four operator()(uint32_t c0, vu32 rows, uint32_t c2) const {
    const uint64_t a0 = static_cast<uint64_t>(PHILOX_M0) * c0, a1 = static_cast<uint64_t>(PHILOX_M1) * c2;
    const uint32_t x2 = high(a0) ^ stream_ ^ key_[0][1];
    const uint64_t b1 = static_cast<uint64_t>(PHILOX_M1) * x2;
    const uint32_t x0 = high(b1) ^ low(a1) ^ key_[1][0];
    const uint64_t d0 = static_cast<uint64_t>(PHILOX_M0) * x0;
    const vu32 first = rows ^ vu32::set(high(a1) ^ key_[0][0]);
    Half half[2] = {half_start(first, a0, b1, d0), half_start(odd_to_even(first), a0, b1, d0)};
    for (int r = 3; r < PHILOX_ROUNDS; ++r) {
      const vu32 k0 = vu32::set(key_[r][0]), k1 = vu32::set(key_[r][1]);
      for (Half& h : half) {
        const vu32 p0 = mul_even(h.x0, vu32::set(PHILOX_M0)), p1 = mul_even(h.x2, vu32::set(PHILOX_M1));
        h.x0 = xor3(odd_to_even(p1), h.x1, k0);
        h.x2 = xor3(odd_to_even(p0), h.x3, k1);
        h.x1 = p1;
        h.x3 = p0;
      }
    }
    return {{merge_even(half[0].x0, half[1].x0), merge_even(half[0].x1, half[1].x1), merge_even(half[0].x2, half[1].x2),
             merge_even(half[0].x3, half[1].x3)}};
  }

 private:
  struct Half {
    vu32 x0, x1, x2, x3;
  };
  static FK_INLINE uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
  static FK_INLINE uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

  // The vector part of rounds 1 and 2, from x0 of round 0.
  FK_INLINE Half half_start(vu32 x0, uint64_t a0, uint64_t b1, uint64_t d0) const {
    const vu32 p0 = mul_even(x0, vu32::set(PHILOX_M0));
    const vu32 p1 = mul_even(odd_to_even(p0) ^ vu32::set(low(a0) ^ key_[1][1]), vu32::set(PHILOX_M1));
    return {odd_to_even(p1) ^ vu32::set(low(b1) ^ key_[2][0]), p1, p0 ^ vu32::set(high(d0) ^ key_[2][1]),
            vu32::set(low(d0))};
  }

  uint32_t key_[PHILOX_ROUNDS][2];
  uint32_t stream_;
};

// Compares the bit-sliced draw u of 32 columns of VL rows with both thresholds.
class Partition {
 public:
  Partition(const Generator& generator, uint32_t tau_prune, uint32_t tau_freeze) : generator_(generator) {
    // Trailing zero bits of both thresholds decide nothing, so their planes are not drawn.
    uint32_t significant = 0;
    for (const uint32_t tau : {tau_prune, tau_freeze}) significant |= tau < FULL_THRESHOLD ? tau : 0;
    const int bits = significant ? PLANES - __builtin_ctz(significant) : 0;
    calls_ = (bits + 3) / 4;
    start_prune_ = tau_prune >= FULL_THRESHOLD ? ~0u : 0u;
    start_freeze_ = tau_freeze >= FULL_THRESHOLD ? ~0u : 0u;
    for (int p = 0; p < PLANES; ++p) {
      bit_[p][0] = start_prune_ | (0u - (tau_prune >> (PLANES - 1 - p) & 1u));
      bit_[p][1] = start_freeze_ | (0u - (tau_freeze >> (PLANES - 1 - p) & 1u));
    }
  }

  // Bits where u < tau_prune and where u < tau_freeze.
  FK_INLINE void below(int64_t w, vu32 rows, vu32& prune, vu32& freeze) const {
    prune = vu32::set(start_prune_);
    freeze = vu32::set(start_freeze_);
    for (int q = calls_ - 1; q >= 0; --q) {
      const Four four = generator_(static_cast<uint32_t>(w), rows, PARTITION_PURPOSE + static_cast<uint32_t>(q));
      for (int i = 3; i >= 0; --i) {
        // From the last plane up: a set bit of tau makes "plane clear or less below", a clear one "both".
        prune = majority_not(four.x[i], prune, vu32::set(bit_[4 * q + i][0]));
        freeze = majority_not(four.x[i], freeze, vu32::set(bit_[4 * q + i][1]));
      }
    }
  }

 private:
  const Generator& generator_;
  int calls_;
  uint32_t start_prune_, start_freeze_;
  uint32_t bit_[PLANES][2];
};

}  // namespace fk::FK_ISA_NS
