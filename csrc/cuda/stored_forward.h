// y = W x of a stored weight, for few pixels.
//
// A warp takes a row, a lane one word of each chunk of 1024 columns. The block holds x in shared memory by bit, then by
// word, so that lanes read banks of their own whichever bits their words keep. A sum of the words' counts over the
// lanes says where a lane's values begin; two chunks share it, as halves of a register. Lanes with fewer bits wait for
// the one with most: at one kept weight in ten 7 for 3.2. A list of all kept weights would balance them, but gathers
// meet banks at random, and to write it the same bits must be walked.
#pragma once
#include "cuda/stored_walk.h"

namespace fk::cuda {

constexpr int STORED_WARPS = 16;
constexpr int CHUNK_COLUMNS = 32 * STORED_CHUNK;
constexpr int STORED_TABLES = 24;  // chunks of x of one pixel, 4 kB each

// How a block works through its rows: x in pieces of chunks, `warps_a_row` warps on each piece of a row.
struct StoredSplit {
  int chunks, pieces, piece_chunks, warps_a_row, part_chunks;  // a warp's part: whole pairs of chunks
};
FK_TWIN StoredSplit stored_split(int words, int pixels, int rows) {
  StoredSplit split = {};
  split.chunks = (words - 1) / STORED_CHUNK + 1;
  const int held = STORED_TABLES / pixels;
  split.pieces = (split.chunks + held - 1) / held;
  split.piece_chunks = (split.chunks + split.pieces - 1) / split.pieces;
  split.warps_a_row = 1;
  while (split.warps_a_row * 2 * rows <= STORED_WARPS) split.warps_a_row *= 2;
  const int pairs = (split.piece_chunks + 1) / 2;
  split.part_chunks = (pairs + split.warps_a_row - 1) / split.warps_a_row * 2;
  return split;
}

// Four columns of a pixel from `at` on, of which `left` exist.
FK_DEVICE void read_four(const Product& p, int64_t at, int left, bool aligned, float (&x)[4]) {
  if (!aligned || left < 4) {
    FK_UNROLL for (int i = 0; i < 4; ++i) x[i] = i < left ? read_element(p.x, p.dtype, at + i) : 0.0f;
  } else if (p.dtype == FLOAT32) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(p.x) + at);
    x[0] = four.x, x[1] = four.y, x[2] = four.z, x[3] = four.w;
  } else {
    const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(p.x) + at);
    const bool bfloat = p.dtype == BFLOAT16;
    x[0] = bfloat ? to_float(pairs.x << 16) : half_to_float(pairs.x & 0xFFFFu);
    x[1] = bfloat ? to_float(pairs.x & 0xFFFF0000u) : half_to_float(pairs.x >> 16);
    x[2] = bfloat ? to_float(pairs.y << 16) : half_to_float(pairs.y & 0xFFFFu);
    x[3] = bfloat ? to_float(pairs.y & 0xFFFF0000u) : half_to_float(pairs.y >> 16);
  }
}

// x of the chunks from `chunk0` on, by chunk, bit and word. A warp takes eight columns of 16 words at a time, a lane
// four of them: two lanes at most write to one bank.
template <int PIXELS>
FK_DEVICE void fill_table(const Product& p, int pixel0, int chunk0, int chunks, Pixels<PIXELS>* table) {
  const int lane = threadIdx.x & 31, four_bytes = p.dtype == FLOAT32 ? 16 : 8;
  const bool aligned = reinterpret_cast<uintptr_t>(p.x) % four_bytes == 0 && p.x_stride % 4 == 0;
  for (int step = threadIdx.x >> 5; step < 8 * chunks; step += STORED_WARPS) {
    const int word = (step & 1) * 16 + (lane >> 1), eighth = (step & 6) + (lane & 1), chunk = step >> 3;
    const int64_t column = (chunk0 + chunk) * static_cast<int64_t>(CHUNK_COLUMNS) + 32 * word + 4 * eighth;
    if (column >= p.cols) continue;
    const int left = p.cols - column < 4 ? static_cast<int>(p.cols - column) : 4;
    Pixels<PIXELS> four[4];
    FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      float x[4] = {};
      if (pixel0 + pixel < p.pixels) read_four(p, (pixel0 + pixel) * p.x_stride + column, left, aligned, x);
      FK_UNROLL for (int i = 0; i < 4; ++i) four[i].at[pixel] = x[i];
    }
    Pixels<PIXELS>* const to = table + chunk * CHUNK_COLUMNS + 2 * eighth * 32 + word;
    FK_UNROLL for (int i = 0; i < 4; ++i) to[beta(i) * 32] = four[i];
  }
}

// sum += the kept weights of a word times x; `table`: that of the lane's word, by bit.
template <int VALUES, int PIXELS>
FK_DEVICE void add_word(uint32_t word, const typename Stored<VALUES>::Element* end, const Pixels<PIXELS>* table,
                        Pixels<PIXELS>& sum) {
  for (; word; end -= STORED_STEPS) {
    const Kept<VALUES> kept(word, end);
    Pixels<PIXELS> x[STORED_STEPS];
    FK_UNROLL for (int i = 0; i < STORED_STEPS; ++i) {
      if (kept.exists[i]) x[i] = table[kept.bit[i] * 32];
    }
    FK_UNROLL for (int i = 0; i < STORED_STEPS; ++i) {
      if (!kept.exists[i]) continue;
      FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) sum.at[pixel] += kept.value(i) * x[i].at[pixel];
    }
  }
}

// A lane's part of a row's sum over chunks first to last, whose x `table` holds.
template <int VALUES, int PIXELS>
FK_DEVICE Pixels<PIXELS> add_chunks(const Product& p, int row, int chunks, int first, int last,
                                    const Pixels<PIXELS>* table) {
  using Element = typename Stored<VALUES>::Element;
  const int lane = threadIdx.x & 31;
  const Element* const values =
      static_cast<const Element*>(p.values) + p.offsets[static_cast<int64_t>(row) * chunks + first];
  const uint32_t* words = p.keep + static_cast<int64_t>(row) * p.words + first * STORED_CHUNK + lane;
  const int existing = p.words < last * STORED_CHUNK ? p.words : last * STORED_CHUNK;
  int left = existing - first * STORED_CHUNK - lane;  // words, from the lane's on
  uint32_t next0 = left > 0 ? load_word(words) : 0u;
  uint32_t next1 = left > STORED_CHUNK ? load_word(words + STORED_CHUNK) : 0u;
  uint32_t place = 0;  // of the next chunk's first value
  Pixels<PIXELS> sum = {};
  table += lane;
  for (int chunk = first; chunk < last; chunk += 2, table += 2 * CHUNK_COLUMNS) {
    const uint32_t word0 = next0, word1 = next1;
    left -= 2 * STORED_CHUNK, words += 2 * STORED_CHUNK;
    next0 = left > 0 ? load_word(words) : 0u;
    next1 = left > STORED_CHUNK ? load_word(words + STORED_CHUNK) : 0u;
    const uint32_t counts = static_cast<uint32_t>(__popc(word0)) | static_cast<uint32_t>(__popc(word1)) << 16;
    const uint32_t behind = running_sum(counts, 32), all = __shfl_sync(0xFFFFFFFFu, behind, 31);
    add_word<VALUES, PIXELS>(word0, values + (place + (behind & 0xFFFFu)), table, sum);
    place += all & 0xFFFFu;
    add_word<VALUES, PIXELS>(word1, values + (place + (behind >> 16)), table + CHUNK_COLUMNS, sum);
    place += all >> 16;
  }
  return sum;
}

template <int PIXELS>
FK_DEVICE void add_lanes(Pixels<PIXELS>& sum) {
  FK_UNROLL for (int step = 16; step > 0; step /= 2) {
    FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      sum.at[pixel] += __shfl_xor_sync(0xFFFFFFFFu, sum.at[pixel], step);
    }
  }
}

// Blocks: of `tiles` rows, and of PIXELS pixels.
template <int VALUES, int PIXELS>
FK_KERNEL FK_BOUNDS(32 * STORED_WARPS, 2) stored_forward(const Product p, const int tiles) {
  FK_SHARED(Pixels<PIXELS>, table);
  const StoredSplit split = stored_split(p.words, PIXELS, tiles);
  Pixels<PIXELS>* const sums = table + split.piece_chunks * CHUNK_COLUMNS;  // by row and part
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, part = warp & (split.warps_a_row - 1);
  const int row0 = blockIdx.x * tiles, pixel0 = blockIdx.y * PIXELS;
  const int rows = p.rows - row0 < tiles ? p.rows - row0 : tiles;
  wait_for_inputs();
  for (int piece = 0; piece < split.pieces; ++piece) {
    const int chunk0 = piece * split.piece_chunks, left = split.chunks - chunk0;
    const int chunks = left < split.piece_chunks ? left : split.piece_chunks;
    if (piece > 0) __syncthreads();
    fill_table<PIXELS>(p, pixel0, chunk0, chunks, table);
    __syncthreads();
    const int first = part * split.part_chunks;
    const int last = first + split.part_chunks < chunks ? first + split.part_chunks : chunks;
    for (int row = warp / split.warps_a_row; row < rows; row += STORED_WARPS / split.warps_a_row) {
      Pixels<PIXELS> sum = {};
      if (first < last) {
        sum = add_chunks<VALUES, PIXELS>(p, row0 + row, split.chunks, chunk0 + first, chunk0 + last,
                                         table + first * CHUNK_COLUMNS);
      }
      add_lanes(sum);
      // the same lane in all pieces, so no barrier
      if (lane == 0) {
        Pixels<PIXELS>& total = sums[row * split.warps_a_row + part];
        FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
          total.at[pixel] = piece > 0 ? total.at[pixel] + sum.at[pixel] : sum.at[pixel];
        }
      }
    }
  }
  release_next();
  __syncthreads();
  for (int output = threadIdx.x; output < rows * PIXELS; output += 32 * STORED_WARPS) {
    const int row = output % rows, pixel = output / rows, channel = row0 + row;
    if (pixel0 + pixel >= p.pixels) continue;
    float sum = 0.0f;
    for (int i = 0; i < split.warps_a_row; ++i) sum += sums[row * split.warps_a_row + i].at[pixel];
    if (p.row_scale) sum *= p.row_scale[channel];
    write_element(p.y, p.dtype, (pixel0 + pixel) * p.y_stride + channel,
                  finished(sum, p.gain, p.bias, p.bias_dtype, p.relu, channel));
  }
}

}  // namespace fk::cuda
