// Generator calls of lanes that walk rows: Philox in three pieces, of which those of a column and of a row alone are
// made once for many calls. All bits are those of frozen/philox.h.
#pragma once
#include "cuda/device.h"

namespace fk::cuda {

// Counters of a call are (column, row, purpose, stream). After two rounds the second product's words stand apart:
// column and row meet in one XOR each.
struct Draws {
  const int32_t* header;
  uint32_t purpose, first_key0, first_key1;  // the rest is read again for a column: registers are scarcer

  FK_DEVICE Draws(const int32_t* header, uint32_t purpose) : header(header), purpose(purpose) {
    const Seed seed = read_seed(header);
    first_key0 = seed.key0, first_key1 = seed.key1;
    this->purpose |= seed.generation << 8;
  }

  // What the first three rounds make of a column, with their keys.
  FK_DEVICE uint4 begin_column(uint32_t column) const {
    const uint64_t constant = product(PHILOX_M1, purpose), first = product(PHILOX_M0, column);
    const uint64_t second = product(PHILOX_M1, high(first) ^ read_seed(header).stream ^ key1(0));
    const uint64_t third = product(PHILOX_M0, high(second) ^ low(constant) ^ key0(1));
    return make_uint4(low(first) ^ key1(1), low(second) ^ key0(2), high(third) ^ key1(2), low(third));
  }
  FK_DEVICE uint2 begin_row(uint32_t row) const {
    const uint64_t second = product(PHILOX_M0, high(product(PHILOX_M1, purpose)) ^ row ^ key0(0));
    return make_uint2(high(second), low(second));
  }
  FK_DEVICE uint4 finish(const uint4& column, const uint2& row) const {
    const uint64_t third = product(PHILOX_M1, row.x ^ column.x);
    uint32_t c0 = high(third) ^ column.y, c1 = low(third), c2 = column.z ^ row.y, c3 = column.w;
    FK_UNROLL for (int round = 3; round < PHILOX_ROUNDS; ++round) {
      const uint64_t p0 = product(PHILOX_M0, c0), p1 = product(PHILOX_M1, c2);
      c0 = high(p1) ^ c1 ^ key0(round), c2 = high(p0) ^ c3 ^ key1(round);
      c1 = low(p1), c3 = low(p0);
    }
    return make_uint4(c0, c1, c2, c3);
  }

 private:
  static FK_DEVICE uint64_t product(uint32_t a, uint32_t b) { return static_cast<uint64_t>(a) * b; }
  static FK_DEVICE uint32_t high(uint64_t value) { return static_cast<uint32_t>(value >> 32); }
  static FK_DEVICE uint32_t low(uint64_t value) { return static_cast<uint32_t>(value); }
  FK_DEVICE uint32_t key0(uint32_t round) const { return first_key0 + round * PHILOX_W0; }
  FK_DEVICE uint32_t key1(uint32_t round) const { return first_key1 + round * PHILOX_W1; }
};

}  // namespace fk::cuda
