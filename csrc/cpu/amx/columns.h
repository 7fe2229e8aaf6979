// Columns of a weight turned into B tiles, for products with its transpose: a word is 32 rows under one tap, and the
// rows of a tile are columns of the weight. Words come by blocks of 32 rows, and in a block by taps.
#pragma once
#include <optional>

#include "cpu/amx/codes.h"

namespace fk::FK_LEVEL_NS {

// Columns of a group of the weight: `count` channels from `channel` on, under every tap.
struct ColumnBlock {
  int64_t row0, rows;         // of the group
  int64_t channels, channel;  // of the group, and the first
  int64_t count;
};

namespace tile_detail {

constexpr int64_t BLOCK_ROWS = 32;

// Indices of the byte shuffles around a transpose of 8 x 8 bits.
struct BitTurn {
  alignas(64) uint8_t gather[128];  // 16 squares: byte p of the words by byte q of the results
  alignas(64) uint8_t spread[128];
  constexpr BitTurn() : gather(), spread() {
    for (int p = 0; p < 4; ++p) {
      for (int q = 0; q < 4; ++q) {
        for (int bit = 0; bit < 8; ++bit) {
          const int row = 2 * (8 * (q & 1) + bit) + (q >> 1);
          // gf2p8affineqb counts the rows of a square from its last byte.
          gather[8 * (4 * p + q) + 7 - bit] = static_cast<uint8_t>(4 * row + p);
        }
      }
    }
    for (int k = 0; k < 32; ++k) {
      const int bit = k >> 1 | (k & 1) << 4;
      for (int q = 0; q < 4; ++q) spread[4 * k + q] = static_cast<uint8_t>(8 * (4 * (bit >> 3) + q) + (bit & 7));
    }
  }
};
inline constexpr BitTurn BIT_TURN{};

// Words of 32 rows to words of 32 columns in their order, with rows in the order of the format's bits.
FK_INLINE void turn_bits(const uint32_t* rows, uint32_t* columns) {
  const __m512i low = _mm512_loadu_si512(rows), high = _mm512_loadu_si512(rows + 16);
  const __m512i unit = _mm512_set1_epi64(static_cast<int64_t>(0x8040201008040201u));
  const auto turned = [&](const uint8_t* gather) {
    const __m512i squares = _mm512_permutex2var_epi8(low, _mm512_load_si512(gather), high);
    return _mm512_gf2p8affine_epi64_epi8(unit, squares, 0);
  };
  const __m512i first = turned(BIT_TURN.gather), second = turned(BIT_TURN.gather + 64);
  for (int i = 0; i < 2; ++i) {
    const __m512i spread = _mm512_load_si512(BIT_TURN.spread + 64 * i);
    _mm512_storeu_si512(columns + 16 * i, _mm512_permutex2var_epi8(first, spread, second));
  }
}

// Quads of four columns of 32 rows, [8][32 rows], to quads of four rows of 32 columns, [8][ld].
FK_INLINE void turn_bytes(const uint32_t* rows, uint32_t* columns, int64_t ld) {
  const __m512i square = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  for (int side = 0; side < 2; ++side) {
    for (int half = 0; half < 2; ++half) {
      __m512i x[4];
      for (int i = 0; i < 4; ++i) {
        x[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(rows + (4 * side + i) * BLOCK_ROWS + 16 * half), square);
      }
      // Quarter q of x[i] holds rows 4q to 4q + 3 of four columns; all of them side by side for one q.
      const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[2], x[3], 0x44);
      const __m512i c = _mm512_shuffle_i32x4(x[0], x[1], 0xEE), d = _mm512_shuffle_i32x4(x[2], x[3], 0xEE);
      uint32_t* const out = columns + 4 * half * ld + 16 * side;
      _mm512_storeu_si512(out, _mm512_shuffle_i32x4(a, b, 0x88));
      _mm512_storeu_si512(out + ld, _mm512_shuffle_i32x4(a, b, 0xDD));
      _mm512_storeu_si512(out + 2 * ld, _mm512_shuffle_i32x4(c, d, 0x88));
      _mm512_storeu_si512(out + 3 * ld, _mm512_shuffle_i32x4(c, d, 0xDD));
    }
  }
}

}  // namespace tile_detail

class ColumnTileCodes final : public TileCodes {
 public:
  ColumnTileCodes(const Frozen& f, const ColumnBlock& columns, Scratch& scratch)
      : TileCodes(columns.count),
        f_(f),
        columns_(columns),
        taps_(f.cols / columns.channels),
        ld_(window_columns(columns.count)),
        keep_(scratch.take<uint32_t>(ld_)),
        draw_(scratch.take<uint32_t>(tile_detail::draws_of(f) * ld_)),
        row_keep_(scratch.take<uint32_t>(ld_)),
        row_draw_(scratch.take<uint32_t>(tile_detail::draws_of(f) * ld_)) {}
  static int64_t scratch_bytes(const Frozen& f, int64_t count) {
    return 8 * (1 + tile_detail::draws_of(f)) * window_columns(count) + 256;
  }

  void next(int64_t words, char* out) override {
    for (int64_t i = 0; i < words; ++i, ++at_) {
      const int64_t tap = at_ % taps_;
      if (tap == 0) start(at_ / taps_ * tile_detail::BLOCK_ROWS);
      const int64_t column = tap * columns_.channels + columns_.channel;
      hold(column / 32, (column + columns_.count + 31) / 32);
      const int64_t offset = column - 32 * begin_;
      for (int64_t tile = 0; tile < row_tiles(); ++tile) {
        const int64_t lane = offset + TILE * tile;
        tile_detail::put_tile(f_.code, keep_ + lane, draw_ + lane, ld_, out + (tile * words + i) * TILE_BYTES);
      }
    }
  }

 private:
  static constexpr int64_t STEP = 16;  // words read at once: whole tiles of a plane are transposed

  // The window holds the words of one tap and up to STEP more; tiles are read past its last column.
  static int64_t window_columns(int64_t count) { return 32 * (count / 32 + 2 + STEP) + TILE; }

  void start(int64_t row) {
    const int64_t rows = std::min(tile_detail::BLOCK_ROWS, columns_.rows - row);
    rows_.emplace(f_, columns_.row0 + row, rows, tile_detail::BLOCK_ROWS);
    begin_ = end_ = 0;
  }

  // Puts words [begin, end) into the window; both ascend from call to call.
  void hold(int64_t begin, int64_t end) {
    const int64_t kept = std::max<int64_t>(end_ - begin, 0), from = begin + kept;
    if (from >= end) return;
    slide(begin - begin_, kept);
    if (from != end_) rows_->seek(from);
    // Taps side by side are read ahead: nothing between them is left out.
    const bool all = columns_.count == columns_.channels;
    const int64_t count = all ? std::min(round_up(end - from, STEP), f_.words - from) : end - from;
    rows_->next(count, row_keep_, row_draw_);
    for (int64_t w = 0; w < count; ++w) turn(w, 32 * (kept + w));
    begin_ = begin;
    end_ = from + count;
  }

  // Moves `kept` words of the window to its front, from `by` words on.
  void slide(int64_t by, int64_t kept) {
    const auto move = [&](uint32_t* row) { memmove(row, row + 32 * by, static_cast<size_t>(128 * kept)); };
    move(keep_);
    for (int64_t i = 0; i < tile_detail::draws_of(f_); ++i) move(draw_ + i * ld_);
  }

  // Word w of those just read becomes columns of the window from `column` on.
  void turn(int64_t w, int64_t column) {
    const int64_t row = w * tile_detail::BLOCK_ROWS, draws = tile_detail::draws_of(f_);
    tile_detail::turn_bits(row_keep_ + row, keep_ + column);
    if (draws == 1) tile_detail::turn_bits(row_draw_ + row, draw_ + column);
    if (draws > 1) tile_detail::turn_bytes(row_draw_ + draws * row, draw_ + column, ld_);
  }

  const Frozen& f_;
  const ColumnBlock columns_;
  const int64_t taps_, ld_;
  uint32_t *const keep_, *const draw_, *const row_keep_, *const row_draw_;
  std::optional<RowBlock> rows_;
  int64_t at_ = 0, begin_ = 0, end_ = 0;  // next word; words of the window
};

}  // namespace fk::FK_LEVEL_NS
