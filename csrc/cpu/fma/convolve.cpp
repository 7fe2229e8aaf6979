// narrow = W wide: linear layers, convolutions, and the input gradient of transposed convolutions.
// Every result is a sum over chunks of DEPTH columns, in order, of one chain each, or of several (see
// longest_forward_chain).
#include "cpu/conv/codes.h"
#include "cpu/core/parallel.h"
#include "cpu/fma/fma.h"
#include "cpu/fma/micro.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t CHUNK = DEPTH / 32;  // words

struct Task {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;
  const Activations& wide;
  const Grid grid;
  const Result result;
  const int64_t chain;

  // Calls fn(tap, column of the chunk, channel, channels) for each tap's part of columns [k0, k0 + depth).
  template <class Fn>
  void each_tap(int64_t k0, int64_t depth, const Fn& fn) const {
    for (int64_t k = k0; k < k0 + depth;) {
      const int64_t tap = k / layer.channels, channel = k % layer.channels;
      const int64_t count = std::min(layer.channels - channel, k0 + depth - k);
      fn(tap, k - k0, channel, count);
      k += count;
    }
  }

  void over_pixels(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const;
  void over_rows(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const;
};

void Task::over_pixels(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const {
  const int64_t first_group = row0 / layer.rows, last_group = (row0 + rows - 1) / layer.rows;
  const bool few = std::min(rows, layer.rows) <= MIDDLE_M;
  const int64_t tile = few ? std::min<int64_t>(BROAD * VL, DEPTH) : TILE_LANES;
  const int64_t ld = round_up(pixels, tile);
  const bool shared = last_group > first_group;
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + 2 * DEPTH * LD + rows * ld) + 1024 +
                  pixels * static_cast<int64_t>(sizeof(Run)) +
                  (shared ? DEPTH : 1) * tile * static_cast<int64_t>(sizeof(Span)));
  Codes codes(f, scratch);
  codes.start(row0, rows);
  float* const panel = scratch.take<float>(DEPTH * LD);
  float* const packed = scratch.take<float>(DEPTH * LD);
  float* const sums = scratch.take<float>(rows * ld);
  Run* const runs = scratch.take<Run>(pixels);
  Span* const all_spans = scratch.take<Span>(shared ? DEPTH * tile : tile);
  int64_t span_counts[DEPTH];
  clear(sums, rows * ld);
  for (int64_t word = 0; word < f.words; word += CHUNK) {
    const int64_t k0 = 32 * word, depth = std::min(DEPTH, f.cols - k0);
    codes.decode(word, std::min(CHUNK, f.words - word), panel);
    for (int64_t lane = 0; lane < pixels; lane += tile) {
      const int64_t lanes = std::min(tile, pixels - lane);
      const int64_t run_count = find_runs(grid, pixel0 + lane, lanes, runs);
      for (int64_t group = first_group; group <= last_group; ++group) {
        each_tap(k0, depth, [&](int64_t tap, int64_t column, int64_t channel, int64_t channels) {
          // Groups read the same pixels: a chunk of a few taps finds them once.
          Span* const spans = all_spans + (shared ? column * tile : 0);
          int64_t& span_count = span_counts[shared ? column : 0];
          if (!shared || group == first_group) {
            span_count = find_spans(grid, wide, narrow_shift(g, tap), runs, run_count, spans);
          }
          pack_lanes(wide, grid, spans, span_count, round_up(lanes, TILE_LANES), group * layer.channels + channel,
                     channels, packed + column * LD, LD);
        });
        const int64_t from = std::max(group * layer.rows, row0) - row0;
        const int64_t to = std::min((group + 1) * layer.rows, row0 + rows) - row0;
        multiply_in_chains(chain, to - from, lanes, depth, {panel + from, true, LD}, packed, LD,
                           sums + from * ld + lane, ld);
      }
    }
  }
  const int64_t run_count = find_runs(grid, pixel0, pixels, runs);
  result.store_lanes(sums, ld, row0, rows, runs, run_count);
}

void Task::over_rows(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const {
  const int64_t group = row0 / layer.rows, ld = round_up(rows, TILE_LANES), packed_ld = round_up(pixels, VL) + VL;
  const bool by_channel = wide.stride[CHANNEL] == 1 || pixels == 1;
  Scratch scratch(
      4 * (Codes::SCRATCH_FLOATS + DEPTH * LD + (by_channel ? pixels * LD : DEPTH * packed_ld) + pixels * ld) + 1024 +
      pixels * static_cast<int64_t>(sizeof(Run) + sizeof(Span)));
  Codes codes(f, scratch);
  codes.start(row0, rows);
  float* const panel = scratch.take<float>(DEPTH * LD);
  float* const packed = scratch.take<float>(by_channel ? pixels * LD : DEPTH * packed_ld);
  float* const sums = scratch.take<float>(pixels * ld);
  Run* const runs = scratch.take<Run>(pixels);
  Span* const spans = scratch.take<Span>(pixels);
  clear(sums, pixels * ld);
  const int64_t run_count = find_runs(grid, pixel0, pixels, runs);
  for (int64_t word = 0; word < f.words; word += CHUNK) {
    const int64_t k0 = 32 * word, depth = std::min(DEPTH, f.cols - k0);
    codes.decode(word, std::min(CHUNK, f.words - word), panel);
    each_tap(k0, depth, [&](int64_t tap, int64_t column, int64_t channel, int64_t channels) {
      const int64_t span_count = find_spans(grid, wide, narrow_shift(g, tap), runs, run_count, spans);
      channel += group * layer.channels;
      if (by_channel) {
        pack_channels(wide, grid, spans, span_count, pixels, channel, channels, packed + column);
      } else {
        pack_lanes(wide, grid, spans, span_count, pixels, channel, channels, packed + column * packed_ld, packed_ld);
      }
    });
    const Left left = by_channel ? Left{packed, false, 1} : Left{packed, true, packed_ld};
    multiply_in_chains(chain, pixels, rows, depth, left, panel, LD, sums, ld);
  }
  result.store_channels(sums, ld, row0, rows, runs, run_count);
}

}  // namespace

int64_t longest_forward_chain(const Call& c) {
  const bool small = c.pixels * c.f.rows * c.f.cols <= SMALL_PRODUCT;
  const bool places = c.g.narrow[0] * c.g.narrow[1] * c.g.narrow[2] > 1;
  const bool few_pixels = c.pixels < 16 && (c.layer.taps == 1 || !places);
  const bool one_row = c.f.rows == 1 && c.layer.taps == 1;
  const bool shows = small || ((few_pixels || one_row) && c.f.cols <= FEW_TERMS);
  return shows && c.narrow.dtype == FLOAT32 ? SHORT_CHAIN : DEPTH;
}

void convolve_panels(const Call& call) {
  const Frozen& f = call.f;
  const Activations& narrow = call.narrow;
  const Layer& layer = call.layer;
  const int64_t pixels = call.pixels;
  const int threads = call.threads;
  const bool small_groups = layer.rows < VL;
  const bool pixel_lanes =
      small_groups || (narrow.stride[CHANNEL] != 1 && narrow.stride[SPATIAL + 2] == 1 && pixels >= VL);
  const int64_t rows_of_block =
      small_groups ? layer.rows * std::min(layer.groups, TILE_LANES / layer.rows) : std::min(layer.rows, DEPTH);
  int64_t row_block = rows_of_block;
  const int64_t units = small_groups ? 1 : layer.groups, unit = small_groups ? f.rows : layer.rows;
  const auto blocks = [&] { return units * ((unit + row_block - 1) / row_block); };
  while (!small_groups && row_block > TILE_LANES && blocks() * ((pixels + 63) / 64) < 4 * threads) {
    row_block = round_up(row_block / 2, TILE_LANES);
  }
  const bool seed = !f.keep;
  const int64_t pixel_block = pixels_per_task(pixels, row_block, blocks(), threads, seed);
  const int64_t per_unit = (unit + row_block - 1) / row_block, pixel_blocks = (pixels + pixel_block - 1) / pixel_block;
  const Task task{f, call.g, layer, call.wide, narrow_grid(call.g), narrow_result(call), longest_forward_chain(call)};
  parallel_for(threads, units * per_unit * pixel_blocks, [&](int64_t i) {
    const int64_t block = i / pixel_blocks, pixel0 = i % pixel_blocks * pixel_block;
    const int64_t start = block % per_unit * row_block, row0 = block / per_unit * unit + start;
    const int64_t rows = std::min(row_block, unit - start), count = std::min(pixel_block, pixels - pixel0);
    if (pixel_lanes) {
      task.over_pixels(row0, rows, pixel0, count);
    } else {
      task.over_rows(row0, rows, pixel0, count);
    }
  });
}

}  // namespace fk::FK_ISA_NS
