// Linear layers of at most four pixels on int8 tensor cores: weights are operand A, and the inputs' digits operand B.
//
// A warp owns slices of 512 columns, keeps the digits of one in registers, and walks tiles of 16 rows. The warps of a
// block share rows and differ in columns; their sums meet once, in shared memory, in a fixed order: no atomics, no
// second launch. The sums of a slice are exact integers.
#pragma once
#include <type_traits>

#include "cuda/byte_weights.h"

namespace fk::cuda {

namespace digits {

constexpr int TILE_ROWS = 16, MOST_PIXELS = 4, MOST_TILES = 16;
constexpr int most_warps(int pairs) { return pairs == 1 ? 16 : 8; }

template <int CODE, bool DRAWN, int PAIRS>
using Weights = std::conditional_t<CODE == SIGN_CODE, SignWeights<DRAWN, PAIRS>, ByteWeights<CODE, DRAWN, PAIRS>>;

// The last tile ends with the rows, so that none is read past the end.
FK_DEVICE int first_row(const Product& p, int tile) { return min(tile * TILE_ROWS, max(p.rows - TILE_ROWS, 0)); }

// Of row `row` in a tile: from its lanes' sums of the lower and the higher two digits of a pixel.
FK_DEVICE float sum_of_digits(const float2* sums, int row, int pixel) {
  const int lane = row % 8 * 4 + pixel % 2 * 2;
  const float2 low = sums[lane], high = sums[lane + 1];
  return row < 8 ? low.x + high.x : low.y + high.y;
}

// The block's results, from the sums of all warps.
template <int PAIRS>
FK_DEVICE void write_rows(const Product& p, const float2* sums, int tiles, int own_tiles, int first_tile, int thread,
                          int warps) {
  const float scale = read_seed(p.header).scale;
  const int own_rows = own_tiles * TILE_ROWS;
  for (int i = thread; i < own_rows * p.pixels; i += 32 * warps) {
    const int pixel = i / own_rows, tile = i % own_rows / TILE_ROWS, row = first_tile * TILE_ROWS + i % own_rows;
    if (row >= p.rows) continue;
    float sum = 0.0f;
    for (int warp = 0; warp < warps; ++warp)
      sum += sum_of_digits(sums + ((warp * tiles + tile) * PAIRS + pixel / 2) * 32,
                           row - first_row(p, first_tile + tile), pixel);
    const float value = finished(sum * scale, p.gain, p.bias, p.bias_dtype, p.relu, row);
    write_element(p.y, p.dtype, pixel * p.y_stride + row, value);
  }
}

}  // namespace digits

// Shared memory: the table; sums, a float2 for each warp, tile, pair of pixels and lane; the warps' stages.
template <int CODE, bool DRAWN, int PAIRS>
FK_KERNEL FK_BOUNDS(32 * digits::most_warps(PAIRS), 1) multiply_digits(const Product p, const int tiles) {
  wait_for_inputs();
  using Weights = digits::Weights<CODE, DRAWN, PAIRS>;
  FK_SHARED(uint8_t, shared);
  const int warp = static_cast<int>(kept_in_register(threadIdx.x / 32)), warps = static_cast<int>(blockDim.x / 32);
  const digits::Lane lane(p, kept_in_register(threadIdx.x % 32));
  float2* const sums = reinterpret_cast<float2*>(shared + Weights::TABLE_BYTES);
  uint8_t* const stage = reinterpret_cast<uint8_t*>(sums + warps * tiles * PAIRS * 32) + warp * digits::STAGE_BYTES;
  float2* const own_sums = sums + warp * tiles * PAIRS * 32 + lane.number;
  const int slices = (p.cols + digits::SLICE - 1) / digits::SLICE;
  const int first_tile = static_cast<int>(blockIdx.x) * tiles;
  const int own_tiles = min(tiles, (p.rows + digits::TILE_ROWS - 1) / digits::TILE_ROWS - first_tile);

  Weights weights(p, lane, shared);
  weights.fetch({digits::first_row(p, first_tile), warp, warp < slices});
  if (Weights::TABLE_BYTES) {
    digits::fill_table(shared, warp, warps, lane.number);
    __syncthreads();
  }
  for (int slice = warp; slice < slices; slice += warps) {
    digits::Inputs<PAIRS> inputs;
    inputs.load(p, slice, lane.number, stage, weights);
    weights.begin_slice(inputs, slice, stage);
    for (int i = 0; i < own_tiles; ++i) {
      const bool last = i + 1 == own_tiles;
      const digits::Tile tile = {digits::first_row(p, first_tile + i), slice, true};
      const digits::Tile next = {digits::first_row(p, first_tile + (last ? 0 : i + 1)), last ? slice + warps : slice,
                                 !last || slice + warps < slices};
      int made[PAIRS][4];
      weights.multiply(inputs, tile, next, made);
      FK_UNROLL for (int pair = 0; pair < PAIRS; ++pair) {
        const float upper = static_cast<float>(made[pair][0]) + 256.0f * static_cast<float>(made[pair][1]);
        const float lower = static_cast<float>(made[pair][2]) + 256.0f * static_cast<float>(made[pair][3]);
        // a lane's own place, so no barrier
        float2& sum = own_sums[(i * PAIRS + pair) * 32];
        const float2 before = slice == warp ? make_float2(0.0f, 0.0f) : sum;
        sum = make_float2(before.x + upper * inputs.unit[pair], before.y + lower * inputs.unit[pair]);
      }
    }
  }
  release_next();
  __syncthreads();
  digits::write_rows<PAIRS>(p, sums, tiles, own_tiles, first_tile, 32 * warp + static_cast<int>(lane.number), warps);
}

inline bool aligned_words(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

inline const char* bytes_refuses(const Product& p) {
  const bool of_bytes = p.code == UNIFORM_CODE || p.code == NORMAL_CODE;
  if (p.transposed) return "input gradients";
  if (p.code == STORED_CODE) return "stored weights";
  if (p.dtype != BFLOAT16 && p.dtype != FLOAT16) return "inputs of 32 bits";
  if (p.pixels > digits::MOST_PIXELS) return "more than four pixels";
  if (int64_t{p.rows} * p.words >= 1 << 30) return "too many weights for indices of 32 bits";
  if (p.words % 4) return "words of a row not a multiple of four";
  if (p.cols % 8 || p.x_stride % 8 || !aligned_words(p.x)) return "inputs not aligned to 16 bytes";
  if (!aligned_words(p.keep) || !aligned_words(p.sign)) return "planes not aligned to 16 bytes";
  if (of_bytes && (p.cols % 16 || !aligned_words(p.bytes)))
    return "columns that are no multiple of 16, or bytes that are not aligned to 16";
  return nullptr;
}

// As few warps a block as have equally many slices, and tiles such that the last blocks do not run alone.
inline Plan plan_bytes(const Product& p, int multiprocessors) {
  const int pairs = divide_up(p.pixels, 2), most = digits::most_warps(pairs);
  const int slices = divide_up(p.cols, digits::SLICE), rounds = divide_up(slices, most);
  const int warps = divide_up(slices, rounds), row_tiles = divide_up(p.rows, digits::TILE_ROWS);
  const int table = p.code == NORMAL_CODE ? digits::ByteWeights<NORMAL_CODE, true, 1>::TABLE_BYTES : 0;
  // instructions of a warp, about: a tile, the digits of a pixel's slice, a block besides
  const int tile_cost = p.code == NORMAL_CODE ? 1500 : p.code == UNIFORM_CODE ? 850 : 260;
  const int digit_cost = 220 * p.pixels, block_cost = 1000 + table / 8;
  const int resident = most / warps * multiprocessors;
  Plan plan = {{0, 1}, 32 * warps, 0, 0};
  int64_t least = INT64_MAX;
  for (int tiles = 1; tiles <= digits::MOST_TILES; ++tiles) {
    const int shared = table + warps * (tiles * pairs * 32 * static_cast<int>(sizeof(float2)) + digits::STAGE_BYTES);
    const int blocks = divide_up(row_tiles, tiles);
    const int64_t cost =
        int64_t{divide_up(blocks, resident)} * (block_cost + rounds * (digit_cost + tiles * tile_cost));
    if (shared > SHARED_LIMIT || cost >= least) continue;
    least = cost;
    plan.blocks[0] = blocks, plan.shared = shared, plan.tiles = tiles;
  }
  return plan;
}

namespace digits {

template <int CODE, bool DRAWN, class Visit>
auto with_pixels(const Product& p, const Visit& visit) {
  return p.pixels <= 2 ? visit(multiply_digits<CODE, DRAWN, 1>) : visit(multiply_digits<CODE, DRAWN, 2>);
}
template <int CODE, class Visit>
auto with_residency(const Product& p, bool drawn, const Visit& visit) {
  return drawn ? with_pixels<CODE, true>(p, visit) : with_pixels<CODE, false>(p, visit);
}

}  // namespace digits

template <class Visit>
auto with_bytes(const Product& p, const Visit& visit) {
  if (p.code == UNIFORM_CODE) return digits::with_residency<UNIFORM_CODE>(p, !p.bytes, visit);
  if (p.code == NORMAL_CODE) return digits::with_residency<NORMAL_CODE>(p, !p.bytes, visit);
  return digits::with_residency<SIGN_CODE>(p, p.code == SIGN_CODE && !p.sign, visit);
}

template <class Visit>
void each_bytes(const Visit& visit) {
  Product p = {};
  const uint32_t word = 0;
  const uint8_t byte = 0;
  for (const int code : {SIGN_CODE, UNIFORM_CODE, NORMAL_CODE}) {
    for (const bool drawn : {true, false}) {
      for (const int pixels : {2, 4}) {
        p.code = code, p.pixels = pixels;
        p.sign = drawn ? nullptr : &word, p.bytes = drawn ? nullptr : &byte;
        with_bytes(p, visit);
      }
    }
  }
}

}  // namespace fk::cuda
