// Score gradients on tile registers, and of few rows. dL/dW exists for one tile at a time.
// Every element is a sum over blocks of DEPTH pixels, in order.
#include "cpu/core/parallel.h"
#include "cpu/fma/micro.h"
#include "cpu/scores/emit.h"

#if FK_HAS_TILES
#include <optional>

#include "cpu/amx/gradient.h"
#endif

namespace fk::FK_LEVEL_NS {

namespace {

constexpr int64_t TILE_FLOATS = 1 << 16;    // dL/dW held by a task
constexpr int64_t EMIT_WORDS = DEPTH / 32;  // at once
constexpr int64_t DOT_ROWS = VL / 4;        // groups of at most so many rows sum along pixels instead

enum Method { TILES, ALONG_PIXELS };

#if FK_HAS_TILES
bool both_bf16(const ScoreCall& c) { return c.wide.dtype == BFLOAT16 && c.narrow.dtype == BFLOAT16; }
#endif

struct Task : ScoreCall {
  const Grid grid;
  const Method method;

  void run(int64_t group, int64_t row, int64_t rows, int64_t word, int64_t words) const;
};

// Sums along lanes: c[k][row] += sum over pixels of x[k][pixel] * y[row][pixel].
void multiply_along_pixels(int64_t columns, int64_t rows, int64_t pixels, const float* x, const float* y, float* c,
                           int64_t ldc) {
  for (int64_t k = 0; k < columns; ++k) {
    for (int64_t r = 0; r < rows; ++r) {
      vf32 sum = vf32::zero();
      for (int64_t i = 0; i < pixels; i += VL) {
        sum = multiply_add(vf32::load(x + k * LD + i), vf32::load(y + r * LD + i), sum);
      }
      alignas(64) float lanes[VL];
      sum.store(lanes);
      for (int half = VL / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
      }
      c[k * ldc + r] += lanes[0];
    }
  }
}

void Task::run(int64_t group, int64_t row, int64_t rows, int64_t word, int64_t words) const {
  const int64_t first_column = 32 * word, columns = std::min(32 * words, f.cols - first_column);
  const int64_t ld = round_up(rows, TILE_LANES), pixels = grid.pixels();
  const bool along_pixels = method == ALONG_PIXELS;
  const bool narrow_by_channel = !along_pixels && narrow.stride[CHANNEL] == 1;
  const bool wide_by_channel =
      !along_pixels && wide.stride[CHANNEL] == 1 && grid.step[2] * wide.stride[SPATIAL + 2] != 1;
  int64_t bytes = ScoreEmitter::SCRATCH_BYTES + 4 * (3 * DEPTH * LD + 32 * words * ld) + 1024 +
                  2 * DEPTH * static_cast<int64_t>(sizeof(Run) + sizeof(Span));
#if FK_HAS_TILES
  if (method == TILES) bytes += GradientTiles::scratch_bytes();
#endif
  Scratch scratch(bytes);
  ScoreEmitter emitter(*this, scratch);
  float* const x = scratch.take<float>(DEPTH * LD);
  float* const y = scratch.take<float>(DEPTH * LD);
  float* const staging = scratch.take<float>(DEPTH * LD);
  float* const gradient = scratch.take<float>(32 * words * ld);
  Run* const runs = scratch.take<Run>(DEPTH);
  Span* const spans = scratch.take<Span>(DEPTH);
#if FK_HAS_TILES
  std::optional<GradientTiles> tiles;
  if (method == TILES) tiles.emplace(both_bf16(*this) ? 1 : 3, scratch);
#endif
  clear(gradient, 32 * words * ld);
  clear(y, DEPTH * LD);
  clear(staging, DEPTH * LD);
  Grid direct = grid;
  for (int d = 0; d < 3; ++d) direct.step[d] = 1, direct.limit[d] = grid.size[d];

  for (int64_t pixel = 0; pixel < pixels; pixel += DEPTH) {
    const int64_t depth = std::min(DEPTH, pixels - pixel), width = round_up(depth, VL);
    const int64_t run_count = find_runs(grid, pixel, depth, runs);
    int64_t span_count = find_spans(direct, narrow, Position{}, runs, run_count, spans);
    const int64_t narrow_channel = group * layer.rows + row;
    if (narrow_by_channel) {
      pack_channels(narrow, direct, spans, span_count, depth, narrow_channel, rows, y);
    } else {
      float* const lanes = along_pixels ? y : staging;
      pack_lanes(narrow, direct, spans, span_count, width, narrow_channel, rows, lanes, LD);
      if (!along_pixels) transpose(staging, LD, rows, depth, y, LD);
    }
#if FK_HAS_TILES
    const bool finite = tiles && tiles->take_rows(y, rows, depth);
#endif
    for (int64_t k0 = 0; k0 < columns; k0 += DEPTH) {
      const int64_t count = std::min(DEPTH, columns - k0);
      for (int64_t k = k0; k < k0 + count;) {
        const int64_t column = first_column + k, tap = column / layer.channels, channel = column % layer.channels;
        const int64_t channels = std::min(layer.channels - channel, k0 + count - k);
        const int64_t source = group * layer.channels + channel;
        span_count = find_spans(grid, wide, narrow_shift(g, tap), runs, run_count, spans);
        if (wide_by_channel) {
          pack_channels(wide, grid, spans, span_count, depth, source, channels, x + (k - k0));
        } else {
          pack_lanes(wide, grid, spans, span_count, width, source, channels, x + (k - k0) * LD, LD);
        }
        k += channels;
      }
      float* const sums = gradient + k0 * ld;
#if FK_HAS_TILES
      if (finite && tiles->add(x, wide_by_channel, count, depth, sums, ld)) continue;
#endif
      if (along_pixels) {
        multiply_along_pixels(count, rows, width, x, y, sums, ld);
      } else {
        const Left left = wide_by_channel ? Left{x, true, LD} : Left{x, false, 1};
        multiply(count, rows, depth, left, y, LD, sums, ld);
      }
    }
  }
  emitter.start(group * layer.rows + row, rows, word);
  for (int64_t w = 0; w < words; w += EMIT_WORDS) {
    const int64_t count = std::min(EMIT_WORDS, words - w);
    transpose(gradient + 32 * w * ld, ld, 32 * count, rows, y, LD);
    emitter.next(count, y, LD);
  }
}

void run(const ScoreCall& call, Method method) {
  const Frozen& f = call.f;
  const Layer& layer = call.layer;
  const int threads = call.threads;
  const Task task{call, narrow_grid(call.g), method};
  int64_t row_block = std::min(layer.rows, DEPTH);
  const auto row_blocks = [&] { return (layer.rows + row_block - 1) / row_block; };
  int64_t word_block = std::min(f.words, TILE_FLOATS / round_up(row_block, TILE_LANES) / 32);
  const auto word_blocks = [&] { return (f.words + word_block - 1) / word_block; };
  const auto tasks = [&] { return layer.groups * row_blocks() * word_blocks(); };
  while (word_block > 4 && tasks() < 3 * threads) word_block = (word_block + 1) / 2;
  while (row_block > TILE_LANES && tasks() < 2 * threads) row_block = round_up(row_block / 2, TILE_LANES);
  while (word_block > 1 && tasks() < 2 * threads) word_block = (word_block + 1) / 2;
  parallel_for(threads, tasks(), [&](int64_t i) {
    const int64_t word = i % word_blocks() * word_block, row = i / word_blocks() % row_blocks() * row_block;
    const int64_t group = i / word_blocks() / row_blocks();
    const int64_t rows = std::min(row_block, layer.rows - row), words = std::min(word_block, f.words - word);
    task.run(group, row, rows, word, words);
  });
}

}  // namespace

#if FK_HAS_TILES
bool score_tiles_serve(const ScoreCall& c) {
  return narrow_grid(c.g).pixels() >= 64 && c.f.cols >= 32 && c.layer.rows >= (both_bf16(c) ? 16 : 96);
}
void score_gradient_tiles(const ScoreCall& call) { run(call, TILES); }
#endif

bool score_along_pixels_serves(const ScoreCall& c) { return c.layer.rows <= DOT_ROWS; }
void score_gradient_along_pixels(const ScoreCall& call) { run(call, ALONG_PIXELS); }

}  // namespace fk::FK_LEVEL_NS
