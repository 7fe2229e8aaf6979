// The family of sign and constant codes for linear layers of few pixels: what it serves, and how.
#pragma once
#include "cuda/bits_forward.h"
#include "cuda/bits_transposed.h"

namespace fk::cuda {

using BitsKernel = void (*)(Product, int);

// Operands of 8 columns that x takes, of which there are two at most.
constexpr int bits_eights(const Product& p) {
  return divide_up(int64_t{p.pixels} * (p.dtype == FLOAT32 ? PARTS : 1), 8);
}
constexpr bool bits_drawn(const Product& p) { return !p.sign && p.code == SIGN_CODE; }

inline const char* bits_refuses(const Product& p) {
  if (p.code != SIGN_CODE && p.code != CONSTANT_CODE) return "codes of more than a sign";
  if (p.dtype != FLOAT32 && p.dtype != BFLOAT16 && p.dtype != FLOAT16) return "a dtype that is no float";
  if (bits_eights(p) > 2) return "too many pixels";
  if (int64_t{p.rows} * p.words > INT32_MAX) return "too many words";
  if (p.transposed) return nullptr;
  const int element = p.dtype == FLOAT32 ? 4 : 2;
  const uintptr_t bases =
      reinterpret_cast<uintptr_t>(p.x) | reinterpret_cast<uintptr_t>(p.keep) | reinterpret_cast<uintptr_t>(p.sign);
  if (p.words % 4) return "rows of words that are not aligned to 16 bytes";
  if (bases % 16 || p.cols * element % 16 || (p.pixels > 1 && p.x_stride * element % 16))
    return "inputs or planes that are not aligned to 16 bytes";
  return nullptr;
}

// Slices as even over the warps as can be, and blocks that fill the device in whole waves.
inline Plan plan_forward(const Product& p, int multiprocessors) {
  const int eights = bits_eights(p), most = bits_warps(eights), slices = divide_up(p.cols, SLICE);
  const int warps = divide_up(slices, divide_up(slices, most)), resident = most / warps;
  const int stage = p.dtype == FLOAT32 ? warps * PARTS * PART_EIGHTS * 16 : 0, tile = warps * eights * FRAGMENT * 16;
  // the driver takes 1 kB of each block's share
  const int fitting = (SHARED_LIMIT / resident - 1024 - stage) / tile;
  const int all_tiles = divide_up(p.rows, TILE_ROWS), wave = multiprocessors * resident;
  const int tiles = divide_up(all_tiles, int64_t{wave} * divide_up(all_tiles, int64_t{wave} * fitting));
  return {{divide_up(all_tiles, tiles), 1}, 32 * warps, tiles * tile + stage, tiles};
}

// A block for every four words; its warps take the rows in as few runs as tensor cores may sum.
inline Plan plan_transposed(const Product& p) {
  const int eights = bits_eights(p), most = bits_warps(eights), all_steps = divide_up(p.rows, STEP_ROWS);
  const int steps = divide_up(all_steps, most * divide_up(all_steps, most * LONGEST_SUM));
  const int runs = divide_up(all_steps, steps), warps = runs < most ? runs : most;
  const int stage = bits_drawn(p) ? SIGN_STAGES * SIGN_ROWS * 16 : 0;
  return {{divide_up(p.words, BLOCK_WORDS), 1}, 32 * warps, warps * (warp_sums(eights) * 16 + stage), steps};
}

inline Plan plan_bits(const Product& p, int multiprocessors) {
  return p.transposed ? plan_transposed(p) : plan_forward(p, multiprocessors);
}

template <bool BFLOAT, int EIGHTS>
BitsKernel bits_kernel(const Product& p) {
  if (p.transposed) return bits_transposed<BFLOAT, EIGHTS>;
  return bits_drawn(p) ? bits<BFLOAT, true, EIGHTS> : bits<BFLOAT, false, EIGHTS>;
}

// float32 is three parts of bfloat16.
template <class Visit>
auto with_bits(const Product& p, const Visit& visit) {
  const bool one = bits_eights(p) == 1;
  if (p.dtype == FLOAT16) return visit(one ? bits_kernel<false, 1>(p) : bits_kernel<false, 2>(p));
  return visit(one ? bits_kernel<true, 1>(p) : bits_kernel<true, 2>(p));
}

template <class Visit>
void each_bits(const Visit& visit) {
  const BitsKernel kernels[] = {bits<false, false, 1>,     bits<false, false, 2>,    bits<false, true, 1>,
                                bits<false, true, 2>,      bits<true, false, 1>,     bits<true, false, 2>,
                                bits<true, true, 1>,       bits<true, true, 2>,      bits_transposed<false, 1>,
                                bits_transposed<false, 2>, bits_transposed<true, 1>, bits_transposed<true, 2>};
  for (const BitsKernel kernel : kernels) visit(kernel);
}

}  // namespace fk::cuda
