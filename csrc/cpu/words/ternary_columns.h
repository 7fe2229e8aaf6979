// Keep and sign bits of a vector of rows in the order of their columns, and what tables of three columns take of them.
#pragma once
#include "cpu/core/scratch.h"
#include "cpu/words/natural_order.h"
#include "cpu/words/read_rows.h"

#if FK_HAS_AVX2
namespace fk::FK_ISA_NS {

#if FK_HAS_AVX512
FK_INLINE vu32 shift_left(vu32 x, uint32_t by) { return {_mm512_sllv_epi32(x.v, vu32::set(by).v)}; }
FK_INLINE vu32 shift_right(vu32 x, uint32_t by) { return {_mm512_srlv_epi32(x.v, vu32::set(by).v)}; }
// 3 bits in each byte become the sum of their weights 1, 3 and 9.
FK_INLINE vu32 weigh_bits(vu32 x) {
  const __m512i sums = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 3, 4, 9, 10, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0));
  return {_mm512_shuffle_epi8(sums, x.v)};
}
#else
FK_INLINE vu32 shift_left(vu32 x, uint32_t by) { return {_mm256_sllv_epi32(x.v, vu32::set(by).v)}; }
FK_INLINE vu32 shift_right(vu32 x, uint32_t by) { return {_mm256_srlv_epi32(x.v, vu32::set(by).v)}; }
FK_INLINE vu32 weigh_bits(vu32 x) {
  const __m256i sums = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 1, 3, 4, 9, 10, 12, 13, 0, 0, 0, 0, 0, 0, 0, 0));
  return {_mm256_shuffle_epi8(sums, x.v)};
}
#endif

// Bits 3 b .. 3 b + 2 to the low bits of byte b.
FK_INLINE vu32 spread_bits(vu32 x) {
  const vu32 halves = (x & vu32::set(0x0000003Fu)) | (shl<10>(x) & vu32::set(0x003F0000u));
  return (halves & vu32::set(0x00070007u)) | (shl<5>(halves) & vu32::set(0x07000700u));
}

class TernaryColumns {
 public:
  TernaryColumns(const Frozen& f, Scratch& scratch)
      : f_(f),
        keep_(scratch.take<uint32_t>((f.words + 1) * VL)),
        negative_(scratch.take<uint32_t>((f.words + 1) * VL)) {}
  static int64_t scratch_bytes(const Frozen& f) { return 8 * (f.words + 1) * VL + 128; }

  void read_rows(int64_t row0, int64_t rows) {
    fk::FK_ISA_NS::read_rows(f_, row0, rows, keep_, negative_);
    for (int64_t i = 0; i < f_.words * VL; i += VL) {
      const vu32 keep = natural_order(vu32::load(keep_ + i));
      keep.store(keep_ + i);
      (keep & natural_order(vu32::load(negative_ + i))).store(negative_ + i);
    }
  }

  // Columns from `column` on in the low bits; past the last column of the row, anything.
  FK_INLINE vu32 keep(int64_t column) const { return bits(keep_, column); }
  FK_INLINE vu32 negative(int64_t column) const { return bits(negative_, column); }

 private:
  FK_INLINE static vu32 bits(const uint32_t* words, int64_t column) {
    const uint32_t shift = static_cast<uint32_t>(column & 31);
    const uint32_t* const at = words + (column >> 5) * VL;
    return shift_right(vu32::load(at), shift) | shift_left(vu32::load(at + VL), 32 - shift);
  }

  const Frozen& f_;
  uint32_t *keep_, *negative_;
};

}  // namespace fk::FK_ISA_NS
#endif
