// The generator with one row per lane, and the partition masks made from it.
#pragma once
#include <initializer_list>

#include "frozen/weight.h"
#include "cpu/simd/simd.h"

namespace fk::FK_ISA_NS {

struct Four {
  vu32 x[4];
};

// Philox for VL rows that share c0, c2 and c3. Lanes differ in c1 alone, so the first three rounds are partly scalar
// and partly the same for every c0; products live in 64-bit lanes, even and odd rows apart, and their garbage high
// halves are ignored.
class Generator {
 public:
  Generator(uint32_t key0, uint32_t key1, uint32_t stream) : stream_(stream) {
    for (int r = 0; r < PHILOX_ROUNDS; ++r, key0 += PHILOX_W0, key1 += PHILOX_W1) key_[r][0] = key0, key_[r][1] = key1;
  }
  explicit Generator(const Frozen& f) : Generator(f.key0, f.key1, f.stream) {}

  // What rows and c2 decide: the product of round 1.
  struct Rows {
    vu32 low[2], high[2];
  };
  FK_INLINE Rows begin_rows(vu32 rows, uint32_t c2) const {
    const vu32 x0 = rows ^ vu32::set(high(product(PHILOX_M1, c2)) ^ key_[0][0]);
    const vu32 even = mul_even(x0, vu32::set(PHILOX_M0)), odd = mul_even(odd_to_even(x0), vu32::set(PHILOX_M0));
    return {{even, odd}, {odd_to_even(even), odd_to_even(odd)}};
  }

  // What c0 and c2 decide: a word to xor with in each of these places.
  struct Columns {
    uint32_t x2_of_round_1, x0_of_round_2, x2_of_round_2, x2_of_round_3;
  };
  FK_INLINE Columns begin_columns(uint32_t c0, uint32_t c2) const {
    const uint64_t a = product(PHILOX_M0, c0);
    const uint64_t b = product(PHILOX_M1, high(a) ^ stream_ ^ key_[0][1]);
    const uint64_t d = product(PHILOX_M0, high(b) ^ low(product(PHILOX_M1, c2)) ^ key_[1][0]);
    return {low(a) ^ key_[1][1], low(b) ^ key_[2][0], high(d) ^ key_[2][1], low(d) ^ key_[3][1]};
  }

  // Of c0 to c0 + VL - 1.
  struct ManyColumns {
    uint32_t place[4][VL];
    FK_INLINE Columns operator[](int64_t i) const { return {place[0][i], place[1][i], place[2][i], place[3][i]}; }
  };
  FK_INLINE ManyColumns begin_many_columns(uint32_t c0, uint32_t c2) const {
    const vu32 x0 = vu32::iota() + vu32::set(c0);
    vu32 a[2], b[2], d[2];
    for (int h = 0; h < 2; ++h) {
      a[h] = mul_even(h ? odd_to_even(x0) : x0, vu32::set(PHILOX_M0));
      b[h] = mul_even(odd_to_even(a[h]) ^ vu32::set(stream_ ^ key_[0][1]), vu32::set(PHILOX_M1));
      const uint32_t x1 = low(product(PHILOX_M1, c2));
      d[h] = mul_even(odd_to_even(b[h]) ^ vu32::set(x1 ^ key_[1][0]), vu32::set(PHILOX_M0));
    }
    ManyColumns many;
    (merge_even(a[0], a[1]) ^ vu32::set(key_[1][1])).store(many.place[0]);
    (merge_even(b[0], b[1]) ^ vu32::set(key_[2][0])).store(many.place[1]);
    (merge_odd(d[0], d[1]) ^ vu32::set(key_[2][1])).store(many.place[2]);
    (merge_even(d[0], d[1]) ^ vu32::set(key_[3][1])).store(many.place[3]);
    return many;
  }

  FK_INLINE Four operator()(const Columns& columns, const Rows& rows) const {
    Half half[2];
    for (int h = 0; h < 2; ++h) {
      const vu32 p1 = mul_even(rows.high[h] ^ vu32::set(columns.x2_of_round_1), vu32::set(PHILOX_M1));
      Half& x = half[h] = {odd_to_even(p1) ^ vu32::set(columns.x0_of_round_2), p1,
                           rows.low[h] ^ vu32::set(columns.x2_of_round_2), vu32::set(0)};
      x.round(key_[3][0], columns.x2_of_round_3);
    }
    for (int r = 4; r < PHILOX_ROUNDS - 1; ++r) {
      for (Half& x : half) x.round(key_[r][0], key_[r][1]);
    }
    // The last round's words are needed in the lanes of their rows.
    const vu32 x1 = merge_even(half[0].x1, half[1].x1), x3 = merge_even(half[0].x3, half[1].x3);
    const Half even = half[0].products(), odd = half[1].products();
    constexpr int LAST = PHILOX_ROUNDS - 1;
    return {{xor3(merge_odd(even.x1, odd.x1), x1, vu32::set(key_[LAST][0])), merge_even(even.x1, odd.x1),
             xor3(merge_odd(even.x3, odd.x3), x3, vu32::set(key_[LAST][1])), merge_even(even.x3, odd.x3)}};
  }
  FK_INLINE Four operator()(uint32_t c0, vu32 rows, uint32_t c2) const {
    return (*this)(begin_columns(c0, c2), begin_rows(rows, c2));
  }

 private:
  struct Half {
    vu32 x0, x1, x2, x3;

    FK_INLINE Half products() const {
      return {x0, mul_even(x2, vu32::set(PHILOX_M1)), x2, mul_even(x0, vu32::set(PHILOX_M0))};
    }
    FK_INLINE void round(uint32_t key0, uint32_t key1) {
      const Half next = products();
      *this = {xor3(odd_to_even(next.x1), x1, vu32::set(key0)), next.x1,
               xor3(odd_to_even(next.x3), x3, vu32::set(key1)), next.x3};
    }
  };
  static FK_INLINE uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
  static FK_INLINE uint32_t low(uint64_t x) { return static_cast<uint32_t>(x); }
  static FK_INLINE uint32_t high(uint64_t x) { return static_cast<uint32_t>(x >> 32); }

  uint32_t key_[PHILOX_ROUNDS][2];
  uint32_t stream_;
};

// Compares bit-sliced draws u with both thresholds, four planes at a time from the last up.
class PlaneCompare {
 public:
  PlaneCompare(uint32_t tau_prune, uint32_t tau_freeze) {
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
  explicit PlaneCompare(const Frozen& f) : PlaneCompare(f.tau_prune, f.tau_freeze) {}

  int calls() const { return calls_; }  // generator calls that decide
  // Where u < tau_prune and u < tau_freeze before any plane is added.
  FK_INLINE vu32 prune_start() const { return vu32::set(start_prune_); }
  FK_INLINE vu32 freeze_start() const { return vu32::set(start_freeze_); }

  // The planes of call q.
  FK_INLINE void add(int q, const Four& four, vu32& prune, vu32& freeze) const {
    for (int i = 3; i >= 0; --i) {
      // A set bit of tau makes "plane clear or less below", a clear one "both".
      prune = majority_not(four.x[i], prune, vu32::set(bit_[4 * q + i][0]));
      freeze = majority_not(four.x[i], freeze, vu32::set(bit_[4 * q + i][1]));
    }
  }

 private:
  int calls_;
  uint32_t start_prune_, start_freeze_;
  uint32_t bit_[PLANES][2];
};

// The partition of 32 columns of VL rows.
class Partition {
 public:
  Partition(const Generator& generator, uint32_t tau_prune, uint32_t tau_freeze)
      : generator_(generator), planes_(tau_prune, tau_freeze) {}

  // Bits where u < tau_prune and where u < tau_freeze.
  FK_INLINE void below(int64_t w, vu32 rows, vu32& prune, vu32& freeze) const {
    prune = planes_.prune_start();
    freeze = planes_.freeze_start();
    for (int q = planes_.calls() - 1; q >= 0; --q) {
      const uint32_t purpose = PARTITION_PURPOSE + static_cast<uint32_t>(q);
      planes_.add(q, generator_(static_cast<uint32_t>(w), rows, purpose), prune, freeze);
    }
  }

 private:
  const Generator& generator_;
  PlaneCompare planes_;
};

}  // namespace fk::FK_ISA_NS
