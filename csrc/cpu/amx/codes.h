// Words of a weight turned into B tiles: [row tile][word][16 pairs of columns][16 rows][2] bf16 codes. Pair j of
// a word is columns 2j and 2j + 1: bit j of both halves of the word, which is why the format orders bits this way.
#pragma once
#include "cpu/amx/tiles.h"
#include "cpu/core/scratch.h"
#include "cpu/words/row_block.h"

namespace fk::FK_LEVEL_NS {

namespace tile_detail {

constexpr uint16_t ONE = 0x3F80;  // 1.0 in bf16

template <int PAIR>
FK_INLINE void put_signed_pair(__m512i keep, __m512i sign, char* out) {
  const __mmask32 kept = _mm512_test_epi16_mask(keep, _mm512_set1_epi16(static_cast<int16_t>(1u << PAIR)));
  // (sign bit & 0x8000) | 1.0
  const __m512i value =
      _mm512_ternarylogic_epi32(_mm512_slli_epi16(sign, 15 - PAIR), _mm512_set1_epi16(static_cast<int16_t>(0x8000)),
                                _mm512_set1_epi16(ONE), 0xEA);
  _mm512_store_si512(out + PAIR * WORD_BYTES, _mm512_maskz_mov_epi16(kept, value));
}
template <int... PAIR>
FK_INLINE void put_signed_tile(__m512i keep, __m512i sign, char* out, std::integer_sequence<int, PAIR...>) {
  (put_signed_pair<PAIR>(keep, sign, out), ...);
}

template <int PAIR>
FK_INLINE void put_constant_pair(__m512i keep, char* out) {
  const __mmask32 kept = _mm512_test_epi16_mask(keep, _mm512_set1_epi16(static_cast<int16_t>(1u << PAIR)));
  _mm512_store_si512(out + PAIR * WORD_BYTES, _mm512_maskz_mov_epi16(kept, _mm512_set1_epi16(ONE)));
}
template <int... PAIR>
FK_INLINE void put_constant_tile(__m512i keep, char* out, std::integer_sequence<int, PAIR...>) {
  (put_constant_pair<PAIR>(keep, out), ...);
}

// 2 * byte - 255 as a float, from byte COLUMN of each quad.
template <int COLUMN>
FK_INLINE __m512i uniform_float(__m512i quad) {
  const __m512i byte = _mm512_and_si512(_mm512_srli_epi32(quad, 8 * COLUMN), _mm512_set1_epi32(255));
  const __m512i twice = _mm512_sub_epi32(_mm512_add_epi32(byte, byte), _mm512_set1_epi32(255));
  return _mm512_castps_si512(_mm512_cvtepi32_ps(twice));
}

template <int PAIR>
FK_INLINE void put_byte_pair(__m512i keep, const __m512i* quads, char* out) {
  const __mmask32 kept = _mm512_test_epi16_mask(keep, _mm512_set1_epi16(static_cast<int16_t>(1u << PAIR)));
  const __m512i quad = quads[PAIR / 2];
  const __m512i even = uniform_float<2 * (PAIR & 1)>(quad), odd = uniform_float<2 * (PAIR & 1) + 1>(quad);
  // Codes have eight significant bits, so the upper halves of their floats are exact.
  const __m512i both = _mm512_mask_blend_epi16(0xAAAAAAAAu, _mm512_srli_epi32(even, 16), odd);
  _mm512_store_si512(out + PAIR * WORD_BYTES, _mm512_maskz_mov_epi16(kept, both));
}
template <int... PAIR>
FK_INLINE void put_byte_tile(__m512i keep, const __m512i* quads, char* out, std::integer_sequence<int, PAIR...>) {
  (put_byte_pair<PAIR>(keep, quads, out), ...);
}

// The byte whose uniform code is the normal code of byte 128 + i.
struct NormalBytes {
  alignas(64) uint8_t value[128];
  constexpr NormalBytes() : value() {
    for (uint32_t i = 0; i < 128; ++i) value[i] = static_cast<uint8_t>((normal_code(128 + i) + 255) / 2);
  }
};
inline constexpr NormalBytes NORMAL_BYTES{};

// Bytes whose uniform codes are the normal codes of `bytes`; the table is odd about 127.5, so half of it will do.
FK_INLINE __m512i normal_to_uniform(__m512i bytes) {
  const __m512i low = _mm512_load_si512(NORMAL_BYTES.value), high = _mm512_load_si512(NORMAL_BYTES.value + 64);
  const __m512i ones = _mm512_set1_epi32(-1);
  const __mmask64 upper = _mm512_movepi8_mask(bytes);
  const __m512i found =
      _mm512_permutex2var_epi8(low, _mm512_mask_blend_epi8(upper, _mm512_xor_si512(bytes, ones), bytes), high);
  return _mm512_mask_blend_epi8(upper, _mm512_xor_si512(found, ones), found);
}

// 32-bit draws of a word of one row.
FK_INLINE int64_t draws_of(const Frozen& f) { return f.code == SIGN_CODE ? 1 : f.code == CONSTANT_CODE ? 0 : 8; }

// One word of 16 rows: sign words at `draw`, or 8 quads of bytes `ld` words apart.
FK_INLINE void put_tile(int code, const uint32_t* keep_words, const uint32_t* draw, int64_t ld, char* out) {
  constexpr auto all = std::make_integer_sequence<int, 16>();
  const __m512i keep = _mm512_loadu_si512(keep_words);
  if (code == SIGN_CODE) {
    put_signed_tile(keep, _mm512_loadu_si512(draw), out, all);
  } else if (code == CONSTANT_CODE) {
    put_constant_tile(keep, out, all);
  } else {
    __m512i quads[8];
    for (int i = 0; i < 8; ++i) {
      quads[i] = _mm512_loadu_si512(draw + i * ld);
      if (code == NORMAL_CODE) quads[i] = normal_to_uniform(quads[i]);
    }
    put_byte_tile(keep, quads, out, all);
  }
}

}  // namespace tile_detail

// The codes of the rows of a product, word by word from the first.
class TileCodes {
 public:
  explicit TileCodes(int64_t rows) : row_tiles_(round_up(rows, TILE) / TILE) {}
  TileCodes(const TileCodes&) = delete;
  TileCodes& operator=(const TileCodes&) = delete;
  virtual ~TileCodes() = default;

  int64_t row_tiles() const { return row_tiles_; }

  // The next `words` words. No call may cross a multiple of MAX_CHUNK_WORDS.
  virtual void next(int64_t words, char* out) = 0;

 private:
  const int64_t row_tiles_;
};

// Rows [row0, row0 + rows) of a weight.
class RowTileCodes final : public TileCodes {
 public:
  RowTileCodes(const Frozen& f, int64_t row0, int64_t rows, Scratch& scratch)
      : TileCodes(rows),
        f_(f),
        lanes_(round_up(rows, TILE)),
        keep_(scratch.take<uint32_t>(WINDOW * lanes_)),
        draw_(scratch.take<uint32_t>(tile_detail::draws_of(f) * WINDOW * lanes_)),
        block_(f, row0, rows, lanes_) {
    block_.seek(0);
  }
  static int64_t scratch_bytes(const Frozen& f, int64_t rows) {
    return 4 * (1 + tile_detail::draws_of(f)) * WINDOW * round_up(rows, TILE) + 128;
  }

  void next(int64_t words, char* out) override {
    const int64_t draws = tile_detail::draws_of(f_);
    const int64_t first = at_ % WINDOW;
    if (first == 0) block_.next(std::min(WINDOW, f_.words - at_), keep_, draw_);
    at_ += words;
    for (int64_t lane = 0; lane < lanes_; lane += TILE) {
      for (int64_t w = first; w < first + words; ++w, out += TILE_BYTES) {
        tile_detail::put_tile(f_.code, keep_ + w * lanes_ + lane, draw_ + draws * w * lanes_ + lane, lanes_, out);
      }
    }
  }

 private:
  // Words read at once: whole tiles of a plane are transposed.
  static constexpr int64_t WINDOW = 16;
  static_assert(WINDOW % MAX_CHUNK_WORDS == 0, "chunks do not cross windows");

  const Frozen& f_;
  const int64_t lanes_;
  uint32_t *const keep_, *const draw_;
  RowBlock block_;
  int64_t at_ = 0;
};

}  // namespace fk::FK_LEVEL_NS
