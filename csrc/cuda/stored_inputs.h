// Inputs of a stored weight in shared memory: by chunk of 1024 columns, then by bit, then by word of the chunk, so that
// lanes that own a word each read banks of their own whichever bits their words keep.
#pragma once
#include "cuda/stored_walk.h"

namespace fk::cuda {

// Of a block, which fills a multiprocessor: each of several would hold the same inputs. As many as have the registers.
FK_TWIN int stored_warps(int pixels) { return pixels < 4 ? 32 : 24; }
constexpr int CHUNK_COLUMNS = 32 * STORED_CHUNK;

// One column of a block's pixels. As floats of any dtype, or in halves, whose reads take half the time.
template <int INPUTS, int PIXELS>
struct alignas(2 * PIXELS) Column {
  uint32_t pair[PIXELS / 2];
  FK_DEVICE float at(int pixel) const {
    const uint32_t both = pair[pixel / 2];
    if (INPUTS == FLOAT16) return half_to_float(pixel % 2 ? both >> 16 : both & 0xFFFFu);
    return to_float(pixel % 2 ? both & 0xFFFF0000u : both << 16);
  }
};
template <int PIXELS>
struct alignas(4 * PIXELS) Column<FLOAT32, PIXELS> {
  float value[PIXELS];
  FK_DEVICE float at(int pixel) const { return value[pixel]; }
};

// Four columns of a pixel, as they are in memory: floats, or pairs of halves.
struct FourColumns {
  uint32_t word[4];
};
template <int INPUTS>
FK_DEVICE FourColumns read_four(const Product& p, int64_t at) {
  if (INPUTS == FLOAT32 && p.dtype == FLOAT32) {
    const uint4 words = *reinterpret_cast<const uint4*>(static_cast<const float*>(p.x) + at);
    return {{words.x, words.y, words.z, words.w}};
  }
  const uint2 words = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(p.x) + at);
  return {{words.x, words.y, 0, 0}};
}

// Column i of four.
template <int INPUTS, int PIXELS>
FK_DEVICE Column<INPUTS, PIXELS> column_of(const FourColumns (&pixels)[PIXELS], int dtype, int i) {
  Column<INPUTS, PIXELS> column;
  if constexpr (INPUTS == FLOAT32) {
    FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      const uint32_t both = pixels[pixel].word[i / 2];
      column.value[pixel] = dtype == FLOAT32   ? to_float(pixels[pixel].word[i])
                            : dtype == FLOAT16 ? half_to_float(i % 2 ? both >> 16 : both & 0xFFFFu)
                                               : to_float(i % 2 ? both & 0xFFFF0000u : both << 16);
    }
  } else {
    FK_UNROLL for (int j = 0; j < PIXELS / 2; ++j) {
      const uint32_t low = pixels[2 * j].word[i / 2], high = pixels[2 * j + 1].word[i / 2];
      column.pair[j] = i % 2 ? permute<0x7632>(low, high) : permute<0x5410>(low, high);
    }
  }
  return column;
}

// One column, of inputs of any alignment.
template <int INPUTS, int PIXELS>
FK_DEVICE Column<INPUTS, PIXELS> read_column(const Product& p, int pixel0, int64_t at) {
  Column<INPUTS, PIXELS> column = {};
  FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel, at += p.x_stride) {
    if (pixel0 + pixel >= p.pixels) continue;
    if constexpr (INPUTS == FLOAT32) {
      column.value[pixel] = read_element(p.x, p.dtype, at);
    } else {
      column.pair[pixel / 2] |= static_cast<uint32_t>(static_cast<const uint16_t*>(p.x)[at]) << (16 * (pixel % 2));
    }
  }
  return column;
}

// Of the chunks from `chunk0` on. A warp takes eight columns of 16 words at a time, a lane four of them: two lanes at
// most write to one bank.
template <int INPUTS, int PIXELS>
FK_DEVICE void fill_columns(const Product& p, int pixel0, int chunk0, int chunks, Column<INPUTS, PIXELS>* columns) {
  const int lane = threadIdx.x & 31, four_bytes = p.dtype == FLOAT32 ? 16 : 8;
  const bool aligned = reinterpret_cast<uintptr_t>(p.x) % four_bytes == 0 && p.x_stride % 4 == 0;
  for (int step = threadIdx.x >> 5; step < 8 * chunks; step += stored_warps(PIXELS)) {
    const int word = (step & 1) * 16 + (lane >> 1), eighth = (step & 6) + (lane & 1), chunk = step >> 3;
    const int64_t column = (chunk0 + chunk) * static_cast<int64_t>(CHUNK_COLUMNS) + 32 * word + 4 * eighth;
    int64_t at = pixel0 * p.x_stride + column;
    Column<INPUTS, PIXELS>* const to = columns + chunk * CHUNK_COLUMNS + 2 * eighth * 32 + word;
    if (aligned && column + 4 <= p.cols) {
      FourColumns pixels[PIXELS] = {};
      FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel, at += p.x_stride) {
        if (pixel0 + pixel < p.pixels) pixels[pixel] = read_four<INPUTS>(p, at);
      }
      FK_UNROLL for (int i = 0; i < 4; ++i) to[beta(i) * 32] = column_of<INPUTS, PIXELS>(pixels, p.dtype, i);
    } else {
      for (int i = 0; i < 4 && column + i < p.cols; ++i) {
        to[beta(i) * 32] = read_column<INPUTS, PIXELS>(p, pixel0, at + i);
      }
    }
  }
}

}  // namespace fk::cuda
