#include "cpu/lookup/pack.h"

#include "cpu/core/scratch.h"
#include "cpu/lookup/index.h"
#include "cpu/words/ternary_columns.h"

#if FK_USES_LOOKUP
namespace fk::FK_LEVEL_NS {

namespace {

#if FK_HAS_VBMI

// Keep and sign bits, each of the first, the third and the middle column, to the index of their weights.
constexpr std::array<uint8_t, 64> indices_of_bits() {
  std::array<uint8_t, 64> all{};
  constexpr int weight[TRIPLE] = {1, 9, 3};
  for (size_t bits = 0; bits < 64; ++bits) {
    int value = 0;
    for (size_t i = 0; i < TRIPLE; ++i) value += (bits >> i & 1) ? ((bits >> (3 + i) & 1) ? -weight[i] : weight[i]) : 0;
    all[bits] = static_cast<uint8_t>(value < 0 ? 16 - value : value);
  }
  return all;
}
alignas(64) constexpr std::array<uint8_t, 64> INDEX = indices_of_bits();

// The words of 16 rows as they come: even columns in the lower half of a word, odd ones in the upper.
class Columns {
 public:
  Columns(const Frozen& f, Scratch& scratch)
      : f_(f), keep_(scratch.take<uint32_t>((f.words + 1) * VL)), sign_(scratch.take<uint32_t>((f.words + 1) * VL)) {
    for (int parity = 0; parity < 2; ++parity) places_[parity] = Places(parity);
  }
  static int64_t scratch_bytes(const Frozen& f) { return 8 * (f.words + 1) * VL + 128; }

  void read_rows(int64_t row0, int64_t rows) { fk::FK_ISA_NS::read_rows(f_, row0, rows, keep_, sign_); }

  // Byte b of a lane: the index of three columns of its row, from `column` + 3 b on.
  FK_INLINE vu32 indices(int64_t column) const {
    const Places& at = places_[column & 1];
    const __m512i keep = window(keep_, column), sign = window(sign_, column);
    const __m512i kept = pick<0x03>(at.keep_outer, at.keep_middle, keep);
    const __m512i signs = pick<0x18>(at.sign_outer, at.sign_middle, sign);
    const __m512i bits = _mm512_ternarylogic_epi32(_mm512_set1_epi8(0x07), kept, signs, WHERE);
    return {_mm512_permutexvar_epi8(bits, _mm512_load_si512(INDEX.data()))};
  }

 private:
  static constexpr int WHERE = 0xCA;  // a ? b : c

  // Where the bits of three columns lie in the words of two rows from an even column on. The first and the third are
  // neighbours in one half, the middle one is in the other. Keep bits go to bits 0 to 2 of a byte, signs to 3 to 5.
  struct Places {
    __m512i keep_outer, keep_middle, sign_outer, sign_middle;

    Places() = default;
    explicit Places(int parity) {
      alignas(64) uint8_t outer[64], middle[64];
      for (int i = 0; i < 64; ++i) {
        const int column = parity + TRIPLE * (i % 4), word = i / 4 % 2 * 32;
        outer[i] = static_cast<uint8_t>(word + beta(column));
        middle[i] = static_cast<uint8_t>(word + beta(column + 1));
      }
      const __m512i o = _mm512_load_si512(outer), m = _mm512_load_si512(middle);
      keep_outer = o, keep_middle = _mm512_sub_epi8(m, _mm512_set1_epi8(2));
      sign_outer = _mm512_sub_epi8(o, _mm512_set1_epi8(3)), sign_middle = _mm512_sub_epi8(m, _mm512_set1_epi8(5));
    }
  };

  // Words that begin with the even column at or before `column`: both halves of a word move by as many bits.
  FK_INLINE static __m512i window(const uint32_t* words, int64_t column) {
    const uint32_t* const at = words + (column >> 5) * VL;
    return _mm512_shrdv_epi16(_mm512_load_si512(at), _mm512_load_si512(at + VL),
                              _mm512_set1_epi16(static_cast<int16_t>((column & 31) >> 1)));
  }
  template <int OUTER>
  FK_INLINE static __m512i pick(__m512i outer, __m512i middle, __m512i words) {
    return _mm512_ternarylogic_epi32(_mm512_set1_epi8(OUTER), _mm512_multishift_epi64_epi8(outer, words),
                                     _mm512_multishift_epi64_epi8(middle, words), WHERE);
  }

  const Frozen& f_;
  uint32_t *keep_, *sign_;
  Places places_[2];
};

#else

class Columns : public TernaryColumns {
 public:
  using TernaryColumns::TernaryColumns;

  FK_INLINE vu32 indices(int64_t column) const {
    // Sum of 3^i (keep_i - 2 negative_i) as its size, and 16 where it is below zero.
    const __m512i below = weigh_bits(spread_bits(negative(column))).v;
    const __m512i value = _mm512_sub_epi8(weigh_bits(spread_bits(keep(column))).v, _mm512_add_epi8(below, below));
    return vu32{_mm512_abs_epi8(value)} | (vu32{value} & vu32::set(0x10101010u));
  }
};

#endif

// The runs of one chunk; quads lie `stride` bytes apart.
void pack_chunk(const Columns& columns, const LookupShape& shape, int64_t chunk, uint8_t* out, int64_t stride) {
  const int64_t groups = shape.groups_of(chunk), run = shape.run_taps * groups;
  for (int64_t entry = 0; entry < shape.entries; ++entry) {
    int64_t column = entry * shape.run_taps * shape.channels + TRIPLE * chunk * shape.chunk, group = 0;
    // Past the last group of a tap comes the first of the next.
    const auto step = [&](int64_t count) {
      group += count;
      column += TRIPLE * count;
      if (group == groups) {
        group = 0;
        column += shape.channels - TRIPLE * groups;
      }
    };
    for (int64_t first = 0; first < run; first += QUAD, out += stride) {
      if (group + QUAD <= groups) {
        columns.indices(column).store(out);
        step(QUAD);
        continue;
      }
      vu32 four = vu32::set(0);
      for (int64_t b = 0; b < std::min(QUAD, run - first); ++b) {
        four = four | shift_left(columns.indices(column) & vu32::set(0xFF), static_cast<uint32_t>(8 * b));
        step(1);
      }
      four.store(out);
    }
  }
}

}  // namespace

void pack_indices(const Frozen& f, const LookupPanel& panel, int64_t block, int64_t vector, int64_t vectors,
                  int64_t row0, int64_t rows) {
  Scratch scratch(Columns::scratch_bytes(f));
  Columns columns(f, scratch);
  columns.read_rows(row0, rows);
  for (int64_t c = 0; c < panel.shape.chunks(); ++c) {
    pack_chunk(columns, panel.shape, c, panel.at(c, block) + 64 * vector, 64 * vectors);
  }
}

}  // namespace fk::FK_LEVEL_NS
#endif
