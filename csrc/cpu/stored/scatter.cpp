// wide = W^T narrow where each weight meets a pixel once: the weights of a row are added to their channels, one row
// after another. A sum is a sum over blocks of rows, in order, of one chain each.
#include <array>
#include <utility>
#include <vector>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/stored/decode.h"
#include "cpu/stored/lines.h"
#include "cpu/stored/stored.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t BLOCK_ROWS = 256;
constexpr int64_t SUM_FLOATS = 1 << 16;  // of a task
constexpr int64_t NONE[3] = {};

struct Row {
  const int32_t* at;
  const float* value;
  int64_t count;
};

// sums[at] += value * line, over P vectors of pixels, or one pixel.
template <int P>
void scatter(const Row& row, const float* line, float* sums) {
  if constexpr (P == 0) {
    const float x = *line;
    for (int64_t k = 0; k < row.count; ++k) sums[row.at[k]] += row.value[k] * x;
  } else {
    vf32 x[P];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) x[p] = vf32::load(line + p * VL);
    for (int64_t k = 0; k < row.count; ++k) {
      const vf32 factor = vf32::set(row.value[k]);
      float* const to = sums + row.at[k];
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) multiply_add(factor, x[p], vf32::load(to + p * VL)).store(to + p * VL);
    }
  }
}

using Scatter = void (*)(const Row&, const float*, float*);

template <int... P>
constexpr std::array<Scatter, sizeof...(P)> scatters(std::integer_sequence<int, P...>) {
  return {scatter<P>...};
}

Scatter find_scatter(int64_t pixels) {
  static constexpr auto all = scatters(std::make_integer_sequence<int, TILE / VL + 1>());
  return all[pixels == 1 ? 0 : divide_up(pixels, VL)];
}

class Pointwise {
 public:
  explicit Pointwise(const Call& call)
      : f_(call.f),
        layer_(call.layer),
        call_(call),
        lines_(call.g.batch, call.g.wide, NONE, call.g.stride, call.g.narrow),
        width_(lines_.used == 1 ? 1 : std::min(TILE, round_up(lines_.used, VL))) {
    const int64_t tiles = lines_.tiles(), wanted = call.threads > 1 ? 3 * call.threads : 1;
    block_channels_ = std::clamp<int64_t>(SUM_FLOATS / width_ / 32 * 32, 32, round_up(layer_.channels, 32));
    const int64_t most_tiles = std::max<int64_t>(1, SUM_FLOATS / (block_channels_ * width_));
    block_tiles_ = std::clamp<int64_t>(tiles * layer_.groups / wanted, 1, most_tiles);
    tile_blocks_ = divide_up(tiles, block_tiles_);
    const int64_t missing = divide_up(wanted, layer_.groups * tile_blocks_);
    const int64_t blocks = std::max(divide_up(layer_.channels, block_channels_),
                                    std::min(missing, divide_up(layer_.channels, int64_t{64})));
    block_channels_ = round_up(divide_up(layer_.channels, blocks), 32);
    channel_blocks_ = divide_up(layer_.channels, block_channels_);
    at_.resize(static_cast<size_t>(32 * f_.words));
    each_column(f_.cols, [&](int64_t column, int64_t place) {
      at_[place] = static_cast<int32_t>(column % block_channels_ * width_);
    });
  }

  int64_t tasks() const { return layer_.groups * channel_blocks_ * tile_blocks_; }

  void run(int64_t task) const {
    const int64_t tile0 = task % tile_blocks_ * block_tiles_, block = task / tile_blocks_;
    const int64_t channel0 = block % channel_blocks_ * block_channels_;
    run_block(block / channel_blocks_, tile0, std::min(tile0 + block_tiles_, lines_.tiles()), channel0,
              std::min(channel0 + block_channels_, layer_.channels));
  }

 private:
  void run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t channel0, int64_t channel1) const;
  void store(const float* sums, int64_t tile, int64_t channel, int64_t channels, Run* runs, float* turned) const;

  const Frozen& f_;
  const Layer& layer_;
  const Call& call_;
  const Lines lines_;
  const int64_t width_;  // of a tile of sums
  int64_t block_tiles_, tile_blocks_, block_channels_, channel_blocks_;
  std::vector<int32_t> at_;  // of the bits of a row, the sums of its channel
};

void Pointwise::run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t channel0, int64_t channel1) const {
  const int64_t channels = channel1 - channel0, floats = round_up(channels, VL) * width_;
  const int64_t tiles = tile1 - tile0, region = lines_.region(tile0, tile1), most_runs = lines_.most_runs(region);
  const int64_t word0 = channel0 / 32, words = divide_up(channel1, int64_t{32}) - word0;
  const int64_t entries = 32 * words + LIST_SLACK;
  Scratch scratch(4 * (BLOCK_ROWS * region + (region + VL) * LD + 2 * tiles * floats + 2 * entries + VL * TILE) +
                  most_runs * static_cast<int64_t>(sizeof(Run) + sizeof(Span)) + 1024);
  float* const x = scratch.take<float>(BLOCK_ROWS * region);
  float* const stage = scratch.take<float>((region + VL) * LD);
  float* const sums = scratch.take<float>(tiles * floats);
  float* const chains = scratch.take<float>(tiles * floats);
  int32_t* const at = scratch.take<int32_t>(entries);
  float* const value = scratch.take<float>(entries);
  float* const turned = scratch.take<float>(VL * TILE);
  Run* const runs = scratch.take<Run>(most_runs);
  Span* const spans = scratch.take<Span>(most_runs);

  Position shift;
  for (int d = 0; d < 3; ++d) shift.x[d] = call_.g.padding[d];
  const int64_t first = lines_.tile(tile0).first;
  clear(sums, tiles * floats);
  for (int64_t row0 = 0; row0 < layer_.rows; row0 += BLOCK_ROWS) {
    const int64_t rows = std::min(BLOCK_ROWS, layer_.rows - row0);
    lines_.pack(call_.narrow, shift, first, region, group * layer_.rows + row0, rows, x, region, stage, runs, spans);
    clear(chains, tiles * floats);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = group * layer_.rows + row0 + i;
      const int64_t count = compress(f_.keep + row * f_.words + word0, words, at_.data() + 32 * word0, at);
      read_values(f_, first_value(f_, row, word0), count, value);
      if (f_.row_scale) {
        for (int64_t k = 0; k < count; ++k) value[k] *= f_.row_scale[row];
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Lines::Tile place = lines_.tile(tile0 + tile);
        const Scatter add = find_scatter(width_ == 1 ? 1 : std::max<int64_t>(place.count, 2));
        add({at, value, count}, x + i * region + place.first - first, chains + tile * floats);
      }
    }
    for (int64_t i = 0; i < tiles * floats; i += VL) (vf32::load(sums + i) + vf32::load(chains + i)).store(sums + i);
  }
  for (int64_t tile = 0; tile < tiles; ++tile) {
    store(sums + tile * floats, tile0 + tile, group * layer_.channels + channel0, channels, runs, turned);
  }
}

void Pointwise::store(const float* sums, int64_t tile, int64_t channel, int64_t channels, Run* runs,
                      float* turned) const {
  Grid grid = lines_.grid;
  for (int d = 0; d < 3; ++d) grid.step[d] = 1;
  const Result result{call_.wide, f_.scale, call_.epilogue, grid, Position{}};
  const Lines::Tile place = lines_.tile(tile);
  const int64_t run_count = lines_.result_runs(place, lines_.size, runs);
  if (width_ == 1) {
    result.store_channels(sums, channels, channel, channels, runs, run_count);
  } else {
    store_sums(result, sums, width_, channel, channels, place.count, runs, run_count, turned);
  }
}

}  // namespace

bool stored_scatter_serves(const Call& c) {
  const Geometry& g = c.g;
  return is_stored(c) && c.layer.taps == 1 && g.stride[0] == 1 && g.stride[1] == 1 && g.stride[2] == 1;
}

void convolve_transposed_stored_scatter(const Call& call) {
  const Pointwise pointwise(call);
  parallel_for(call.threads, pointwise.tasks(), [&](int64_t task) { pointwise.run(task); });
}

}  // namespace fk::FK_ISA_NS
