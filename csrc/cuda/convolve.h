// Convolutions of a small batch for sign and constant codes, as an implicit matrix product on tensor cores.
//
// The warps of a block share a tile of 16 * ROW_TILES rows and 8 * PIXEL_TILES pixels and differ in columns, so that
// few tiles still fill a GPU; their sums meet once, in shared memory, in the order of the warps. A step of a warp is
// four words, 128 columns: lane (g, t) decodes word t of rows g and g + 8 of each row tile, and reads the columns of
// that word from pixel g of each pixel tile, eight channels of one tap at a time. These wait in registers, and when
// eight are multiplied the next ones take their place.
#pragma once
#include "cuda/fragments.h"
#include "cuda/convolution.h"

namespace fk::cuda {

constexpr int STEP_WORDS = 4, STEP_COLUMNS = 32 * STEP_WORDS;
constexpr int CHUNKS = 4;          // of eight channels, of a word
constexpr int STEPS_OF_A_SUM = 4;  // that tensor cores sum, 512 columns; the rest rounds to nearest
constexpr int MOST_TAPS = 32;      // a lane and a bit for each

// Where the next eight columns of a lane's word are.
struct Place {
  int tap, channel;
  uint32_t bit;  // of the tap; zero past the last one

  FK_DEVICE void move(int taps, int channels, int of) {
    channel += channels;
    const int over = channel >= of;
    channel -= over ? of : 0;
    tap += taps + over;
    bit = tap < MOST_TAPS ? 1u << tap : 0;
  }
};

// Of the pixel that a lane reads in a tile: the element where its first tap lies, and which of its taps exist.
struct Origin {
  int element;
  uint32_t taps;
};

FK_DEVICE Origin to_origin(const Convolution& c, int pixel) {
  const int column = pixel % c.narrow[1], line = pixel / c.narrow[1] % c.narrow[0];
  const int sample = pixel / c.narrow[1] / c.narrow[0];
  const int h = line * c.stride[0] - c.padding[0], w = column * c.stride[1] - c.padding[1];
  uint32_t across = 0, taps = 0;
  for (int i = 0; i < c.taps[1]; ++i) {
    const int at = w + i * c.dilation[1];
    across |= static_cast<uint32_t>(at >= 0 && at < c.wide[1]) << i;
  }
  for (int i = 0; i < c.taps[0]; ++i) {
    const int at = h + i * c.dilation[0];
    taps |= at >= 0 && at < c.wide[0] ? across << i * c.taps[1] : 0;
  }
  const int64_t element = sample * c.x_stride[0] + h * c.x_stride[2] + w * c.x_stride[3];
  return {static_cast<int>(element), pixel < c.weight.pixels ? taps : 0};
}

// Lanes of a quad read the same pixels, so each makes the origin in one pixel tile.
template <int PIXEL_TILES>
FK_DEVICE void share_origins(const Origin& mine, int first_lane, Origin (&origins)[PIXEL_TILES]) {
  FK_UNROLL for (int n = 0; n < PIXEL_TILES; ++n) {
    origins[n].element = __shfl_sync(~0u, mine.element, first_lane + n);
    origins[n].taps = __shfl_sync(~0u, mine.taps, first_lane + n);
  }
}

// Elements from a pixel's first tap to tap `lane`.
FK_DEVICE int to_tap_offset(const Convolution& c, int lane) {
  const int h = lane / c.taps[1] * c.dilation[0], w = lane % c.taps[1] * c.dilation[1];
  return static_cast<int>(h * c.x_stride[2] + w * c.x_stride[3]);
}

// Words of a lane: of rows g and g + 8 of each row tile.
template <int ROWS>
struct ConvolveWords {
  uint32_t keep[ROWS], sign[ROWS];
};

template <bool DRAWN, int ROWS>
FK_DEVICE void load_step(const Product& p, const uint32_t (&lines)[ROWS], int word, ConvolveWords<ROWS>& words) {
  // Past the end x is zero, so that any word will do there. The first-level cache is used: a step takes half a sector.
  const int at = min(word, p.words - 1);
  FK_UNROLL for (int i = 0; i < ROWS; ++i) words.keep[i] = load_shared_word(p.keep + (lines[i] + at));
  if constexpr (!DRAWN) {
    FK_UNROLL for (int i = 0; i < ROWS; ++i) words.sign[i] = p.sign ? load_shared_word(p.sign + (lines[i] + at)) : 0;
  }
}

// Signs of a step. One call makes the four words of a row, so each lane of a quad makes those of another row.
template <int ROWS>
FK_DEVICE void draw_step(const Seed& seed, int row, int t, int step, ConvolveWords<ROWS>& words) {
  FK_UNROLL for (int i = 0; i < ROWS; i += 4) {
    Words4 four =
        philox(step, row + 8 * (i + t), SIGN_PURPOSE | seed.generation << 8, seed.stream, seed.key0, seed.key1);
    transpose_quad(four.x, t);
    FK_UNROLL for (int j = 0; j < 4; ++j) words.sign[i + j] = four.x[j];
  }
}

// Eight channels of a pixel in each pixel tile: a load of 16 bytes, or two.
template <int PIXEL_TILES, int LOADS>
struct Chunk {
  uint4 x[PIXEL_TILES][LOADS];
};

template <int PIXEL_TILES, int LOADS>
FK_DEVICE void load_chunk(const Convolution& c, const Origin (&origins)[PIXEL_TILES], int tap_offset, Place& place,
                          Chunk<PIXEL_TILES, LOADS>& chunk) {
  constexpr int BYTES = 2 * LOADS;
  const int offset = __shfl_sync(~0u, tap_offset, place.tap) + place.channel;
  FK_UNROLL for (int n = 0; n < PIXEL_TILES; ++n) {
    const uint4* const from = reinterpret_cast<const uint4*>(static_cast<const uint8_t*>(c.weight.x) +
                                                             int64_t{BYTES} * (origins[n].element + offset));
    const bool exists = origins[n].taps & place.bit;
    FK_UNROLL for (int i = 0; i < LOADS; ++i) chunk.x[n][i] = load_existing(from + i, exists);
  }
  place.move(0, 8, c.channels);
}

// Sums of a warp's tile; of float32 inputs those of the first parts apart from the rest, which are far smaller.
template <int ROW_TILES, int PIXEL_TILES, int KINDS>
struct Sums {
  float of[KINDS][ROW_TILES][PIXEL_TILES][4];
};

template <int DTYPE, int ROW_TILES, int PIXEL_TILES, int KINDS, int LOADS>
FK_DEVICE void multiply_chunk(const Fields (&fields)[2 * ROW_TILES], int q, const Chunk<PIXEL_TILES, LOADS>& chunk,
                              Sums<ROW_TILES, PIXEL_TILES, KINDS>& sums) {
  constexpr int PARTS = DTYPE == FLOAT32 ? 3 : 1;
  FK_UNROLL for (int k = 0; k < 2; ++k) {
    uint32_t a[ROW_TILES][4];
    FK_UNROLL for (int i = 0; i < ROW_TILES; ++i) to_operand(fields[2 * i], fields[2 * i + 1], 2 * q + k, a[i]);
    FK_UNROLL for (int n = 0; n < PIXEL_TILES; ++n) {
      uint32_t b[2][3];
      if constexpr (DTYPE == FLOAT32) {
        const uint4& four = chunk.x[n][k];
        to_parts(to_float(four.x), to_float(four.y), b[0]);
        to_parts(to_float(four.z), to_float(four.w), b[1]);
      } else {
        const uint4& eight = chunk.x[n][0];
        b[0][0] = k ? eight.z : eight.x;
        b[1][0] = k ? eight.w : eight.y;
      }
      FK_UNROLL for (int part = 0; part < PARTS; ++part) {
        FK_UNROLL for (int i = 0; i < ROW_TILES; ++i) {
          multiply<DTYPE != FLOAT16>(sums.of[part ? 1 : 0][i][n], a[i], b[0][part], b[1][part]);
        }
      }
    }
  }
}

// A lane's own places, so no barrier is needed.
template <int ROW_TILES, int PIXEL_TILES, int KINDS>
FK_DEVICE void add_sums(float4* to, const Sums<ROW_TILES, PIXEL_TILES, KINDS>& sums) {
  FK_UNROLL for (int i = 0; i < ROW_TILES; ++i) {
    FK_UNROLL for (int n = 0; n < PIXEL_TILES; ++n) {
      float4& total = to[(i * PIXEL_TILES + n) * 32];
      float v[4];
      FK_UNROLL for (int j = 0; j < 4; ++j) {
        v[j] = sums.of[0][i][n][j];
        if constexpr (KINDS == 2) v[j] += sums.of[1][i][n][j];
      }
      total = float4{total.x + v[0], total.y + v[1], total.z + v[2], total.w + v[3]};
    }
  }
}

// The sums of all warps, and what they become in y. Pixels of y lie evenly.
template <int DTYPE, int ROW_TILES, int PIXEL_TILES>
FK_DEVICE void finish_convolution(const Convolution& c, const float4* sums, float unit, int row0, int pixel0) {
  constexpr int TILES = ROW_TILES * PIXEL_TILES;
  const Product& p = c.weight;
  const int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3, warps = blockDim.x >> 5, odd = g & 1;
  const int64_t stride = pixel_stride(c);
  const bool aligned = stride % 2 == 0 && reinterpret_cast<uintptr_t>(p.y) % 8 == 0;
  for (int tile = threadIdx.x >> 5; tile < TILES; tile += warps) {
    float v[4] = {};
    for (int warp = 0; warp < warps; ++warp) {
      const float4 part = sums[(warp * TILES + tile) * 32 + lane];
      v[0] += part.x, v[1] += part.y, v[2] += part.z, v[3] += part.w;
    }
    const int row = row0 + tile / PIXEL_TILES * 16 + g, pixel = pixel0 + tile % PIXEL_TILES * 8 + 2 * t;
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      const int channel = min(row + (i >> 1) * 8, p.rows - 1);
      v[i] = finished(v[i] * unit, p.gain, p.bias, p.bias_dtype, p.relu, channel);
    }
    if (aligned && row - g + 16 <= p.rows) {
      FK_UNROLL for (int i = 0; i < 4; i += 2) {
        const int64_t at = (pixel + odd) * stride + (row - odd + 4 * i);
        write_exchanged<DTYPE>(p.y, odd, at, pixel + odd < p.pixels, v[i], v[i + 1]);
      }
    } else {
      FK_UNROLL for (int i = 0; i < 4; ++i) {
        const int to_row = row + (i >> 1) * 8, to_pixel = pixel + (i & 1);
        if (to_row < p.rows && to_pixel < p.pixels) write_element(p.y, DTYPE, to_pixel * stride + to_row, v[i]);
      }
    }
  }
}

template <int DTYPE, bool DRAWN, int ROW_TILES, int PIXEL_TILES, int WARPS>
FK_KERNEL FK_BOUNDS(32 * WARPS, DTYPE == FLOAT32 && WARPS == 8 ? 1 : 2) convolve(const Convolution c) {
  wait_for_inputs();
  constexpr int ROWS = 2 * ROW_TILES, LOADS = DTYPE == FLOAT32 ? 2 : 1;
  constexpr int AHEAD = ROW_TILES * LOADS > 2 ? 2 : CHUNKS;  // chunks in registers
  FK_SHARED(float4, sums);
  const Product& p = c.weight;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3, warps = blockDim.x >> 5;
  const int row0 = blockIdx.y * (16 * ROW_TILES), pixel0 = blockIdx.x * (8 * PIXEL_TILES);
  const int steps = (p.words + STEP_WORDS - 1) / STEP_WORDS;
  const Seed seed = read_seed(p.header);
  uint32_t lines[ROWS];
  FK_UNROLL for (int i = 0; i < ROWS; ++i) lines[i] = min(row0 + 8 * i + g, p.rows - 1) * p.words;
  ConvolveWords<ROWS> next;
  load_step<DRAWN>(p, lines, STEP_WORDS * warp + t, next);
  Origin origins[PIXEL_TILES];
  share_origins(to_origin(c, pixel0 + 8 * (t % PIXEL_TILES) + g), lane - t, origins);
  const int tap_offset = to_tap_offset(c, lane), column = STEP_COLUMNS * warp + 32 * t;
  const int jump = STEP_COLUMNS * warps - 32, jump_taps = jump / c.channels, jump_channels = jump % c.channels;
  Place place = {0, 0, 0};
  place.move(column / c.channels, column % c.channels, c.channels);
  Chunk<PIXEL_TILES, LOADS> x[AHEAD];
  FK_UNROLL for (int q = 0; q < AHEAD; ++q) load_chunk(c, origins, tap_offset, place, x[q]);
  float4* const mine = sums + warp * (ROW_TILES * PIXEL_TILES * 32) + lane;
  FK_UNROLL for (int i = 0; i < ROW_TILES * PIXEL_TILES; ++i) mine[32 * i] = float4{0, 0, 0, 0};
  for (int step = warp; step < steps;) {
    Sums<ROW_TILES, PIXEL_TILES, DTYPE == FLOAT32 ? 2 : 1> sum = {};
    for (int i = 0; i < STEPS_OF_A_SUM && step < steps; ++i, step += warps) {
      if (DRAWN) draw_step(seed, row0 + g, t, step, next);
      Fields fields[ROWS];
      FK_UNROLL for (int j = 0; j < ROWS; ++j) fields[j] = to_fields(next.keep[j], next.sign[j]);
      load_step<DRAWN>(p, lines, STEP_WORDS * (step + warps) + t, next);
      FK_UNROLL for (int q = 0; q < CHUNKS; ++q) {
        multiply_chunk<DTYPE>(fields, q, x[q % AHEAD], sum);
        if (q == CHUNKS - AHEAD) place.move(jump_taps, jump_channels, c.channels);
        load_chunk(c, origins, tap_offset, place, x[q % AHEAD]);
      }
    }
    add_sums(mine, sum);
  }
  release_next();
  __syncthreads();
  finish_convolution<DTYPE, ROW_TILES, PIXEL_TILES>(c, sums, UNIT * seed.scale, row0, pixel0);
}

// Rows and pixels of a tile in units of 16 and 8, and the most warps of a block.
struct TileShape {
  int row_tiles, pixel_tiles, warps;
};
inline TileShape tile_shape(const Convolution& c, bool large) {
  return large ? TileShape{4, c.weight.dtype == FLOAT32 ? 2 : 4, 4} : TileShape{2, 2, 8};
}

constexpr int ENOUGH_BLOCKS = 128;  // about one for each multiprocessor of a large GPU

inline bool fills_large_tiles(const Convolution& c) {
  const TileShape shape = tile_shape(c, true);
  const int64_t blocks = divide_up(c.weight.rows, 16 * shape.row_tiles);
  return blocks * divide_up(c.weight.pixels, 8 * shape.pixel_tiles) >= ENOUGH_BLOCKS;
}

inline Plan plan_tiles(const Convolution& c, bool large) {
  const TileShape shape = tile_shape(c, large);
  const int steps = divide_up(c.weight.words, STEP_WORDS), tiles = shape.row_tiles * shape.pixel_tiles;
  // As few warps as make no more steps each.
  const int warps = divide_up(steps, divide_up(steps, shape.warps));
  return {{divide_up(c.weight.pixels, 8 * shape.pixel_tiles), divide_up(c.weight.rows, 16 * shape.row_tiles)},
          32 * warps,
          warps * tiles * 32 * 16,
          1};
}
inline Plan plan_convolve(const Convolution& c, int) { return plan_tiles(c, fills_large_tiles(c)); }

inline const char* convolve_refuses(const Convolution& c) {
  const Product& p = c.weight;
  if (p.code != SIGN_CODE && p.code != CONSTANT_CODE) return "codes other than sign and constant";
  if (p.transposed) return "the transpose of a convolution";
  if (c.taps[0] * c.taps[1] > MOST_TAPS) return "more than 32 taps";
  if (c.channels % 8) return "channels that are no multiple of 8";
  if (c.x_stride[1] != 1 || (p.rows > 1 && c.y_stride[1] != 1)) return "channels that do not lie one after another";
  if (!lies_evenly(c)) return "pixels of the result that do not lie evenly";
  if (!reads_aligned(c)) return "inputs that are not aligned to 16 bytes";
  if (!is_within_reach(c)) return "offsets of more than 29 bits";
  return nullptr;
}

template <int DTYPE, class Visit>
auto with_dtype(bool drawn, bool large, const Visit& visit) {
  constexpr int PIXEL_TILES = DTYPE == FLOAT32 ? 2 : 4;
  if (large) return visit(drawn ? convolve<DTYPE, true, 4, PIXEL_TILES, 4> : convolve<DTYPE, false, 4, PIXEL_TILES, 4>);
  return visit(drawn ? convolve<DTYPE, true, 2, 2, 8> : convolve<DTYPE, false, 2, 2, 8>);
}
template <class Visit>
auto with_tiles(const Convolution& c, bool large, const Visit& visit) {
  const bool drawn = c.weight.code == SIGN_CODE && !c.weight.sign;
  if (c.weight.dtype == FLOAT32) return with_dtype<FLOAT32>(drawn, large, visit);
  return c.weight.dtype == BFLOAT16 ? with_dtype<BFLOAT16>(drawn, large, visit)
                                    : with_dtype<FLOAT16>(drawn, large, visit);
}
template <class Visit>
auto with_convolve(const Convolution& c, const Visit& visit) {
  return with_tiles(c, fills_large_tiles(c), visit);
}
template <class Visit>
void each_convolve(const Visit& visit) {
  for (const bool large : {false, true}) {
    for (const bool drawn : {false, true}) {
      with_dtype<FLOAT32>(drawn, large, visit);
      with_dtype<BFLOAT16>(drawn, large, visit);
      with_dtype<FLOAT16>(drawn, large, visit);
    }
  }
}

}  // namespace fk::cuda
