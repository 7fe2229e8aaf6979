// The first convolution of a network: one to four channels, for sign and constant codes.
//
// A block decodes 64 rows of the weight once: each warp keeps 32 of them in registers, as operand A, and walks tiles of
// 8 x 8 pixels whose inputs the block brings to shared memory, four channels of 16 bits a position. A product takes
// four taps, of which lane (g, t) has tap t with all channels: operand B of pixel g is one load of eight bytes, at any
// stride, padding and dilation. Taps past the last one read zeros that lie behind the inputs.
#pragma once
#include "cuda/convolution.h"
#include "cuda/fragments.h"

namespace fk::cuda {

constexpr int STEM_THREADS = 128, STEM_WARPS = STEM_THREADS / 32;
constexpr int TILE_SIDE = 8, LINES = 2;  // pixels each way, and lines of them that a warp makes at once
constexpr int WARP_ROWS = 32, MOST_STEM_CHANNELS = 4;
constexpr int FEW_STEPS = 3, MANY_STEPS = 13;  // of four taps: 3 x 3 and 7 x 7

// Blocks of a multiprocessor.
FK_TWIN int stem_blocks(int dtype) { return dtype == FLOAT32 ? 2 : 3; }

// Warps of a block that differ in rows; the others differ in pixels.
FK_HD int row_warps(const Convolution& c) { return c.weight.rows > WARP_ROWS ? 2 : 1; }

// Inputs of a tile, in positions of four channels.
struct Patch {
  int width, positions;
  int plane;  // with as many zeros as pixels of a tile are apart
};
FK_HD Patch patch_of(const Convolution& c) {
  const int height = (TILE_SIDE - 1) * c.stride[0] + (c.taps[0] - 1) * c.dilation[0] + 1;
  const int width = (TILE_SIDE - 1) * c.stride[1] + (c.taps[1] - 1) * c.dilation[1] + 1;
  return {width, height * width, height * width + (TILE_SIDE - 1) * (c.stride[0] * width + c.stride[1]) + 1};
}

FK_DEVICE uint32_t exchange_bits(uint32_t x, int by, uint32_t mask) {
  const uint32_t t = (x ^ x >> by) & mask;
  return x ^ t ^ t << by;
}
// From the even columns' fields of two bits in the low half and the odd columns' in the high one, to their own order.
FK_DEVICE uint32_t interleave_fields(uint32_t x) {
  return exchange_bits(exchange_bits(exchange_bits(x, 8, 0x0000FF00u), 4, 0x00F000F0u), 2, 0x0C0C0C0Cu);
}

// The weights of the block's rows as fields of two bits, keep and sign, in the order of columns: two words for each of
// the format's, and two empty ones behind those of each row.
FK_DEVICE void stage_fields(const Product& p, const Seed& seed, int row0, int rows, uint32_t* fields) {
  const int calls = p.words / 4 + 1;  // of the generator, whose words are made together
  const bool drawn = p.code == SIGN_CODE && !p.sign;
  for (int at = threadIdx.x; at < rows * calls; at += STEM_THREADS) {
    const int line = at / calls, call = at % calls, row = min(row0 + line, p.rows - 1);
    Words4 four = {};
    if (drawn) four = philox(call, row, SIGN_PURPOSE | seed.generation << 8, seed.stream, seed.key0, seed.key1);
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      const int word = 4 * call + i;
      if (word > p.words) break;
      const uint32_t keep = word < p.words ? p.keep[row * p.words + word] : 0;
      const uint32_t sign = p.sign && word < p.words ? p.sign[row * p.words + word] : four.x[i];
      const uint32_t even = to_natural_order((keep & EVEN_COLUMNS) | sign << 16);
      const uint32_t odd = to_natural_order(keep >> 16 | (sign & ODD_COLUMNS));
      uint32_t* const to = fields + 2 * (line * (p.words + 1) + word);
      to[0] = interleave_fields((even & 0xFFFFu) | odd << 16);
      to[1] = interleave_fields(even >> 16 | (odd & 0xFFFF0000u));
    }
  }
}

// The weights of two fields: the lowest to bits 14 and 15, the next to bits 30 and 31.
FK_DEVICE uint32_t to_pair(uint32_t fields) { return fields * (1u << 14 | 1u << 28) & TWO; }

// Weights of the block's rows, [rows, 4 * STEPS] taps of four channels each. A thread makes one tap of many rows.
template <int STEPS>
FK_DEVICE void decode_rows(const Convolution& c, int rows, const uint32_t* fields, uint2* weights) {
  constexpr int TAPS = 4 * STEPS, THREADS = TAPS > 16 ? 64 : 16;
  static_assert(TAPS <= THREADS, "one tap a thread");
  const int per_row = 2 * (c.weight.words + 1), tap = threadIdx.x % THREADS;
  const uint32_t bit = 2 * tap * c.channels, mask = tap < c.taps[0] * c.taps[1] ? (1u << 2 * c.channels) - 1 : 0;
  if (tap >= TAPS) return;
  const uint32_t* const from = fields + (mask ? bit / 32 : 0);
  for (int row = threadIdx.x / THREADS; row < rows; row += STEM_THREADS / THREADS) {
    const uint32_t four = __funnelshift_r(from[row * per_row], from[row * per_row + 1], bit) & mask;
    weights[row * TAPS + tap] = uint2{to_pair(four), to_pair(four >> 4)};
  }
}

template <int DTYPE>
FK_DEVICE uint32_t read_bits(const void* from, int at) {
  return DTYPE == FLOAT32 ? static_cast<const uint32_t*>(from)[at] : static_cast<const uint16_t*>(from)[at];
}

// The inputs from line h0 and column w0 on; of float32 each part to a plane of its own.
template <int DTYPE>
FK_DEVICE void load_patch(const Convolution& c, const Patch& patch, int sample, int h0, int w0, uint2* planes) {
  constexpr int AT_ONCE = 4;
  const uint32_t reciprocal = 0xFFFFFFFFu / patch.width + 1;
  const int by_channel = static_cast<int>(c.x_stride[1]), by_line = static_cast<int>(c.x_stride[2]);
  const int by_pixel = static_cast<int>(c.x_stride[3]), first_element = sample * static_cast<int>(c.x_stride[0]);
  for (int first = threadIdx.x; first < patch.positions; first += AT_ONCE * STEM_THREADS) {
    uint32_t x[AT_ONCE][4];
    FK_UNROLL for (int i = 0; i < AT_ONCE; ++i) {
      const int at = first + i * STEM_THREADS, line = __umulhi(at, reciprocal);
      const int h = h0 + line, w = w0 + at - line * patch.width;
      const bool exists = at < patch.positions && h >= 0 && h < c.wide[0] && w >= 0 && w < c.wide[1];
      const int from = first_element + h * by_line + w * by_pixel;
      FK_UNROLL for (int channel = 0; channel < 4; ++channel) {
        const bool reads = exists && channel < c.channels;
        x[i][channel] = reads ? read_bits<DTYPE>(c.weight.x, from + channel * by_channel) : 0;
      }
    }
    FK_UNROLL for (int i = 0; i < AT_ONCE; ++i) {
      const int at = first + i * STEM_THREADS;
      if (at >= patch.positions) break;
      if constexpr (DTYPE == FLOAT32) {
        uint32_t low[3], high[3];
        to_parts(to_float(x[i][0]), to_float(x[i][1]), low);
        to_parts(to_float(x[i][2]), to_float(x[i][3]), high);
        FK_UNROLL for (int part = 0; part < 3; ++part) planes[part * patch.plane + at] = uint2{low[part], high[part]};
      } else {
        planes[at] = uint2{permute<0x5410>(x[i][0], x[i][1]), permute<0x5410>(x[i][2], x[i][3])};
      }
    }
  }
}

// Operand A of a warp's 32 rows from `row` - g on, by way of shared memory.
template <int STEPS>
FK_DEVICE void take_weights(const Convolution& c, const Seed& seed, int row0, int row, uint2* shared,
                            uint32_t (&a)[STEPS][2][4]) {
  const int rows = WARP_ROWS * row_warps(c), t = threadIdx.x & 3;
  uint32_t* const fields = reinterpret_cast<uint32_t*>(shared + rows * (4 * STEPS));
  stage_fields(c.weight, seed, row0, rows, fields);
  __syncthreads();
  decode_rows<STEPS>(c, rows, fields, shared);
  __syncthreads();
  FK_UNROLL for (int step = 0; step < STEPS; ++step) {
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      const uint2 weights = shared[(row - row0 + 8 * i) * (4 * STEPS) + 4 * step + t];
      a[step][i >> 1][i & 1] = weights.x;
      a[step][i >> 1][2 + (i & 1)] = weights.y;
    }
  }
  __syncthreads();
}

// Factor and bias of each of the block's rows.
FK_DEVICE void stage_ends(const Product& p, float unit, int row0, float2* ends) {
  const int row = row0 + threadIdx.x;
  if (row >= p.rows || threadIdx.x >= 2 * WARP_ROWS) return;
  ends[threadIdx.x] = float2{p.gain ? unit * p.gain[row] : unit, p.bias ? read_element(p.bias, p.bias_dtype, row) : 0};
}

// Positions from a pixel's first tap to each of its taps, or from any pixel to a zero.
template <int STEPS>
FK_DEVICE void stage_offsets(const Convolution& c, const Patch& patch, int* offsets) {
  const int tap = threadIdx.x, h = tap / c.taps[1] * c.dilation[0], w = tap % c.taps[1] * c.dilation[1];
  if (tap < 4 * STEPS) offsets[tap] = tap < c.taps[0] * c.taps[1] ? h * patch.width + w : patch.positions;
}

// Sums of 32 rows and of lines of eight pixels.
template <int KINDS>
struct LineSums {
  float of[KINDS][LINES][2][4];
};

template <int DTYPE, int STEPS, int KINDS>
FK_DEVICE void multiply_lines(const uint2* from, int plane, int line, const int* offsets,
                              const uint32_t (&a)[STEPS][2][4], LineSums<KINDS>& sums) {
  FK_UNROLL for (int step = 0; step < STEPS; ++step) {
    const uint2* const tap = from + offsets[4 * step];
    FK_UNROLL for (int part = 0; part < (DTYPE == FLOAT32 ? 3 : 1); ++part) {
      FK_UNROLL for (int n = 0; n < LINES; ++n) {
        const uint2 b = tap[part * plane + n * line];
        FK_UNROLL for (int i = 0; i < 2; ++i) {
          multiply<DTYPE != FLOAT16>(sums.of[part ? KINDS - 1 : 0][n][i], a[step][i], b.x, b.y);
        }
      }
    }
  }
}

// `ends` of the lane's first row.
template <int KINDS>
FK_DEVICE void finish_lines(const float2* ends, bool relu, const LineSums<KINDS>& sums, float (&v)[LINES][4][2]) {
  FK_UNROLL for (int i = 0; i < 4; ++i) {
    const float2 end = ends[8 * i];
    FK_UNROLL for (int j = 0; j < 2 * LINES; ++j) {
      const int n = j >> 1, at = 2 * (i & 1) + (j & 1);
      float sum = sums.of[0][n][i >> 1][at];
      if constexpr (KINDS == 2) sum += sums.of[1][n][i >> 1][at];
      const float value = sum * end.x + end.y;
      v[n][i][j & 1] = relu && value < 0.0f ? 0.0f : value;
    }
  }
}

// A lane's part of the result: rows row + 8 i, two pixels of each line.
template <int DTYPE>
FK_DEVICE void write_lines(const Convolution& c, int row, int sample, int h, int w, const float (&v)[LINES][4][2]) {
  const Product& p = c.weight;
  const int g = threadIdx.x >> 2 & 7, t = threadIdx.x & 3, odd = g & 1;
  const int by_row = static_cast<int>(c.y_stride[1]), by_line = static_cast<int>(c.y_stride[2]);
  const int by_pixel = static_cast<int>(c.y_stride[3]), by_sample = static_cast<int>(c.y_stride[0]);
  const int corner = sample * by_sample + h * by_line + w * by_pixel;
  const bool rows_last = by_row == 1;
  const bool aligned =
      (by_sample | by_line | (rows_last ? by_pixel : by_row)) % 2 == 0 && reinterpret_cast<uintptr_t>(p.y) % 8 == 0;
  const bool whole = h + LINES <= c.narrow[0] && w + TILE_SIDE <= c.narrow[1] && row - g + WARP_ROWS <= p.rows;
  if (whole && aligned && rows_last) {
    const int first = corner + (2 * t + odd) * by_pixel + row - odd;
    FK_UNROLL for (int n = 0; n < LINES; ++n) {
      FK_UNROLL for (int i = 0; i < 4; ++i) {
        write_exchanged<DTYPE>(p.y, odd, first + n * by_line + 8 * i, true, v[n][i][0], v[n][i][1]);
      }
    }
  } else if (whole && aligned && by_pixel == 1) {
    const int first = corner + row * by_row + 2 * t;
    FK_UNROLL for (int n = 0; n < LINES; ++n) {
      FK_UNROLL for (int i = 0; i < 4; ++i) {
        write_pair<DTYPE>(p.y, first + n * by_line + 8 * i * by_row, v[n][i][0], v[n][i][1]);
      }
    }
  } else {
    FK_UNROLL for (int n = 0; n < LINES; ++n) {
      FK_UNROLL for (int j = 0; j < 8; ++j) {
        const int channel = row + 8 * (j >> 1), pixel = 2 * t + (j & 1);
        if (channel < p.rows && h + n < c.narrow[0] && w + pixel < c.narrow[1]) {
          const int at = corner + channel * by_row + n * by_line + pixel * by_pixel;
          write_element(p.y, DTYPE, at, v[n][j >> 1][j & 1]);
        }
      }
    }
  }
}

template <int DTYPE, int STEPS>
FK_KERNEL FK_BOUNDS(STEM_THREADS, stem_blocks(DTYPE)) stem(const Convolution c) {
  wait_for_inputs();
  constexpr int PARTS = DTYPE == FLOAT32 ? 3 : 1, KINDS = DTYPE == FLOAT32 ? 2 : 1;
  FK_SHARED(uint2, shared);
  const Product& p = c.weight;
  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
  const int warps = row_warps(c), row0 = blockIdx.y * (WARP_ROWS * warps);
  const int row = row0 + WARP_ROWS * (warp % warps) + g;
  const Seed seed = read_seed(p.header);
  uint32_t a[STEPS][2][4];
  take_weights(c, seed, row0, row, shared, a);
  const Patch patch = patch_of(c);
  float2* const ends = reinterpret_cast<float2*>(shared + PARTS * patch.plane);
  stage_ends(p, UNIT * seed.scale, row0, ends);
  for (int part = 0; part < PARTS; ++part) {
    for (int at = patch.positions + threadIdx.x; at < patch.plane; at += STEM_THREADS) {
      shared[part * patch.plane + at] = uint2{0, 0};
    }
  }
  int* const offsets = reinterpret_cast<int*>(ends + 2 * WARP_ROWS);
  stage_offsets<STEPS>(c, patch, offsets);
  const int across = (c.narrow[1] + TILE_SIDE - 1) / TILE_SIDE, down = (c.narrow[0] + TILE_SIDE - 1) / TILE_SIDE;
  // The next kernel begins when all blocks have, so that it takes no place of theirs.
  release_next();
  for (int tile = blockIdx.x; tile < c.batch * down * across; tile += gridDim.x) {
    const int w0 = tile % across * TILE_SIDE, h0 = tile / across % down * TILE_SIDE, sample = tile / across / down;
    load_patch<DTYPE>(c, patch, sample, h0 * c.stride[0] - c.padding[0], w0 * c.stride[1] - c.padding[1], shared);
    __syncthreads();
    FK_ROLLED for (int line = warp / warps * LINES; line < TILE_SIDE; line += STEM_WARPS / warps * LINES) {
      LineSums<KINDS> sums = {};
      multiply_lines<DTYPE>(shared + line * c.stride[0] * patch.width + g * c.stride[1], patch.plane,
                            c.stride[0] * patch.width, offsets + t, a, sums);
      float v[LINES][4][2];
      finish_lines(ends + (row - row0), p.relu, sums, v);
      write_lines<DTYPE>(c, row, sample, h0 + line, w0, v);
    }
    __syncthreads();
  }
}

inline int stem_steps(const Convolution& c) { return c.taps[0] * c.taps[1] <= 4 * FEW_STEPS ? FEW_STEPS : MANY_STEPS; }

inline int64_t stem_shared(const Convolution& c) {
  const int64_t rows = WARP_ROWS * row_warps(c), parts = c.weight.dtype == FLOAT32 ? 3 : 1;
  const int64_t weights = rows * (4 * 8 * stem_steps(c) + 2 * 4 * (c.weight.words + 1));
  const int64_t planes = parts * 8 * patch_of(c).plane + 8 * 2 * WARP_ROWS + 4 * 4 * stem_steps(c);
  return weights > planes ? weights : planes;
}

// As many blocks as a device holds at once, each of as many tiles.
inline Plan plan_stem(const Convolution& c, int multiprocessors) {
  const int64_t tiles = int64_t{c.batch} * divide_up(c.narrow[0], TILE_SIDE) * divide_up(c.narrow[1], TILE_SIDE);
  const int row_blocks = divide_up(c.weight.rows, WARP_ROWS * row_warps(c));
  const int resident = divide_up(int64_t{stem_blocks(c.weight.dtype)} * multiprocessors, row_blocks);
  const int each = divide_up(tiles, resident);
  return {{divide_up(tiles, each), row_blocks}, STEM_THREADS, static_cast<int>(stem_shared(c)), each};
}

inline const char* stem_refuses(const Convolution& c) {
  const Product& p = c.weight;
  if (p.code != SIGN_CODE && p.code != CONSTANT_CODE) return "codes other than sign and constant";
  if (p.transposed) return "the transpose of a convolution";
  if (c.channels > MOST_STEM_CHANNELS) return "more than 4 channels";
  if (c.taps[0] * c.taps[1] > 4 * MANY_STEPS) return "more than 52 taps";
  if (!is_within_reach(c)) return "offsets of more than 29 bits";
  constexpr const char* TOO_WIDE = "inputs of a tile that are more than shared memory holds";
  for (int i = 0; i < 2; ++i) {
    // so that what follows is no large number
    const int64_t reach = int64_t{TILE_SIDE} * c.stride[i] + int64_t{c.taps[i]} * c.dilation[i];
    if (reach > SHARED_LIMIT / 8) return TOO_WIDE;
  }
  return stem_shared(c) > SHARED_LIMIT ? TOO_WIDE : nullptr;
}

template <int DTYPE, class Visit>
auto with_steps(int steps, const Visit& visit) {
  return visit(steps == FEW_STEPS ? stem<DTYPE, FEW_STEPS> : stem<DTYPE, MANY_STEPS>);
}
template <class Visit>
auto with_stem(const Convolution& c, const Visit& visit) {
  if (c.weight.dtype == FLOAT32) return with_steps<FLOAT32>(stem_steps(c), visit);
  return c.weight.dtype == BFLOAT16 ? with_steps<BFLOAT16>(stem_steps(c), visit)
                                    : with_steps<FLOAT16>(stem_steps(c), visit);
}
template <class Visit>
void each_stem(const Visit& visit) {
  for (const int steps : {FEW_STEPS, MANY_STEPS}) {
    with_steps<FLOAT32>(steps, visit);
    with_steps<BFLOAT16>(steps, visit);
    with_steps<FLOAT16>(steps, visit);
  }
}

}  // namespace fk::cuda
