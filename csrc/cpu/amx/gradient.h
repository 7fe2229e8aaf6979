// dL/dW of a block on tile registers: C[column][row] += x[column][pixel] * y[pixel][row], with real numbers on both
// sides. A float32 is the exact sum of three bf16 parts of eight bits; of nine products of parts the three smallest,
// 2^-24 of a whole one, are left out. A block of pixels is summed by itself before it joins C: shorter chains.
#pragma once
#include "cpu/amx/pixels.h"

namespace fk::FK_LEVEL_NS {

class GradientTiles {
 public:
  // `parts`: 3, or 1 where both sides are bfloat16.
  GradientTiles(int parts, Scratch& scratch)
      : parts_(parts),
        x_(scratch.take<char>(PANEL_BYTES)),
        y_(scratch.take<char>(PANEL_BYTES)),
        turned_(scratch.take<float>(DEPTH * LD)),
        sums_(scratch.take<float>(SUMS_LD * SUMS_LD)),
        scope_(TILE) {}

  static constexpr int64_t scratch_bytes() { return 2 * PANEL_BYTES + 4 * (DEPTH * LD + SUMS_LD * SUMS_LD) + 256; }

  // Takes y [pixel][row] of `depth` pixels, LD floats apart. False where a value is inf or NaN: parts would make NaN of
  // products that are not.
  bool take_rows(const float* y, int64_t rows, int64_t depth) {
    rows_ = rows;
    words_ = (depth + 31) / 32;
    const __m512i pairs = _mm512_or_si512(_mm512_set1_epi32(16 << 16), each_lane(0x00010001));
    __mmask16 special = 0;
    for (int64_t r = 0; r < rows; r += TILE) {
      const __mmask16 lanes = lanes16(rows - r);
      for (int64_t pixel = 0; pixel < 32 * words_; pixel += 2) {
        const float* const from = y + pixel * LD + r;
        const __m512 a = _mm512_maskz_loadu_ps(pixel < depth ? lanes : 0, from);
        const __m512 b = _mm512_maskz_loadu_ps(pixel + 1 < depth ? lanes : 0, from + LD);
        special |= special_of(a) | special_of(b);
        char* const to = tile(y_, r / TILE, pixel / 32) + pixel % 32 / 2 * 64;
        put(a, b,
            [&](int p, __m512i x) { _mm512_storeu_si512(to + p * TILE_BYTES, _mm512_permutexvar_epi16(pairs, x)); });
      }
    }
    return !special;
  }

  // c[column * ldc + row] += products of `count` columns; x is [column][pixel], or [pixel][column] where `by_channel`,
  // LD floats apart. C is written up to multiples of TILE. False, and nothing done, where a value is inf or NaN.
  bool add(const float* x, bool by_channel, int64_t count, int64_t depth, float* c, int64_t ldc) {
    if (by_channel) transpose(x, LD, depth, count, turned_, LD);
    if (!take_columns(by_channel ? turned_ : x, count, depth)) return false;
    for (int64_t k = 0; k < count; k += 2 * TILE) {
      for (int64_t r = 0; r < rows_; r += 2 * TILE) {
        const bool two_columns = k + TILE < count, two_rows = r + TILE < rows_;
        multiply_block(tile(x_, k / TILE, 0), tile(y_, r / TILE, 0), two_columns, two_rows);
        for (int64_t i = 0; i < (two_columns ? 2 : 1) * TILE; ++i) {
          float* const to = c + (k + i) * ldc + r;
          for (int64_t j = 0; j < (two_rows ? 2 : 1) * TILE; j += VL) {
            (vf32::load(to + j) + vf32::load(sums_ + i * SUMS_LD + j)).store(to + j);
          }
        }
      }
    }
    return true;
  }

 private:
  static constexpr int64_t WORDS = DEPTH / 32, PARTS = 3, SUMS_LD = 2 * TILE;
  static constexpr int64_t PANEL_BYTES = DEPTH / TILE * WORDS * PARTS * TILE_BYTES;
  static constexpr int64_t STEP = WORDS * PARTS * TILE_BYTES;  // from 16 rows or columns to the next

  // The first part of 16 rows or columns, 32 pixels.
  static char* tile(char* panel, int64_t tile, int64_t word) { return panel + tile * STEP + word * PARTS * TILE_BYTES; }
  static __m512i each_lane(int step) {
    return _mm512_mullo_epi32(_mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0),
                              _mm512_set1_epi32(step));
  }
  static __mmask16 special_of(__m512 x) { return _mm512_fpclass_ps_mask(x, 0x99); }

  template <class Put>
  void put(__m512 a, __m512 b, const Put& store) const {
    if (parts_ == 1) {
      split<1>(a, b, store);
    } else {
      split<3>(a, b, store);
    }
  }

  bool take_columns(const float* x, int64_t count, int64_t depth) {
    __mmask16 special = 0;
    for (int64_t k = 0; k < round_up(count, TILE); ++k) {
      for (int64_t w = 0; w < words_; ++w) {
        const float* const from = x + k * LD + 32 * w;
        const int64_t left = k < count ? depth - 32 * w : 0;
        const __m512 a = _mm512_maskz_loadu_ps(lanes16(left), from);
        const __m512 b = _mm512_maskz_loadu_ps(lanes16(left - 16), from + 16);
        special |= special_of(a) | special_of(b);
        char* const to = tile(x_, k / TILE, w) + k % TILE * 64;
        put(a, b, [&](int p, __m512i part) { _mm512_storeu_si512(to + p * TILE_BYTES, part); });
      }
    }
    return !special;
  }

  // sums = products of one or two tiles of columns by one or two of rows.
  void multiply_block(const char* x, const char* y, bool two_columns, bool two_rows) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t w = 0; w < words_; ++w, x += PARTS * TILE_BYTES, y += PARTS * TILE_BYTES) {
      // The columns' parts stay in the first-level cache, those of the rows come from the second: each is loaded once.
      for (int q = 0; q < parts_; ++q) {
        _tile_loadd(6, y + q * TILE_BYTES, 64);
        if (two_rows) _tile_loadd(7, y + STEP + q * TILE_BYTES, 64);
        for (int p = 0; p + q < parts_; ++p) {
          _tile_loadd(4, x + p * TILE_BYTES, 64);
          _tile_dpbf16ps(0, 4, 6);
          if (two_rows) _tile_dpbf16ps(1, 4, 7);
          if (!two_columns) continue;
          _tile_loadd(5, x + STEP + p * TILE_BYTES, 64);
          _tile_dpbf16ps(2, 5, 6);
          if (two_rows) _tile_dpbf16ps(3, 5, 7);
        }
      }
    }
    _tile_stored(0, sums_, 4 * SUMS_LD);
    _tile_stored(1, sums_ + TILE, 4 * SUMS_LD);
    _tile_stored(2, sums_ + TILE * SUMS_LD, 4 * SUMS_LD);
    _tile_stored(3, sums_ + TILE * SUMS_LD + TILE, 4 * SUMS_LD);
  }

  const int parts_;
  char *const x_, *const y_;
  float *const turned_, *const sums_;
  int64_t rows_ = 0, words_ = 0;
  TileScope scope_;
};

}  // namespace fk::FK_LEVEL_NS
