// wide = W^T narrow: transposed convolutions, and the input gradients of linear layers and convolutions.
// Every result is a sum over blocks of DEPTH rows of its group, in order, and inside a block over taps, one chain each.
#include <vector>

#include "cpu/conv/codes.h"
#include "cpu/core/parallel.h"
#include "cpu/fma/fma.h"
#include "cpu/fma/micro.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t ROW_MAJOR_LD = WINDOW_COLS + TILE_LANES + 16;

// Wide pixels that are equal modulo the stride: they are reached by the same taps, one narrow pixel each.
struct Residue {
  Grid grid;                // from q to the narrow pixel
  Grid out;                 // from q to the wide pixel
  Position at;              // first wide pixel
  std::vector<bool> valid;  // by tap
  std::vector<Position> shift;
  int64_t pixel_block, pixel_blocks, first_task;
};

Residue make_residue(const Geometry& g, const Position& at) {
  Residue r{};
  r.at = at;
  r.grid.batch = r.out.batch = g.batch;
  for (int d = 0; d < 3; ++d) {
    r.grid.size[d] = r.out.size[d] = (g.wide[d] - at.x[d] + g.stride[d] - 1) / g.stride[d];
    r.grid.step[d] = 1;
    r.grid.limit[d] = g.narrow[d];
    r.out.step[d] = g.stride[d];
  }
  for (int64_t tap = 0; tap < g.tap_count(); ++tap) {
    Position p = tap_position(g, tap);
    bool valid = true;
    for (int d = 0; d < 3; ++d) {
      const int64_t distance = at.x[d] + g.padding[d] - p.x[d] * g.dilation[d];
      valid &= distance % g.stride[d] == 0;
      p.x[d] = distance / g.stride[d];
    }
    r.valid.push_back(valid);
    r.shift.push_back(p);
  }
  return r;
}

struct Task {
  const Frozen& f;
  const Layer layer;
  const Activations& narrow;
  const Residue& residue;
  const Result result;
  const int64_t chain;

  // Calls fn(first word, words) for windows over the columns of channels [channel, channel + channels) of valid taps.
  template <class Fn>
  void each_window(int64_t channel, int64_t channels, const Fn& fn) const {
    int64_t done = 0;  // words below are decoded already
    for (int64_t tap = 0; tap < layer.taps; ++tap) {
      if (!residue.valid[tap]) continue;
      const int64_t begin = tap * layer.channels + channel, end = begin + channels;
      int64_t word = std::max(begin / 32, done);
      // A window that also holds columns of later taps serves them too.
      for (; 32 * word < end; word = done) {
        const int64_t limit = channels == layer.channels ? f.words : (end + 31) / 32;
        done = std::min(word + WINDOW_WORDS, limit);
        fn(word, done - word);
      }
    }
  }

  // Calls fn(tap, first column in the window, first channel, channels) for the parts of valid taps in a window.
  template <class Fn>
  void each_tap(int64_t word, int64_t words, int64_t channel, int64_t channels, const Fn& fn) const {
    const int64_t k0 = 32 * word, k1 = std::min(k0 + 32 * words, f.cols);
    for (int64_t tap = k0 / layer.channels; tap < layer.taps && tap * layer.channels < k1; ++tap) {
      if (!residue.valid[tap]) continue;
      const int64_t begin = tap * layer.channels + channel;
      const int64_t from = std::max(begin, k0), to = std::min(begin + channels, k1);
      if (from < to) fn(tap, from - k0, from - begin, to - from);
    }
  }

  void over_pixels(int64_t group, int64_t groups, int64_t channel, int64_t channels, int64_t pixel0,
                   int64_t pixels) const;
  void over_channels(int64_t group, int64_t channel, int64_t channels, int64_t pixel0, int64_t pixels) const;
};

void Task::over_pixels(int64_t group, int64_t groups, int64_t channel, int64_t channels, int64_t pixel0,
                       int64_t pixels) const {
  const int64_t tile = channels <= MIDDLE_M ? std::min<int64_t>(BROAD * VL, DEPTH) : TILE_LANES;
  const int64_t ld = round_up(pixels, tile);
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + (WINDOW_COLS + DEPTH) * LD + groups * channels * ld) + 1024 +
                  (pixels + tile) * static_cast<int64_t>(sizeof(Run) + sizeof(Span)));
  Codes codes(f, scratch);
  float* const panel = scratch.take<float>(WINDOW_COLS * LD);
  float* const packed = scratch.take<float>(DEPTH * LD);
  float* const sums = scratch.take<float>(groups * channels * ld);
  Run* const runs = scratch.take<Run>(pixels);
  Span* const spans = scratch.take<Span>(tile);
  clear(sums, groups * channels * ld);
  for (int64_t row = 0; row < layer.rows; row += DEPTH) {
    const int64_t depth = std::min(DEPTH, layer.rows - row);
    codes.start(group * layer.rows + row, groups > 1 ? groups * layer.rows : depth);
    each_window(channel, channels, [&](int64_t word, int64_t words) {
      codes.decode(word, words, panel);
      for (int64_t lane = 0; lane < pixels; lane += tile) {
        const int64_t lanes = std::min(tile, pixels - lane);
        const int64_t run_count = find_runs(residue.grid, pixel0 + lane, lanes, runs);
        each_tap(word, words, channel, channels, [&](int64_t tap, int64_t column, int64_t c, int64_t count) {
          const int64_t span_count = find_spans(residue.grid, narrow, residue.shift[tap], runs, run_count, spans);
          if (!span_count) return;
          for (int64_t i = 0; i < groups; ++i) {
            pack_lanes(narrow, residue.grid, spans, span_count, round_up(lanes, TILE_LANES),
                       (group + i) * layer.rows + row, depth, packed, LD);
            multiply_in_chains(chain, count, lanes, depth, {panel + column * LD + i * layer.rows, false, 1}, packed, LD,
                               sums + (i * channels + c) * ld + lane, ld);
          }
        });
      }
    });
  }
  const int64_t run_count = find_runs(residue.out, pixel0, pixels, runs);
  // Several groups are taken whole, so their channels are consecutive.
  result.store_lanes(sums, ld, group * layer.channels + channel, groups * channels, runs, run_count);
}

void Task::over_channels(int64_t group, int64_t channel, int64_t channels, int64_t pixel0, int64_t pixels) const {
  const int64_t ld = round_up(channels, TILE_LANES), packed_ld = round_up(pixels, VL) + VL;
  const bool by_channel = narrow.stride[CHANNEL] == 1 || pixels == 1;
  const int64_t packed_floats = by_channel ? pixels * LD : DEPTH * packed_ld;
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + WINDOW_COLS * LD + DEPTH * ROW_MAJOR_LD + packed_floats + pixels * ld) +
                  1024 + pixels * static_cast<int64_t>(sizeof(Run) + sizeof(Span)));
  Codes codes(f, scratch);
  float* const panel = scratch.take<float>(WINDOW_COLS * LD);
  float* const by_row = scratch.take<float>(DEPTH * ROW_MAJOR_LD);
  float* const packed = scratch.take<float>(packed_floats);
  float* const sums = scratch.take<float>(pixels * ld);
  Run* const runs = scratch.take<Run>(pixels);
  Span* const spans = scratch.take<Span>(pixels);
  clear(sums, pixels * ld);
  clear(by_row, DEPTH * ROW_MAJOR_LD);
  const int64_t run_count = find_runs(residue.grid, pixel0, pixels, runs);
  for (int64_t row = 0; row < layer.rows; row += DEPTH) {
    const int64_t depth = std::min(DEPTH, layer.rows - row);
    codes.start(group * layer.rows + row, depth);
    each_window(channel, channels, [&](int64_t word, int64_t words) {
      codes.decode(word, words, panel);
      transpose(panel, LD, 32 * words, depth, by_row, ROW_MAJOR_LD);
      each_tap(word, words, channel, channels, [&](int64_t tap, int64_t column, int64_t c, int64_t count) {
        const int64_t span_count = find_spans(residue.grid, narrow, residue.shift[tap], runs, run_count, spans);
        if (!span_count) return;
        const int64_t source = group * layer.rows + row;
        if (by_channel) {
          pack_channels(narrow, residue.grid, spans, span_count, pixels, source, depth, packed);
        } else {
          pack_lanes(narrow, residue.grid, spans, span_count, pixels, source, depth, packed, packed_ld);
        }
        const Left left = by_channel ? Left{packed, false, 1} : Left{packed, true, packed_ld};
        multiply_in_chains(chain, pixels, count, depth, left, by_row + column, ROW_MAJOR_LD, sums + c, ld, true);
      });
    });
  }
  const int64_t out_count = find_runs(residue.out, pixel0, pixels, runs);
  result.store_channels(sums, ld, group * layer.channels + channel, channels, runs, out_count);
}

// Longest chain of a sum: as in convolve.cpp; torch multiplies a matrix by a vector for one channel.
int64_t longest_chain(const Call& c) {
  const int64_t pixels = c.g.batch * c.g.narrow[0] * c.g.narrow[1] * c.g.narrow[2];
  const bool small = pixels * c.f.rows * c.f.cols <= SMALL_PRODUCT;
  const bool vector = c.f.cols == 1 && c.layer.groups == 1 && c.pixels > 1 && c.f.rows <= FEW_TERMS;
  return (small || vector) && c.wide.dtype == FLOAT32 ? SHORT_CHAIN : DEPTH;
}

}  // namespace

void convolve_transposed_panels(const Call& call) {
  const Frozen& f = call.f;
  const Geometry& g = call.g;
  const Activations& wide = call.wide;
  const Layer& layer = call.layer;
  const int threads = call.threads;
  const int64_t chain = longest_chain(call), residue_pixels = call.pixels / (g.stride[0] * g.stride[1] * g.stride[2]);
  const bool few_channels = layer.channels < VL;
  const bool pixel_lanes = few_channels || (wide.stride[CHANNEL] != 1 && residue_pixels >= VL);
  const bool seed = !f.keep;
  // Whole rows are read in order from a seed, since a start inside a chunk regenerates what is before it.
  int64_t channel_block = std::min<int64_t>(layer.channels, seed ? 32 * CHUNK_WORDS : WINDOW_COLS - 32);
  const int64_t group_block =
      few_channels && layer.rows < TILE_LANES
          ? std::max<int64_t>(1, std::min(layer.groups, TILE_LANES / std::max<int64_t>(layer.rows, 1)))
          : 1;
  const int64_t group_blocks = (layer.groups + group_block - 1) / group_block;
  const auto channel_blocks = [&] { return (layer.channels + channel_block - 1) / channel_block; };
  while (!seed && channel_block > 64 && group_blocks * channel_blocks() * ((residue_pixels + 63) / 64) < 4 * threads) {
    channel_block = round_up(channel_block / 2, 32);
  }
  while (seed && layer.taps == 1 && channel_block > 256 && group_blocks * channel_blocks() < threads)
    channel_block /= 2;

  std::vector<Residue> residues;
  int64_t tasks = 0;
  const int64_t blocks = group_blocks * channel_blocks();
  Position at;
  for (at.x[0] = 0; at.x[0] < std::min(g.stride[0], g.wide[0]); ++at.x[0]) {
    for (at.x[1] = 0; at.x[1] < std::min(g.stride[1], g.wide[1]); ++at.x[1]) {
      for (at.x[2] = 0; at.x[2] < std::min(g.stride[2], g.wide[2]); ++at.x[2]) {
        Residue r = make_residue(g, at);
        r.pixel_block = pixels_per_task(r.grid.pixels(), channel_block * group_block, blocks, threads, seed);
        r.pixel_blocks = (r.grid.pixels() + r.pixel_block - 1) / r.pixel_block;
        r.first_task = tasks;
        tasks += blocks * r.pixel_blocks;
        residues.push_back(std::move(r));
      }
    }
  }
  parallel_for(threads, tasks, [&](int64_t i) {
    size_t which = 0;
    while (which + 1 < residues.size() && residues[which + 1].first_task <= i) ++which;
    const Residue& r = residues[which];
    const int64_t block = (i - r.first_task) / r.pixel_blocks;
    const int64_t pixel0 = (i - r.first_task) % r.pixel_blocks * r.pixel_block;
    const int64_t pixels = std::min(r.pixel_block, r.grid.pixels() - pixel0);
    const int64_t group = block / channel_blocks() * group_block, channel = block % channel_blocks() * channel_block;
    const int64_t channels = std::min(channel_block, layer.channels - channel);
    const Task task{f, layer, call.narrow, r, Result{wide, f.scale, call.epilogue, r.out, r.at}, chain};
    if (pixel_lanes) {
      task.over_pixels(group, std::min(group_block, layer.groups - group), channel, channels, pixel0, pixels);
    } else {
      task.over_channels(group, channel, channels, pixel0, pixels);
    }
  });
}

}  // namespace fk::FK_ISA_NS
