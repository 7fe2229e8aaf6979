// y = W x for few pixels, sign and constant codes: weights as operand A of tensor cores, straight from their bits.
//
// A warp owns slices of 512 columns, keeps its part of x in registers as operand B, and walks tiles of 16 rows. Lane
// (g, t) holds words 4t to 4t + 3 of the slice, of rows g and g + 8: one load of 16 bytes for each row and plane, and
// exactly the words of one generator call, so signs are drawn without exchange. The order of columns inside a product
// is free where A and B agree: product m of a word takes its columns 4m to 4m + 3. The warps of a block have the same
// rows and meet once, in shared memory.
#pragma once
#include "cuda/bits_decode.h"

namespace fk::cuda {

constexpr int SLICE = 512, SLICE_CALLS = SLICE / 128;
constexpr int TILE_ROWS = 16;
constexpr int FRAGMENT = 32;                          // lanes, and quadruples of sums of 16 rows and 8 columns
constexpr int PART_EIGHTS = SLICE / 8 + SLICE / 128;  // of a part of a slice, one more after every 16

// The operand of a lane: 128 columns of x, in each eighth of 8 pixels the pixel g.
template <int EIGHTS>
FK_DEVICE void load_halves(const Product& p, int slice, int lane, uint4 (&x)[EIGHTS][16]) {
  FK_UNROLL for (int n = 0; n < EIGHTS; ++n) {
    const int pixel = 8 * n + lane / 4, column = slice * SLICE + 128 * (lane & 3);
    const uint16_t* const from = static_cast<const uint16_t*>(p.x) + pixel * p.x_stride + column;
    FK_UNROLL for (int i = 0; i < 16; ++i) {
      x[n][i] = uint4{0, 0, 0, 0};
      if (pixel < p.pixels && column + 8 * i < p.cols) x[n][i] = *reinterpret_cast<const uint4*>(from + 8 * i);
    }
  }
}

// The same of float32, where a column of the operand is a part of a pixel. A lane cuts 16 columns for all lanes, which
// meet in `stage`, the warp's own shared memory.
template <int EIGHTS>
FK_DEVICE void load_parts(const Product& p, int slice, int lane, uint4* stage, uint4 (&x)[EIGHTS][16]) {
  FK_UNROLL for (int n = 0; n < EIGHTS; ++n) { FK_UNROLL for (int i = 0; i < 16; ++i) x[n][i] = uint4{0, 0, 0, 0}; }
  for (int pixel = 0; pixel < p.pixels; ++pixel) {
    FK_UNROLL for (int half = 0; half < 2; ++half) {
      const int eight = lane + 32 * half, column = slice * SLICE + 8 * eight;
      const float* const from = static_cast<const float*>(p.x) + pixel * p.x_stride + column;
      float4 low = {0, 0, 0, 0}, high = {0, 0, 0, 0};
      if (column < p.cols) low = *reinterpret_cast<const float4*>(from);
      if (column + 4 < p.cols) high = *reinterpret_cast<const float4*>(from + 4);
      float value[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
      FK_UNROLL for (int part = 0; part < PARTS; ++part) {
        // the gap after every 16 puts what four lanes read at once into different banks
        stage[part * PART_EIGHTS + eight + eight / 16] = cut_eight(value);
        FK_UNROLL for (int i = 0; i < 8; ++i) value[i] = left_of(value[i]);
      }
    }
    __syncwarp();
    FK_UNROLL for (int n = 0; n < EIGHTS; ++n) {
      const int part = 8 * n + lane / 4 - PARTS * pixel;
      if (part < 0 || part >= PARTS) continue;
      FK_UNROLL for (int i = 0; i < 16; ++i) x[n][i] = stage[part * PART_EIGHTS + 17 * (lane & 3) + i];
    }
    __syncwarp();
  }
}

// Four words of rows g and g + 8 of a tile.
struct TileWords {
  uint4 keep[2], sign[2];
};
// Lanes past the rows or the words of a row read the last ones: those rows are not stored, and x is zero there.
FK_DEVICE uint32_t place_of_words(const Product& p, int row, int call) {
  const int last_row = p.rows - 1, last_word = p.words - 4;
  const uint32_t from = (row < last_row ? row : last_row) * p.words;
  return from + (4 * call < last_word ? 4 * call : last_word);
}
template <bool DRAWN>
FK_DEVICE TileWords load_tile(const Product& p, int row, int call) {
  const uint32_t* const sign = sign_plane(p);
  TileWords tile = {};
  FK_UNROLL for (int h = 0; h < 2; ++h) {
    const uint32_t at = place_of_words(p, row + 8 * h, call);
    tile.keep[h] = load_words(p.keep + at);
    if constexpr (!DRAWN) tile.sign[h] = load_words(sign + at);
  }
  return tile;
}
FK_DEVICE void draw_signs(TileWords& tile, const Seed& seed, uint32_t call, uint32_t row) {
  FK_UNROLL for (int h = 0; h < 2; ++h) {
    const Words4 drawn =
        philox(call, row + 8 * h, SIGN_PURPOSE | seed.generation << 8, seed.stream, seed.key0, seed.key1);
    tile.sign[h] = uint4{drawn.x[0], drawn.x[1], drawn.x[2], drawn.x[3]};
  }
}

// Of a tile: rows g and g + 8 of four words.
struct TileFields {
  Fields upper[4], lower[4];
};
FK_DEVICE TileFields tile_fields(const TileWords& tile) {
  TileFields fields;
  FK_UNROLL for (int q = 0; q < 4; ++q) {
    fields.upper[q] = to_fields(word_of(tile.keep[0], q), word_of(tile.sign[0], q));
    fields.lower[q] = to_fields(word_of(tile.keep[1], q), word_of(tile.sign[1], q));
  }
  return fields;
}

template <bool BFLOAT, int EIGHTS>
FK_DEVICE void multiply_tile(const TileFields& tile, const uint4 (&x)[EIGHTS][16], float (&sum)[EIGHTS][4]) {
  FK_UNROLL for (int q = 0; q < 4; ++q) {
    const Fields &upper = tile.upper[q], &lower = tile.lower[q];
    FK_UNROLL for (int m = 0; m < 8; ++m) {
      uint32_t a[4];
      to_operand(upper, lower, m, a);
      FK_UNROLL for (int n = 0; n < EIGHTS; ++n) {
        const uint4& b = x[n][4 * q + m / 2];
        multiply<BFLOAT>(sum[n], a, m & 1 ? b.z : b.x, m & 1 ? b.w : b.y);
      }
    }
  }
}

// A last tile that would run past the rows begins before its own; of fewer rows than a tile the last is read again.
FK_DEVICE int last_tile(const Product& p) { return p.rows > TILE_ROWS ? p.rows - TILE_ROWS : 0; }
FK_DEVICE int tile_begin(int row, int last) { return row < last ? row : last; }

template <int EIGHTS>
FK_DEVICE void write_tiles(const Product& p, const float4* sums, int warp_sums, int block_row, int tiles) {
  const int parts = parts_of(p);
  const float scale = half_scale(p);
  // Neighbours take neighbouring floats, so that no two of a warp meet in a bank.
  for (int i = threadIdx.x; i < tiles * EIGHTS * 4 * FRAGMENT; i += blockDim.x) {
    const int fragment = i / (4 * FRAGMENT), tile = fragment / EIGHTS, tile_row = block_row + tile * TILE_ROWS;
    const int column = 8 * (fragment % EIGHTS) + (i / 4 & 3) * 2 + (i & 1), pixel = pixel_of(column, parts);
    const int in_fragment = (i / 16 & 7) + (i & 2) * 4, row = tile_begin(tile_row, last_tile(p)) + in_fragment;
    if (pixel * parts != column || pixel >= p.pixels || row < tile_row || row >= p.rows) continue;
    const float* const from = reinterpret_cast<const float*>(sums + tile * EIGHTS * FRAGMENT);
    const float sum = sum_of_warps(from, blockDim.x / 32, 4 * warp_sums, 4 * FRAGMENT, in_fragment, column, parts);
    write_result(p, pixel, row, sum * scale);
  }
}

// Shared memory: the sums of warps, tiles and eighths, FRAGMENT float4 each; of float32 then a stage for each warp.
template <bool BFLOAT, bool DRAWN, int EIGHTS>
FK_KERNEL FK_BOUNDS(32 * bits_warps(EIGHTS), 1) bits(const Product p, const int tiles) {
  wait_for_inputs();
  FK_SHARED(float4, sums);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int slices = (p.cols + SLICE - 1) / SLICE, warp_sums = tiles * EIGHTS * FRAGMENT;
  const int block_row = blockIdx.x * tiles * TILE_ROWS;
  const int left = (p.rows - block_row + TILE_ROWS - 1) / TILE_ROWS, mine = left < tiles ? left : tiles;
  const int last = last_tile(p), first = tile_begin(block_row, last), group = lane / 4;

  int row = first, call = warp * SLICE_CALLS + (lane & 3);
  TileWords next = load_tile<DRAWN>(p, row + group, call);
  for (int slice = warp; slice < slices; slice += warps) {
    uint4 x[EIGHTS][16];
    if (BFLOAT && p.dtype == FLOAT32)
      load_parts(p, slice, lane, reinterpret_cast<uint4*>(sums + warps * warp_sums) + warp * PARTS * PART_EIGHTS, x);
    else
      load_halves(p, slice, lane, x);
    const Seed seed = read_seed(p.header);
    const bool begun = slice > warp, more = slice + warps < slices;
    float4* own = sums + warp * warp_sums + lane;
    for (int tile = 0; tile < mine; ++tile) {
      if constexpr (DRAWN) draw_signs(next, seed, call, row + group);
      const TileFields now = tile_fields(next);
      // The next words are on their way while these are multiplied: of the next tile, or of the next slice.
      const bool turn = tile + 1 == mine;
      row = turn ? first : tile_begin(row + TILE_ROWS, last);
      if (turn) call += warps * SLICE_CALLS;
      if (!turn || more) next = load_tile<DRAWN>(p, row + group, call);
      float sum[EIGHTS][4] = {};
      multiply_tile<BFLOAT>(now, x, sum);
      // Tensor cores round towards zero, so they sum one slice, and its sums are added here.
      FK_UNROLL for (int n = 0; n < EIGHTS; ++n, own += FRAGMENT) {
        const float4 before = begun ? *own : float4{0, 0, 0, 0};
        *own = float4{before.x + sum[n][0], before.y + sum[n][1], before.z + sum[n][2], before.w + sum[n][3]};
      }
    }
  }
  release_next();
  __syncthreads();
  write_tiles<EIGHTS>(p, sums, warp_sums, block_row, mine);
}

}  // namespace fk::cuda
