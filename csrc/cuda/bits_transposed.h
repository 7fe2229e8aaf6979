// y = W^T x for few pixels, sign and constant codes, from the planes of y = W x: the gradient of inputs.
//
// A block owns four words of columns, its warps share the rows, and a step takes 32 of them. Lane (g, t) has word g % 4
// of rows 8t to 8t + 7, and of its bits bytes g / 4: even columns in the low half, odd columns in the high half.
// Permutes bring the bytes of two rows into the halves of one register, which are then neighbours along the sum as in
// the forward product; its two bytes are those of operand A's left and right. Product m of a step gives columns 2m and
// 2m + 1 of each byte, so a warp has sums of eight products. Warps meet once, in shared memory.
#pragma once
#include "cuda/bits_decode.h"

namespace fk::cuda {

constexpr int BLOCK_WORDS = 4, BLOCK_COLUMNS = 32 * BLOCK_WORDS;
constexpr int STEP_ROWS = 32, LANE_ROWS = 8;
constexpr int BYTE_BITS = 8;
constexpr int LONGEST_SUM = 512 / STEP_ROWS;                  // steps that tensor cores sum
constexpr int SIGN_ROWS = STEP_ROWS + STEP_ROWS / LANE_ROWS;  // of four words, one more after every eight
constexpr int SIGN_STAGES = 2;

// The operand of a lane: of rows `row` to row + 7 of x its column, which is a pixel, or of float32 a part of a pixel.
template <bool BFLOAT>
FK_DEVICE uint4 load_rows(const Product& p, int column, int row, bool aligned) {
  const bool in_parts = BFLOAT && p.dtype == FLOAT32;
  const int pixel = in_parts ? column / PARTS : column;
  if (pixel >= p.pixels || row >= p.rows) return {0, 0, 0, 0};
  const int64_t at = pixel * p.x_stride + row;
  const bool whole = aligned && row + LANE_ROWS <= p.rows;
  if (!in_parts) {
    const uint16_t* const from = static_cast<const uint16_t*>(p.x) + at;
    if (whole) return *reinterpret_cast<const uint4*>(from);
    uint32_t pair[4] = {0, 0, 0, 0};
    FK_UNROLL for (int i = 0; i < LANE_ROWS; ++i) {
      if (row + i < p.rows) pair[i / 2] |= static_cast<uint32_t>(from[i]) << 16 * (i % 2);
    }
    return {pair[0], pair[1], pair[2], pair[3]};
  }
  const float* const from = static_cast<const float*>(p.x) + at;
  float value[LANE_ROWS];
  if (whole) {
    const float4 low = *reinterpret_cast<const float4*>(from), high = *reinterpret_cast<const float4*>(from + 4);
    value[0] = low.x, value[1] = low.y, value[2] = low.z, value[3] = low.w;
    value[4] = high.x, value[5] = high.y, value[6] = high.z, value[7] = high.w;
  } else {
    FK_UNROLL for (int i = 0; i < LANE_ROWS; ++i) value[i] = row + i < p.rows ? from[i] : 0.0f;
  }
  for (int part = column - PARTS * pixel; part > 0; --part) {
    FK_UNROLL for (int i = 0; i < LANE_ROWS; ++i) value[i] = left_of(value[i]);
  }
  return cut_eight(value);
}

// Words of a lane's eight rows. Lanes past the rows or the words of a row read the last ones: x is zero there, and
// those columns are not stored.
struct StepWords {
  uint32_t keep[LANE_ROWS], sign[LANE_ROWS];
};
FK_DEVICE StepWords load_step(const Product& p, const uint32_t* sign, int row, int word) {
  const int last_row = p.rows - 1, last_word = p.words - 1;
  const uint32_t column = word < last_word ? word : last_word;
  const uint32_t last = static_cast<uint32_t>(last_row) * p.words + column;
  uint32_t at = static_cast<uint32_t>(row < last_row ? row : last_row) * p.words + column;
  StepWords step = {};
  FK_UNROLL for (int i = 0; i < LANE_ROWS; ++i, at += p.words) {
    const uint32_t here = at < last ? at : last;
    step.keep[i] = load_word(p.keep + here);
    if (sign) step.sign[i] = load_word(sign + here);
  }
  return step;
}

// The lane draws the signs of one row of the step, four words, and all lanes meet in `stage`, the warp's own.
FK_DEVICE void draw_step(StepWords& step, const Seed& seed, int step_row, int lane, uint4* stage) {
  const Words4 drawn =
      philox(blockIdx.x, step_row + lane, SIGN_PURPOSE | seed.generation << 8, seed.stream, seed.key0, seed.key1);
  // the gap after every eighth row puts what four lanes read at once into different banks
  stage[lane + lane / LANE_ROWS] = uint4{drawn.x[0], drawn.x[1], drawn.x[2], drawn.x[3]};
  __syncwarp();
  const uint32_t* const words = reinterpret_cast<const uint32_t*>(stage + (LANE_ROWS + 1) * (lane & 3));
  FK_UNROLL for (int i = 0; i < LANE_ROWS; ++i) step.sign[i] = words[BLOCK_WORDS * i + lane / 4 % BLOCK_WORDS];
}

// Of four rows, a byte of even and a byte of odd columns: rows 0 and 1 in the low bytes of the halves, 2 and 3 above.
struct Bytes {
  uint32_t even, odd;
};
FK_DEVICE Bytes gather(const uint32_t* row, uint32_t selector) {
  const uint32_t low = permute(row[0], row[2], selector), high = permute(row[1], row[3], selector);
  return {permute<0x5410>(low, high), permute<0x7632>(low, high)};
}

// Of a step: each half of the lane's rows.
struct StepFields {
  Fields even[2], odd[2];
};
FK_DEVICE StepFields step_fields(const StepWords& step, uint32_t selector) {
  StepFields fields;
  FK_UNROLL for (int half = 0; half < 2; ++half) {
    const Bytes keep = gather(step.keep + 4 * half, selector), sign = gather(step.sign + 4 * half, selector);
    fields.even[half] = to_fields(keep.even, sign.even), fields.odd[half] = to_fields(keep.odd, sign.odd);
  }
  return fields;
}

template <bool BFLOAT, int EIGHTS>
FK_DEVICE void multiply_step(const StepFields& step, const uint4 (&x)[EIGHTS], float (&sum)[BYTE_BITS][EIGHTS][4]) {
  FK_UNROLL for (int half = 0; half < 2; ++half) {
    const Fields &even = step.even[half], &odd = step.odd[half];
    FK_UNROLL for (int m = 0; m < BYTE_BITS; ++m) {
      const uint32_t upper = m & 1 ? even.odd : even.even, lower = m & 1 ? odd.odd : odd.even;
      const int up = 14 - (m & ~1);
      const uint32_t a[4] = {upper << up & TWO, lower << up & TWO, upper << (up - 8) & TWO, lower << (up - 8) & TWO};
      FK_UNROLL for (int n = 0; n < EIGHTS; ++n) {
        multiply<BFLOAT>(sum[m][n], a, half ? x[n].z : x[n].x, half ? x[n].w : x[n].y);
      }
    }
  }
}

FK_TWIN int warp_sums(int eights) { return BYTE_BITS * eights * 32; }

// Tensor cores round towards zero, so they sum one run, and its sums are added here, each in the lane's own place.
template <int EIGHTS>
FK_DEVICE void add_to_sums(float4* own, const float (&sum)[BYTE_BITS][EIGHTS][4], bool begun) {
  FK_UNROLL for (int m = 0; m < BYTE_BITS; ++m) {
    FK_UNROLL for (int n = 0; n < EIGHTS; ++n, own += 32) {
      const float* const add = sum[m][n];
      const float4 before = begun ? *own : float4{0, 0, 0, 0};
      *own = float4{before.x + add[0], before.y + add[1], before.z + add[2], before.w + add[3]};
    }
  }
}

template <int EIGHTS>
FK_DEVICE void write_columns(const Product& p, const float4* sums) {
  const int parts = parts_of(p);
  const float scale = half_scale(p);
  // Neighbours take neighbouring floats, so that no two of a warp meet in a bank.
  for (int i = threadIdx.x; i < 4 * warp_sums(EIGHTS); i += blockDim.x) {
    const int fragment = i / 128, m = fragment / EIGHTS, group = i / 16 & 7, odd = i / 2 & 1;
    const int bit = BYTE_BITS * (group / BLOCK_WORDS) + m;
    const int column = blockIdx.x * BLOCK_COLUMNS + 32 * (group % BLOCK_WORDS) + 2 * bit + odd;
    const int operand = 8 * (fragment % EIGHTS) + (i / 4 & 3) * 2 + (i & 1), pixel = pixel_of(operand, parts);
    if (pixel * parts != operand || pixel >= p.pixels || column >= p.cols) continue;
    const float* const from = reinterpret_cast<const float*>(sums + m * EIGHTS * 32);
    const float sum = sum_of_warps(from, blockDim.x / 32, 4 * warp_sums(EIGHTS), 128, group + 8 * odd, operand, parts);
    write_result(p, pixel, column, sum * scale);
  }
}

// Shared memory: the sums of warps, products and eighths, 32 float4 each; where signs are drawn then SIGN_STAGES for
// each warp. A warp sums `steps` steps at a time.
template <bool BFLOAT, int EIGHTS>
FK_KERNEL FK_BOUNDS(32 * bits_warps(EIGHTS), 1) bits_transposed(const Product p, const int steps) {
  wait_for_inputs();
  FK_SHARED(float4, sums);
  constexpr int WARP_SUMS = warp_sums(EIGHTS);
  const int lane = threadIdx.x & 31, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  const int group = lane / 4, quad = lane & 3;
  const bool drawn = !sign_plane(p);
  const bool aligned = (reinterpret_cast<uintptr_t>(p.x) | p.x_stride * (p.dtype == FLOAT32 ? 4 : 2)) % 16 == 0;
  const uint32_t* const sign = sign_plane(p);
  const uint32_t selector = group < BLOCK_WORDS ? 0x6240 : 0x7351;
  const int word = blockIdx.x * BLOCK_WORDS + group % BLOCK_WORDS;
  uint4* const stage = reinterpret_cast<uint4*>(sums + warps * WARP_SUMS) + warp * SIGN_STAGES * SIGN_ROWS;

  const Seed seed = read_seed(p.header);
  const int run = steps * STEP_ROWS;
  int row = warp * run;
  StepWords next = load_step(p, sign, row + LANE_ROWS * quad, word);
  bool begun = false;
  int turn = 0;
  while (row < p.rows) {
    float sum[BYTE_BITS][EIGHTS][4] = {};
    for (int step = 0; step < steps && row < p.rows; ++step) {
      // Two stages in turn: a lane writes one again only when all have come past the other.
      if (drawn) draw_step(next, seed, row, lane, stage + turn * SIGN_ROWS), turn ^= 1;
      const StepFields now = step_fields(next, selector);
      uint4 x[EIGHTS];
      FK_UNROLL for (int n = 0; n < EIGHTS; ++n) {
        x[n] = load_rows<BFLOAT>(p, 8 * n + group, row + LANE_ROWS * quad, aligned);
      }
      // The next words are on their way while these are multiplied: of the next step, or of the warp's next run.
      row += step + 1 < steps ? STEP_ROWS : STEP_ROWS + (warps - 1) * run;
      next = load_step(p, sign, row + LANE_ROWS * quad, word);
      multiply_step<BFLOAT>(now, x, sum);
    }
    add_to_sums(sums + warp * WARP_SUMS + lane, sum, begun);
    begun = true;
  }
  release_next();
  __syncthreads();
  write_columns<EIGHTS>(p, sums);
}

}  // namespace fk::cuda
