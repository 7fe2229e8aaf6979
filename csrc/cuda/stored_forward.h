// y = W x of a stored weight, for few pixels.
//
// A warp takes a row, a lane one word of each chunk of 1024 columns. A sum of the words' counts over the lanes says
// where a lane's values begin; two chunks share it, as halves of a register. Lanes with fewer bits wait for the one
// with most: at one kept weight in ten 7 for 3.2. A list of all kept weights would balance them, but its gathers meet
// banks at random, and to write it the same bits must be walked.
#pragma once
#include "cuda/stored_inputs.h"

namespace fk::cuda {

constexpr int STORED_INPUT_BYTES = 96 << 10;  // of shared memory
constexpr int STORED_SUMS = 768;              // in the rest of it: of rows, times warps that share one, times pixels

// How a block works: x in pieces of chunks, `rows` rows, 2^share warps on each piece of one.
struct StoredSplit {
  int rows, share, chunks, piece_chunks;
  // A warp's part of a piece: whole pairs of chunks.
  FK_TWIN int part_chunks() const { return 2 * (((piece_chunks + 1) / 2 + (1 << share) - 1) >> share); }
};
FK_TWIN StoredSplit stored_split(int words, int column_bytes, int rows, int share) {
  const int chunks = (words - 1) / STORED_CHUNK + 1, held = STORED_INPUT_BYTES / (CHUNK_COLUMNS * column_bytes);
  const int pieces = (chunks + held - 1) / held;
  return {rows, share, chunks, (chunks + pieces - 1) / pieces};
}

// sum += the kept weights of a word times x; `columns`: those of the lane's word, by bit.
template <int VALUES, int INPUTS, int PIXELS>
FK_DEVICE void add_word(uint32_t word, const typename Stored<VALUES>::Element* end,
                        const typename Stored<VALUES>::Element* whole, const Column<INPUTS, PIXELS>* columns,
                        Pixels<PIXELS>& sum) {
  constexpr int AT_ONCE = PIXELS < 4 ? 4 : 2;
  if (!word) return;
  WordValues<VALUES> values(end, __popc(word), whole);
  do {
    const Kept<VALUES> kept(word, values);
    FK_UNROLL for (int first = 0; first < 4; first += AT_ONCE) {
      if (!kept.exists[first]) break;
      Column<INPUTS, PIXELS> x[AT_ONCE];
      FK_UNROLL for (int i = 0; i < AT_ONCE; ++i) {
        if (kept.exists[first + i]) x[i] = columns[kept.bit[first + i] * 32];
      }
      FK_UNROLL for (int i = 0; i < AT_ONCE; ++i) {
        if (!kept.exists[first + i]) continue;
        FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) sum.at[pixel] += kept.value(first + i) * x[i].at(pixel);
      }
    }
  } while (word);
}

// A warp's part of a row: chunks first to last, counted from the row's first.
struct RowPart {
  int row, first, last;
};

// Asks for the words and values of a part ahead of their use, for each lane would wait for its own.
template <int VALUES>
FK_DEVICE void fetch_part(const Product& p, int chunks, const RowPart& part) {
  constexpr int LINE = 128, VALUE_BYTES = sizeof(typename Stored<VALUES>::Element);
  const int lane = threadIdx.x & 31;
  const int64_t* const offsets = p.offsets + static_cast<int64_t>(part.row) * chunks;
  const int64_t begin = offsets[part.first], bytes = (offsets[part.last] - begin) * VALUE_BYTES;
  const uint8_t* const values = static_cast<const uint8_t*>(p.values) + begin * VALUE_BYTES;
  for (int at = lane * LINE; at < bytes; at += 32 * LINE) fetch_line(values + at);
  const uint32_t* const words = p.keep + static_cast<int64_t>(part.row) * p.words;
  const int existing = p.words < part.last * STORED_CHUNK ? p.words : part.last * STORED_CHUNK;
  for (int word = (part.first + lane) * STORED_CHUNK; word < existing; word += 32 * STORED_CHUNK) {
    fetch_line(reinterpret_cast<const uint8_t*>(words + word));
  }
}

// A lane's share of the sum of a part, whose x `columns` holds.
template <int VALUES, int INPUTS, int PIXELS>
FK_DEVICE Pixels<PIXELS> add_part(const Product& p, int chunks, const RowPart& part,
                                  const typename Stored<VALUES>::Element* whole,
                                  const Column<INPUTS, PIXELS>* columns) {
  using Element = typename Stored<VALUES>::Element;
  const int lane = threadIdx.x & 31;
  const Element* const values =
      static_cast<const Element*>(p.values) + p.offsets[static_cast<int64_t>(part.row) * chunks + part.first];
  const uint32_t* words = p.keep + static_cast<int64_t>(part.row) * p.words + part.first * STORED_CHUNK + lane;
  const int existing = p.words < part.last * STORED_CHUNK ? p.words : part.last * STORED_CHUNK;
  int left = existing - part.first * STORED_CHUNK - lane;  // words, from the lane's on
  uint32_t next0 = left > 0 ? load_word(words) : 0u;
  uint32_t next1 = left > STORED_CHUNK ? load_word(words + STORED_CHUNK) : 0u;
  uint32_t place = 0;  // of the next chunk's first value
  Pixels<PIXELS> sum = {};
  columns += lane;
  for (int chunk = part.first; chunk < part.last; chunk += 2, columns += 2 * CHUNK_COLUMNS) {
    const uint32_t word0 = next0, word1 = next1;
    left -= 2 * STORED_CHUNK, words += 2 * STORED_CHUNK;
    next0 = left > 0 ? load_word(words) : 0u;
    next1 = left > STORED_CHUNK ? load_word(words + STORED_CHUNK) : 0u;
    const uint32_t counts = static_cast<uint32_t>(__popc(word0)) | static_cast<uint32_t>(__popc(word1)) << 16;
    const uint32_t behind = running_sum(counts, 32), all = __shfl_sync(0xFFFFFFFFu, behind, 31);
    add_word<VALUES>(word0, values + (place + (behind & 0xFFFFu)), whole, columns, sum);
    place += all & 0xFFFFu;
    add_word<VALUES>(word1, values + (place + (behind >> 16)), whole, columns + CHUNK_COLUMNS, sum);
    place += all >> 16;
  }
  return sum;
}

// Over the lanes: of pixel i for the lanes from i * 32 / PIXELS on. While there are several, a lane gives half away.
template <int PIXELS>
FK_DEVICE float sum_of_lanes(Pixels<PIXELS> sum, int lane) {
  int step = 16;
  FK_UNROLL for (int half = PIXELS / 2; half > 0; half /= 2, step /= 2) {
    const bool upper = (lane & step) != 0;
    FK_UNROLL for (int i = 0; i < half; ++i) {
      const float kept = upper ? sum.at[i + half] : sum.at[i], given = upper ? sum.at[i] : sum.at[i + half];
      sum.at[i] = kept + __shfl_xor_sync(0xFFFFFFFFu, given, step);
    }
  }
  FK_UNROLL for (; step > 0; step /= 2) sum.at[0] += __shfl_xor_sync(0xFFFFFFFFu, sum.at[0], step);
  return sum.at[0];
}

// Blocks: of `tiles` / 8 rows, and of PIXELS pixels; 2^(`tiles` % 8) warps share a row.
template <int VALUES, int INPUTS, int PIXELS>
FK_KERNEL FK_BOUNDS(32 * stored_warps(PIXELS), 1) stored_forward(const Product p, const int tiles) {
  wait_for_inputs();
  using Inputs = Column<INPUTS, PIXELS>;
  FK_SHARED(Inputs, columns);
  const StoredSplit split = stored_split(p.words, sizeof(Inputs), tiles >> 3, tiles & 7);
  // by row, part and pixel
  float* const sums = reinterpret_cast<float*>(columns + split.piece_chunks * CHUNK_COLUMNS);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
  const int row0 = blockIdx.x * split.rows, rows = p.rows - row0 < split.rows ? p.rows - row0 : split.rows;
  const int member = warp & ((1 << split.share) - 1), step = stored_warps(PIXELS) >> split.share;
  const auto* const whole = end_of_fours<VALUES>(p, split.chunks);
  for (int chunk0 = 0; chunk0 < split.chunks; chunk0 += split.piece_chunks) {
    const int piece_end = min(chunk0 + split.piece_chunks, split.chunks);
    const int first = chunk0 + member * split.part_chunks(), last = min(first + split.part_chunks(), piece_end);
    int row = warp >> split.share;
    if (row < rows && first < last) fetch_part<VALUES>(p, split.chunks, {row0 + row, first, last});
    if (chunk0 > 0) __syncthreads();
    fill_columns(p, blockIdx.y * PIXELS, chunk0, piece_end - chunk0, columns);
    __syncthreads();
    for (; row < rows; row += step) {
      Pixels<PIXELS> sum = {};
      if (first < last) {
        if (row + step < rows) fetch_part<VALUES>(p, split.chunks, {row0 + row + step, first, last});
        sum = add_part<VALUES>(p, split.chunks, {row0 + row, first, last}, whole,
                               columns + (first - chunk0) * CHUNK_COLUMNS);
      }
      const float total = sum_of_lanes(sum, lane);
      // the same lane in all pieces, so no barrier
      if (lane % (32 / PIXELS) == 0) {
        float& place = sums[((row << split.share) + member) * PIXELS + lane / (32 / PIXELS)];
        place = chunk0 > 0 ? place + total : total;
      }
    }
  }
  release_next();
  __syncthreads();
  for (int output = threadIdx.x; output < rows * PIXELS; output += 32 * stored_warps(PIXELS)) {
    const int row = output % rows, channel = row0 + row, pixel = output / rows, y_pixel = blockIdx.y * PIXELS + pixel;
    if (y_pixel >= p.pixels) continue;
    float sum = 0.0f;
    for (int i = 0; i < 1 << split.share; ++i) sum += sums[((row << split.share) + i) * PIXELS + pixel];
    if (VALUES == INT8 && p.row_scale) sum *= p.row_scale[channel];
    write_element(p.y, p.dtype, y_pixel * p.y_stride + channel,
                  finished(sum, p.gain, p.bias, p.bias_dtype, p.relu, channel));
  }
}

}  // namespace fk::cuda
