// Tile registers (AMX): C[16 pixels][16 rows] += A[16 pixels][32 columns] * B[32 columns][16 rows], bf16 into fp32.
// Codes are exact in bf16, and a float32 is the exact sum of three bf16 parts of eight bits each, so three products
// give float32 accuracy; float16 needs two parts and bf16 one.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "cpu/conv/pixels.h"

namespace fk::FK_LEVEL_NS {

constexpr int TILE = 16;                // pixels or rows of a tile
constexpr int64_t TILE_BYTES = 1024;    // TILE rows of 64 bytes
constexpr int64_t WORD_BYTES = 64;      // 32 columns of bf16
constexpr int64_t MAX_CHUNK_WORDS = 8;  // see chunk_words

constexpr int parts_of(int dtype) { return dtype == FLOAT32 ? 3 : dtype == FLOAT16 ? 2 : 1; }
// Words of a chunk: its A tiles of 32 pixels, 16 or 24 KB, stay in the first-level cache while all rows use them.
constexpr int64_t chunk_words(int parts) { return parts == 1 ? MAX_CHUNK_WORDS : 4; }

// Words of a chain of products: long chains would lose more bits than a GEMM of fused multiply-adds does. Results of 8
// or 11 bits do not show it.
constexpr int64_t chain_words(int parts) { return parts == 3 ? 16 : int64_t{1} << 40; }

// Configures the tile registers of this thread for A and C tiles of `pixels` rows, and releases them.
class TileScope {
 public:
  explicit TileScope(int pixels) {
    struct alignas(64) Config {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.bytes[i] = 64;
      config.rows[i] = TILE;
    }
    // Numbers as multiply_tiles uses them: B is 6 and 7.
    for (int i = 0; i < 5; ++i) config.rows[i] = static_cast<uint8_t>(pixels);
    _tile_loadconfig(&config);
  }
  ~TileScope() { _tile_release(); }
  TileScope(const TileScope&) = delete;
  TileScope& operator=(const TileScope&) = delete;
};

// 16 pixels of A: the first row of each word of the chunk, bytes between pixels and between parts.
struct PixelTile {
  const char* at[MAX_CHUNK_WORDS];
  int64_t stride, part;
};

// B: [row tile][word][TILE_BYTES] with `step` bytes between row tiles. C: [pixel][row] floats.

template <int PARTS>
FK_INLINE void multiply_pixel_pair(int64_t words, const PixelTile* a, const char* b, int64_t step, float* c,
                                   int64_t ldc, bool first, bool two) {
  const int64_t c_stride = ldc * 4;
  float* const low = c + TILE * ldc;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_stride);
    _tile_loadd(2, low, c_stride);
    if (two) {
      _tile_loadd(1, c + TILE, c_stride);
      _tile_loadd(3, low + TILE, c_stride);
    }
  }
  if (two) {
    for (int64_t w = 0; w < words; ++w, b += TILE_BYTES) {
      _tile_loadd(6, b, 64);
      _tile_loadd(7, b + step, 64);
      for (int p = 0; p < PARTS; ++p) {
        _tile_loadd(4, a[0].at[w] + p * a[0].part, a[0].stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a[1].at[w] + p * a[1].part, a[1].stride);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
    }
  } else {
    for (int64_t w = 0; w < words; ++w, b += TILE_BYTES) {
      _tile_loadd(6, b, 64);
      for (int p = 0; p < PARTS; ++p) {
        _tile_loadd(4, a[0].at[w] + p * a[0].part, a[0].stride);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, a[1].at[w] + p * a[1].part, a[1].stride);
        _tile_dpbf16ps(2, 5, 6);
      }
    }
  }
  _tile_stored(0, c, c_stride);
  _tile_stored(2, low, c_stride);
  if (two) {
    _tile_stored(1, c + TILE, c_stride);
    _tile_stored(3, low + TILE, c_stride);
  }
}

// One pixel tile against up to four row tiles: four independent sums hide the latency of a product.
template <int PARTS, int NT>
FK_INLINE void multiply_pixel_tile(int64_t words, const PixelTile& a, const char* b, int64_t step, float* c,
                                   int64_t ldc, bool first) {
  const int64_t c_stride = ldc * 4;
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, c, c_stride);
    if (NT > 1) _tile_loadd(1, c + TILE, c_stride);
    if (NT > 2) _tile_loadd(2, c + 2 * TILE, c_stride);
    if (NT > 3) _tile_loadd(3, c + 3 * TILE, c_stride);
  }
  for (int64_t w = 0; w < words; ++w, b += TILE_BYTES) {
    for (int p = 0; p < PARTS; ++p) {
      _tile_loadd(4, a.at[w] + p * a.part, a.stride);
      _tile_loadd(6, b, 64);
      _tile_dpbf16ps(0, 4, 6);
      if (NT > 1) {
        _tile_loadd(7, b + step, 64);
        _tile_dpbf16ps(1, 4, 7);
      }
      if (NT > 2) {
        _tile_loadd(6, b + 2 * step, 64);
        _tile_dpbf16ps(2, 4, 6);
      }
      if (NT > 3) {
        _tile_loadd(7, b + 3 * step, 64);
        _tile_dpbf16ps(3, 4, 7);
      }
    }
  }
  _tile_stored(0, c, c_stride);
  if (NT > 1) _tile_stored(1, c + TILE, c_stride);
  if (NT > 2) _tile_stored(2, c + 2 * TILE, c_stride);
  if (NT > 3) _tile_stored(3, c + 3 * TILE, c_stride);
}

// C of `pixel_tiles` (1 or 2) by `row_tiles`. Each sum takes words in order and of each word its parts in order.
template <int PARTS>
void multiply_tiles(int64_t words, const PixelTile* a, int pixel_tiles, const char* b, int64_t row_tiles, float* c,
                    int64_t ldc, bool first) {
  const int64_t step = words * TILE_BYTES;
  if (pixel_tiles == 2) {
    for (int64_t n = 0; n < row_tiles; n += 2, b += 2 * step, c += 2 * TILE) {
      multiply_pixel_pair<PARTS>(words, a, b, step, c, ldc, first, n + 1 < row_tiles);
    }
    return;
  }
  for (int64_t n = 0; n < row_tiles; n += 4, b += 4 * step, c += 4 * TILE) {
    switch (std::min<int64_t>(row_tiles - n, 4)) {
      case 1:
        multiply_pixel_tile<PARTS, 1>(words, *a, b, step, c, ldc, first);
        break;
      case 2:
        multiply_pixel_tile<PARTS, 2>(words, *a, b, step, c, ldc, first);
        break;
      case 3:
        multiply_pixel_tile<PARTS, 3>(words, *a, b, step, c, ldc, first);
        break;
      default:
        multiply_pixel_tile<PARTS, 4>(words, *a, b, step, c, ldc, first);
        break;
    }
  }
}

}  // namespace fk::FK_LEVEL_NS
