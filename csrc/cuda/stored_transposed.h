// y = W^T x of a stored weight, for few pixels.
//
// A block owns `span` words of columns, so that no sum leaves it, and its warps share the rows: a warp takes 32 / span
// of them at a time, a lane one word of one row. A lane adds to sums of its own, 32 columns in shared memory by bit,
// then by lane, where banks never meet; the lanes' sums meet at the end, in the order of rows. Few spans are few
// blocks, and narrow ones read scattered values: the plan takes the widest that fill the multiprocessors.
#pragma once
#include "cuda/stored_walk.h"

namespace fk::cuda {

constexpr int STORED_SUM_BYTES = 32 * 32 * 4;  // of a warp, for each pixel

FK_TWIN int transposed_warps(int pixels) { return pixels == 1 ? 16 : pixels == 2 ? 12 : 6; }

// Bits in a lane's share of the first `count` words, which the lanes of a group of `span` share; four words at a time
// where they are aligned.
FK_DEVICE uint32_t count_share(const uint32_t* words, int count, bool aligned, int member, int span) {
  uint32_t bits = 0;
  const int fours = aligned ? count / 4 : 0;
  for (int i = member; i < fours; i += span) {
    const uint4 four = reinterpret_cast<const uint4*>(words)[i];
    bits += static_cast<uint32_t>(__popc(four.x) + __popc(four.y) + __popc(four.z) + __popc(four.w));
  }
  for (int i = 4 * fours + member; i < count; i += span) bits += static_cast<uint32_t>(__popc(words[i]));
  return bits;
}

// Where the values of a lane's word end behind the chunk's first: after `before` bits, of which each lane of a group
// knows its share, and the words of the lanes below. Both are at most 1024, so that half a register holds a sum.
FK_DEVICE int place_behind(uint32_t word, uint32_t before, int span, int lane) {
  const uint32_t counts = running_sum(before << 16 | static_cast<uint32_t>(__popc(word)), span);
  const uint32_t last = __shfl_sync(0xFFFFFFFFu, counts, lane | (span - 1));
  return static_cast<int>((counts & 0xFFFFu) + (last >> 16));
}

// sums[bit] += the kept weights of a word times x; sums of a lane lie 32 apart.
template <int VALUES, int PIXELS>
FK_DEVICE void spread_word(uint32_t word, WordValues<VALUES> values, const Pixels<PIXELS>& x, float scale,
                           Pixels<PIXELS>* sums) {
  do {
    const Kept<VALUES> kept(word, values);
    Pixels<PIXELS> sum[4];
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      if (kept.exists[i]) sum[i] = sums[kept.bit[i] * 32];
    }
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      const float value = VALUES == INT8 ? kept.value(i) * scale : kept.value(i);
      FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) sum[i].at[pixel] += value * x.at[pixel];
    }
    FK_UNROLL for (int i = 0; i < 4; ++i) {
      if (kept.exists[i]) sums[kept.bit[i] * 32] = sum[i];
    }
  } while (word);
}

// A warp's sums of the lanes that own one word, to the first of them. A lane takes one bit of all words; it begins at
// another lane's sum than its neighbours do, whose banks are the same.
template <int PIXELS>
FK_DEVICE void add_groups(int span, int lane, Pixels<PIXELS>* sums) {
  const int groups = 32 / span;
  for (int member = 0; member < span; ++member) {
    Pixels<PIXELS> total = {};
    for (int i = 0; i < groups; ++i) {
      const Pixels<PIXELS>& sum = sums[lane * 32 + member + span * ((i + lane) & (groups - 1))];
      FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) total.at[pixel] += sum.at[pixel];
    }
    sums[lane * 32 + member] = total;
  }
}

// A lane's word, and the place of its chunk's first value.
struct RowWord {
  uint32_t word;
  int64_t place;
};

// Blocks: of `span` words, a power of two, and of PIXELS pixels.
template <int VALUES, int PIXELS>
FK_KERNEL FK_BOUNDS(32 * transposed_warps(PIXELS), 2) stored_transposed(const Product p, const int span) {
  wait_for_inputs();
  using Element = typename Stored<VALUES>::Element;
  constexpr int WARPS = transposed_warps(PIXELS);
  FK_SHARED(Pixels<PIXELS>, all_sums);
  const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, groups = 32 / span, group = lane / span;
  const int word0 = blockIdx.x * span, chunk = word0 / STORED_CHUNK, pixel0 = blockIdx.y * PIXELS;
  const int before = word0 % STORED_CHUNK, member = lane & (span - 1);
  const int chunks = (p.words - 1) / STORED_CHUNK + 1;
  const bool aligned = p.words % 4 == 0 && reinterpret_cast<uintptr_t>(p.keep) % 16 == 0;
  Pixels<PIXELS>* const warp_sums = all_sums + warp * 1024;
  FK_UNROLL for (int bit = 0; bit < 32; ++bit) warp_sums[bit * 32 + lane] = Pixels<PIXELS>{};
  const auto load = [&](int row) {
    RowWord loaded = {};
    if (row < p.rows && word0 + member < p.words) {
      loaded.word = load_word(p.keep + static_cast<int64_t>(row) * p.words + word0 + member);
      loaded.place = p.offsets[static_cast<int64_t>(row) * chunks + chunk];
    }
    return loaded;
  };
  const Element* const whole = end_of_fours<VALUES>(p, chunks);
  RowWord next = load(warp * groups + group);
  for (int row0 = warp * groups; row0 < p.rows; row0 += WARPS * groups) {
    const int row = row0 + group;
    const RowWord now = next;
    next = load(row + WARPS * groups);
    const uint32_t* const words = p.keep + static_cast<int64_t>(row) * p.words + chunk * STORED_CHUNK;
    const uint32_t share = row < p.rows ? count_share(words, before, aligned, member, span) : 0u;
    const int behind = place_behind(now.word, share, span, lane);
    if (!now.word) continue;
    Pixels<PIXELS> x = {};
    FK_UNROLL for (int pixel = 0; pixel < PIXELS; ++pixel) {
      if (pixel0 + pixel < p.pixels) x.at[pixel] = read_element(p.x, p.dtype, (pixel0 + pixel) * p.x_stride + row);
    }
    const Element* const end = static_cast<const Element*>(p.values) + now.place + behind;
    spread_word<VALUES, PIXELS>(now.word, {end, __popc(now.word), whole}, x, p.row_scale ? p.row_scale[row] : 1.0f,
                                warp_sums + lane);
  }
  release_next();
  __syncwarp();
  add_groups(span, lane, warp_sums);
  __syncthreads();
  for (int output = threadIdx.x; output < span * 32 * PIXELS; output += 32 * WARPS) {
    const int within = output % (span * 32), pixel = output / (span * 32), member = within >> 5, bit = beta(within);
    const int64_t column = 32 * static_cast<int64_t>(word0) + within;
    if (column >= p.cols || pixel0 + pixel >= p.pixels) continue;
    float sum = 0.0f;
    for (int i = 0; i < WARPS; ++i) sum += all_sums[i * 1024 + bit * 32 + member].at[pixel];
    const int channel = static_cast<int>(column);
    write_element(p.y, p.dtype, (pixel0 + pixel) * p.y_stride + channel,
                  finished(sum, p.gain, p.bias, p.bias_dtype, p.relu, channel));
  }
}

}  // namespace fk::cuda
