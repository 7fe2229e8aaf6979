// Words of a block of rows turned into float codes.
#pragma once
#include <optional>
#include <utility>

#include "cpu/conv/blocks.h"
#include "cpu/core/scratch.h"
#include "cpu/words/row_block.h"
#include "frozen/weight.h"

namespace fk::FK_ISA_NS {

constexpr int64_t WINDOW_WORDS = 8;  // most words decoded at once
constexpr int64_t WINDOW_COLS = 32 * WINDOW_WORDS;

namespace panel_detail {

template <int COLUMN>
FK_INLINE void put_signed(vu32 keep, vu32 sign, float* out) {
  constexpr int bit = beta(COLUMN);
  const vu32 value = (shl<31 - bit>(sign) & vu32::set(0x80000000u)) | vu32::set(0x3F800000u);
  keep_where(test(keep, vu32::set(1u << bit)), as_float(value)).store(out + COLUMN * LD);
}
template <int... COLUMN>
FK_INLINE void put_signed_word(vu32 keep, vu32 sign, float* out, std::integer_sequence<int, COLUMN...>) {
  (put_signed<COLUMN>(keep, sign, out), ...);
}

template <int COLUMN>
FK_INLINE void put_constant(vu32 keep, float* out) {
  keep_where(test(keep, vu32::set(1u << beta(COLUMN))), vf32::set(1.0f)).store(out + COLUMN * LD);
}
template <int... COLUMN>
FK_INLINE void put_constant_word(vu32 keep, float* out, std::integer_sequence<int, COLUMN...>) {
  (put_constant<COLUMN>(keep, out), ...);
}

struct NormalTable {
  alignas(64) float value[256];
  constexpr NormalTable() : value() {
    for (uint32_t byte = 0; byte < 256; ++byte) value[byte] = static_cast<float>(normal_code(byte));
  }
};
inline constexpr NormalTable NORMAL_TABLE{};

FK_INLINE vf32 normal_value(vu32 byte) {
#if FK_HAS_AVX512
  return {_mm512_i32gather_ps(byte.v, NORMAL_TABLE.value, 4)};
#elif FK_HAS_AVX2
  return {_mm256_i32gather_ps(NORMAL_TABLE.value, byte.v, 4)};
#else
  uint32_t index[VL];
  float out[VL];
  byte.store(index);
  for (int i = 0; i < VL; ++i) out[i] = NORMAL_TABLE.value[index[i]];
  return vf32::load(out);
#endif
}

template <bool NORMAL, int COLUMN>
FK_INLINE void put_byte(vu32 keep, vu32 quad, float* out) {
  const vu32 byte = shr<8 * (COLUMN & 3)>(quad) & vu32::set(255u);
  const vf32 value = NORMAL ? normal_value(byte) : to_float(byte + byte - vu32::set(255u));
  keep_where(test(keep, vu32::set(1u << beta(COLUMN))), value).store(out + COLUMN * LD);
}
template <bool NORMAL, int... COLUMN>
FK_INLINE void put_byte_word(vu32 keep, const vu32* quads, float* out, std::integer_sequence<int, COLUMN...>) {
  (put_byte<NORMAL, COLUMN>(keep, quads[COLUMN >> 2], out), ...);
}

}  // namespace panel_detail

// The codes of blocks of at most DEPTH rows: panel[column][row] with row stride LD; rows past the last are zero.
class Codes {
 public:
  Codes(const Frozen& f, Scratch& scratch)
      : f_(f),
        keep_(scratch.take<uint32_t>(WINDOW_WORDS * DEPTH)),
        draw_(scratch.take<uint32_t>(8 * WINDOW_WORDS * DEPTH)) {}
  static constexpr int64_t SCRATCH_FLOATS = 9 * WINDOW_WORDS * DEPTH;

  void start(int64_t row0, int64_t rows) {
    lanes_ = round_up(rows, TILE_LANES);
    block_.emplace(f_, row0, rows, lanes_);
    at_ = 0;
  }
  RowBlock& block() { return *block_; }
  int64_t lanes() const { return lanes_; }

  // Columns [32 * word, 32 * (word + words)), at most WINDOW_WORDS of them. Out of line, for it is long.
  __attribute__((noinline)) void decode(int64_t word, int64_t words, float* panel) {
    if (word != at_) block_->seek(word);
    at_ = word + words;
    block_->next(words, keep_, draw_);
    expand(words, panel);
  }

  // The same without the keep mask.
  void decode_all(int64_t word, int64_t words, float* panel) {
    if (word != at_) block_->seek(word);
    at_ = word + words;
    block_->next_draw(words, draw_);
    memset(keep_, 0xFF, static_cast<size_t>(words * lanes_) * sizeof(uint32_t));
    expand(words, panel);
  }

 private:
  void expand(int64_t words, float* panel) const {
    using namespace panel_detail;
    constexpr auto all = std::make_integer_sequence<int, 32>();
    for (int64_t w = 0; w < words; ++w) {
      for (int64_t lane = 0; lane < lanes_; lane += VL) {
        const vu32 keep = vu32::load(keep_ + w * lanes_ + lane);
        float* const out = panel + 32 * w * LD + lane;
        if (f_.code == SIGN_CODE) {
          put_signed_word(keep, vu32::load(draw_ + w * lanes_ + lane), out, all);
        } else if (f_.code == CONSTANT_CODE) {
          put_constant_word(keep, out, all);
        } else {
          vu32 quads[8];
          for (int i = 0; i < 8; ++i) quads[i] = vu32::load(draw_ + (8 * w + i) * lanes_ + lane);
          if (f_.code == UNIFORM_CODE) {
            put_byte_word<false>(keep, quads, out, all);
          } else {
            put_byte_word<true>(keep, quads, out, all);
          }
        }
      }
    }
  }

  const Frozen& f_;
  uint32_t *keep_, *draw_;
  std::optional<RowBlock> block_;
  int64_t lanes_ = 0, at_ = 0;
};

}  // namespace fk::FK_ISA_NS
