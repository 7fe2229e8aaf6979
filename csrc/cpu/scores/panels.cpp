// Score gradients on vectors. A task sums dL/dW of a few rows over all pixels, then writes what free weights take of
// it. Every element is a sum over parts of SUM_BLOCKS blocks, over blocks of DEPTH pixels, of chains of pixels whose
// input exists, each in order.
#include "cpu/core/parallel.h"
#include "cpu/fma/micro.h"
#include "cpu/scores/emit.h"
#include "cpu/scores/pixels.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t SUM_FLOATS = 5 << 14;  // dL/dW held by a task
constexpr int64_t PANEL_CHAIN = 64;
constexpr int64_t SUM_BLOCKS = 32;  // blocks of pixels whose chains are summed before they join the total

struct Task {
  const ScoreCall& call;
  const Layer layer;  // of one tap where taps are packed as channels
  const int64_t pixels, chain;
  const int64_t group, row, rows, word, words;
  const Slivers slivers;

  int64_t first_column() const { return 32 * word; }
  int64_t end_column() const { return std::min(32 * (word + words), call.f.cols); }
  int64_t ld() const { return 32 * words + 16; }  // an odd number of cache lines

  void run() const;
  void add_block(PixelBlock& block, LinePrefetch& memory, const float* packed_rows, bool fresh, float* sums) const;
  void add_taps(const PixelBlock& block, LinePrefetch& memory, int64_t tap, int64_t taps, int64_t channel,
                int64_t channels, const float* inputs, const float* packed_rows, bool fresh, float* sums) const;
};

// c = or += the products of `lanes` lanes, at most TILE_LANES; nothing past them is written.
void multiply_lanes(int64_t rows, int64_t lanes, const PixelPair* pairs, int64_t count, int64_t chain, const float* x,
                    const float* y, float* c, int64_t ldc, bool fresh) {
  if (!fresh && !count) return;
  const int64_t vectors = divide_up(lanes, VL);
  const PixelTile tile = pixel_tile(rows, vectors);
  if (lanes == vectors * VL) return tile(pairs, count, chain, x, y, c, ldc, fresh);
  // Added in the order of whole tiles: where they are cut depends on threads.
  alignas(64) float whole[SLIVER_ROWS * TILE_LANES] = {};
  const size_t bytes = static_cast<size_t>(lanes) * sizeof(float);
  for (int64_t row = 0; row < rows && !fresh; ++row) memcpy(whole + row * TILE_LANES, c + row * ldc, bytes);
  tile(pairs, count, chain, x, y, whole, TILE_LANES, fresh);
  for (int64_t row = 0; row < rows; ++row) memcpy(c + row * ldc, whole + row * TILE_LANES, bytes);
}

void Task::add_taps(const PixelBlock& block, LinePrefetch& memory, int64_t tap, int64_t taps, int64_t channel,
                    int64_t channels, const float* inputs, const float* packed_rows, bool fresh, float* sums) const {
  const int64_t tiles = divide_up(layer.channels, TILE_LANES) * slivers.count * taps;
  const int64_t lines = divide_up(memory.lines(), tiles);
  for (int64_t c = channel; c < channel + channels; c += TILE_LANES) {
    int64_t from[PixelBlock::MOST_TAPS], lanes[PixelBlock::MOST_TAPS];  // columns of the task
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t start = (tap + t) * layer.channels - first_column(), end = end_column() - first_column();
      from[t] = std::max<int64_t>(start + c, 0);
      lanes[t] = std::min(start + std::min(c + TILE_LANES, channel + channels), end) - from[t];
    }
    for (int64_t i = 0; i < slivers.count; ++i) {
      for (int64_t t = 0; t < taps; ++t) {
        if (lanes[t] <= 0) continue;
        memory.ask(lines);
        const int64_t start = (tap + t) * layer.channels - first_column();
        multiply_lanes(slivers.rows(i), lanes[t], block.pairs(t), block.pair_count(t), chain,
                       inputs + (from[t] - start - channel), packed_rows + i * DEPTH * VL,
                       sums + slivers.first[i] * ld() + from[t], ld(), fresh);
      }
    }
  }
}

void Task::add_block(PixelBlock& block, LinePrefetch& memory, const float* packed_rows, bool fresh, float* sums) const {
  const int64_t first_tap = first_column() / layer.channels, end_tap = divide_up(end_column(), layer.channels);
  const bool one = end_tap - first_tap == 1;
  const int64_t first = one ? first_column() % layer.channels : 0;
  const int64_t end = one ? end_column() - first_tap * layer.channels : layer.channels;
  for (int64_t tap = first_tap, taps; tap < end_tap; tap += taps) {
    taps = std::min(end_tap - tap, PixelBlock::MOST_TAPS);
    if (!block.find_pairs(tap, taps, end - first)) block.find_pairs(tap, taps = 1, end - first);
    const int64_t step = block.channels_at_once();
    for (int64_t channel = first; channel < end; channel += step) {
      const int64_t channels = std::min(step, end - channel);
      const float* const inputs = block.pack_inputs(channel, channels);
      if (taps > 1 && channel == first && tap == first_tap) block.foresee(row, rows, memory);
      add_taps(block, memory, tap, taps, channel, channels, inputs, packed_rows, fresh, sums);
    }
  }
}

void Task::run() const {
  const int64_t packed = slivers.count * DEPTH * VL, count = rows * ld();
  const bool parts = pixels > SUM_BLOCKS * DEPTH;  // a sum of all blocks in turn would round by each of them
  Scratch scratch(4 * (packed + (parts ? 2 : 1) * count) + 192 +
                  std::max(PixelBlock::scratch_bytes() + LinePrefetch::SCRATCH_BYTES, ScoreEmitter::SCRATCH_BYTES));
  float* const packed_rows = scratch.take<float>(packed);
  float* const sums = scratch.take<float>(count);
  float* const total = parts ? scratch.take<float>(count) : sums;
  Scratch rest = scratch;  // emission begins where sums are done
  PixelBlock block(call, group, scratch);
  LinePrefetch memory(scratch);
  if (!pixels || parts) clear(total, count);
  const auto close_part = [&] {
    for (int64_t i = 0; i < count; i += VL) (vf32::load(total + i) + vf32::load(sums + i)).store(total + i);
  };
  for (int64_t pixel = 0; pixel < pixels; pixel += DEPTH) {
    const bool fresh = pixel % (SUM_BLOCKS * DEPTH) == 0;
    if (fresh && pixel) close_part();
    block.start(pixel, std::min(DEPTH, pixels - pixel));
    block.pack_rows(row, slivers, packed_rows);
    add_block(block, memory, packed_rows, fresh, sums);
  }
  if (parts) close_part();
  ScoreEmitter emitter(call, rest);
  emitter.start(group * layer.rows + row, rows, word);
  emitter.next(words, total, ld());
}

}  // namespace

void score_gradient_panels(const ScoreCall& call) {
  const Frozen& f = call.f;
  const int threads = call.threads;
  Layer layer = call.layer;
  if (PixelBlock::as_one_tap(layer)) layer.channels = f.cols, layer.taps = 1;
  // Inputs are packed again for each block of rows, under one tap also for each block of columns.
  const int64_t most = std::max(SUM_FLOATS, layer.groups * layer.rows * f.cols / 16 / threads);
  const int64_t few_rows = std::min<int64_t>(layer.rows, SLIVER_ROWS);
  int64_t word_block = f.words;
  if (layer.taps == 1 || 32 * few_rows * f.words > most) {
    const int64_t chunks = layer.taps == 1 ? 1 : most / (32 * few_rows * CHUNK_WORDS);
    word_block = std::min(f.words, CHUNK_WORDS * std::max<int64_t>(chunks, 1));
  }
  int64_t most_rows = std::clamp(most / (32 * word_block), few_rows, DEPTH);
  if (most_rows < layer.rows) most_rows -= most_rows % few_rows;
  int64_t row_blocks = divide_up(layer.rows, most_rows);
  const auto others = [&] { return layer.groups * divide_up(f.words, word_block); };
  if (others() * row_blocks < 8 * threads && others() % threads) {
    row_blocks = std::min(round_up(row_blocks, threads), divide_up(layer.rows, SLIVER_ROWS / 2));
  }
  while (word_block > 1 && others() * row_blocks < threads) word_block = divide_up(word_block, 2);
  // Where the wide side is empty there is padding alone.
  const bool empty = call.g.wide[0] * call.g.wide[1] * call.g.wide[2] == 0;
  const int64_t pixels = empty ? 0 : narrow_grid(call.g).pixels();
  const int64_t chain = pixels > FEW_TERMS ? PANEL_CHAIN : SHORT_CHAIN;
  parallel_for(threads, others() * row_blocks, [&](int64_t i) {
    const int64_t word_blocks = divide_up(f.words, word_block);
    const int64_t word = i % word_blocks * word_block, block = i / word_blocks % row_blocks;
    const int64_t row = layer.rows * block / row_blocks, rows = layer.rows * (block + 1) / row_blocks - row;
    const int64_t group = i / word_blocks / row_blocks;
    Task{call, layer, pixels, chain, group, row, rows, word, std::min(word_block, f.words - word), Slivers(rows)}.run();
  });
}

}  // namespace fk::FK_ISA_NS
