// wide = W^T narrow, with pixels in lanes: transposed convolutions, and the input gradients of layers. The weights of a
// block of rows are sorted by the channel that they add to. A sum is a sum over blocks of rows, in order.
#include <vector>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/stored/decode.h"
#include "cpu/stored/gather.h"
#include "cpu/stored/stored.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t CHAIN = 128;              // terms of a sum that a block of rows adds, about
constexpr int64_t REGION_FLOATS = 1 << 16;  // of inputs under the tiles of a task
constexpr int64_t SUM_FLOATS = 1 << 17;     // of a task
constexpr int64_t MOST_CHANNELS = 1024;     // of a task

// Wide pixels that are equal modulo the stride are a residue: each tap reaches one of them, at a constant distance.
struct Residues {
  std::vector<Position> at;     // first wide pixel
  std::vector<int64_t> of_tap;  // the residue of each tap, or -1
  std::vector<Position> by;     // source pixel - (wide pixel / stride), of each tap
  Position least{};             // of these
  int64_t extra[3] = {}, size[3];

  explicit Residues(const Geometry& g) {
    Position most{};
    for (int64_t tap = 0; tap < g.tap_count(); ++tap) {
      const Position place = tap_position(g, tap);
      int64_t residue = 0;
      Position far;
      for (int d = 0; d < 3; ++d) {
        // Wide pixel w meets narrow pixel (w + padding - place) / stride.
        const int64_t distance = g.padding[d] - place.x[d] * g.dilation[d];
        const int64_t first = ((-distance) % g.stride[d] + g.stride[d]) % g.stride[d];
        far.x[d] = (first + distance) / g.stride[d];
        residue = residue * g.stride[d] + first;
        least.x[d] = tap ? std::min(least.x[d], far.x[d]) : far.x[d];
        most.x[d] = tap ? std::max(most.x[d], far.x[d]) : far.x[d];
      }
      of_tap.push_back(residue);
      by.push_back(far);
    }
    for (int d = 0; d < 3; ++d) {
      extra[d] = most.x[d] - least.x[d];
      size[d] = divide_up(g.wide[d], g.stride[d]);
    }
    Position p;
    for (p.x[0] = 0; p.x[0] < g.stride[0]; ++p.x[0]) {
      for (p.x[1] = 0; p.x[1] < g.stride[1]; ++p.x[1]) {
        for (p.x[2] = 0; p.x[2] < g.stride[2]; ++p.x[2]) at.push_back(p);
      }
    }
  }
  int64_t count() const { return static_cast<int64_t>(at.size()); }
};

constexpr int64_t UNIT[3] = {1, 1, 1};

class Transposed {
 public:
  explicit Transposed(const Call& call)
      : f_(call.f),
        layer_(call.layer),
        call_(call),
        residues_(call.g),
        lines_(call.g.batch, residues_.size, residues_.extra, UNIT, call.g.narrow) {
    plan();
    require_places(block_rows_ * ld_);
    shift_.resize(static_cast<size_t>(32 * f_.words));
    bucket_.resize(static_cast<size_t>(32 * f_.words));
    each_column(f_.cols, [&](int64_t column, int64_t place) {
      const int64_t tap = column / layer_.channels;
      Position by = residues_.by[tap];
      for (int d = 0; d < 3; ++d) by.x[d] -= residues_.least.x[d];
      shift_[place] = static_cast<int32_t>(lines_.distance(by.x));
      bucket_[place] = static_cast<int32_t>(residues_.of_tap[tap] * layer_.channels + column % layer_.channels);
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
  void plan() {
    const int64_t taps = divide_up(layer_.taps, residues_.count());
    block_rows_ = std::clamp<int64_t>(CHAIN / taps, 8, std::max<int64_t>(layer_.rows, 8));
    const int64_t tiles = lines_.tiles(), wanted = call_.threads > 1 ? 3 * call_.threads : 1;
    const int64_t sums = std::min(layer_.channels, MOST_CHANNELS) * residues_.count() * TILE;
    block_tiles_ = std::clamp<int64_t>(SUM_FLOATS / std::max<int64_t>(sums, 1), 1, 16);
    block_tiles_ = std::clamp<int64_t>(REGION_FLOATS / (block_rows_ * TILE), 1, block_tiles_);
    block_tiles_ = std::min(block_tiles_, std::max<int64_t>(1, tiles * layer_.groups / wanted));
    tile_blocks_ = divide_up(tiles, block_tiles_);
    const int64_t missing = divide_up(wanted, layer_.groups * tile_blocks_);
    const int64_t blocks =
        std::max(divide_up(layer_.channels, MOST_CHANNELS), std::min(missing, divide_up(layer_.channels, int64_t{64})));
    block_channels_ = round_up(divide_up(layer_.channels, blocks), 32);
    channel_blocks_ = divide_up(layer_.channels, block_channels_);
    region_ = lines_.widest_region(block_tiles_);
    ld_ = round_up(region_, VL) | VL;  // rows on different cache sets
  }

  // Words of a row that hold the columns of channels [channel0, channel1), and of others where there is more than one
  // tap.
  std::pair<int64_t, int64_t> words_of(int64_t channel0, int64_t channel1) const {
    if (layer_.taps > 1) return {0, f_.words};
    return {channel0 / 32, divide_up(channel1, int64_t{32})};
  }

  void run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t channel0, int64_t channel1) const;

  const Frozen& f_;
  const Layer& layer_;
  const Call& call_;
  const Residues residues_;
  const Lines lines_;
  int64_t block_rows_, block_tiles_, tile_blocks_, block_channels_, channel_blocks_, region_, ld_;
  std::vector<int32_t> shift_, bucket_;  // of the bits of a row: where its inputs begin, and residue and channel
};

// The weights of a block of rows as they are kept, and sorted by what they add to.
struct Sorter {
  std::vector<int32_t> at, bucket, sorted_at;
  std::vector<float> value, sorted_value;
  std::vector<int64_t> start;

  Sorter(int64_t most, int64_t buckets)
      : at(static_cast<size_t>(most + LIST_SLACK)),
        bucket(at.size()),
        sorted_at(at.size()),
        value(at.size()),
        sorted_value(at.size()),
        start(static_cast<size_t>(buckets + 1)) {}

  // Entries [0, count), stable.
  void sort(int64_t count) {
    std::fill(start.begin(), start.end(), 0);
    for (int64_t i = 0; i < count; ++i) ++start[bucket[i] + 1];
    for (size_t b = 1; b < start.size(); ++b) start[b] += start[b - 1];
    for (int64_t i = 0; i < count; ++i) {
      const int64_t place = start[bucket[i]]++;
      sorted_at[place] = at[i];
      sorted_value[place] = value[i];
    }
  }
  // After a sort: the list of a bucket.
  List list(int64_t b) const {
    const int64_t first = b ? start[b - 1] : 0;
    return {sorted_at.data() + first, sorted_value.data() + first, start[b] - first};
  }
};

void Transposed::run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t channel0, int64_t channel1) const {
  const int64_t channels = channel1 - channel0, buckets = residues_.count() * layer_.channels;
  const int64_t ld = (tile1 - tile0) * TILE + VL, most_runs = lines_.most_runs(region_);
  const int64_t sum_rows = residues_.count() * round_up(channels, VL);
  Scratch scratch(4 * (block_rows_ * ld_ + (region_ + VL) * LD + sum_rows * ld + VL * TILE) +
                  most_runs * static_cast<int64_t>(sizeof(Run) + sizeof(Span)) +
                  channels * static_cast<int64_t>(sizeof(List)) + 1024);
  float* const x = scratch.take<float>(block_rows_ * ld_);
  float* const stage = scratch.take<float>((region_ + VL) * LD);
  float* const sums = scratch.take<float>(sum_rows * ld);
  float* const turned = scratch.take<float>(VL * TILE);
  Run* const runs = scratch.take<Run>(most_runs);
  Span* const spans = scratch.take<Span>(most_runs);
  List* const lists = scratch.take<List>(channels);

  const auto [word0, word1] = words_of(channel0, channel1);
  const int64_t first_row = group * layer_.rows, chunks = f_.chunks();
  int64_t most = 0;
  for (int64_t row = 0; row < layer_.rows; row += block_rows_) {
    const int64_t end = std::min(row + block_rows_, layer_.rows);
    most = std::max(most, f_.offsets[(first_row + end) * chunks] - f_.offsets[(first_row + row) * chunks]);
  }
  Sorter sorter(most, buckets);
  const int64_t first = lines_.tile(tile0).first, region = lines_.region(tile0, tile1);
  clear(sums, sum_rows * ld);
  for (int64_t row0 = 0; row0 < layer_.rows; row0 += block_rows_) {
    const int64_t rows = std::min(block_rows_, layer_.rows - row0);
    lines_.pack(call_.narrow, residues_.least, first, region, first_row + row0, rows, x, ld_, stage, runs, spans);
    int64_t all = 0;
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t row = first_row + row0 + i;
      const uint32_t* const words = f_.keep + row * f_.words + word0;
      const int64_t count = compress(words, word1 - word0, bucket_.data() + 32 * word0, sorter.bucket.data() + all);
      compress(words, word1 - word0, shift_.data() + 32 * word0, sorter.at.data() + all);
      read_values(f_, first_value(f_, row, word0), count, sorter.value.data() + all);
      const int32_t line = static_cast<int32_t>(i * ld_);
      const float scale = f_.row_scale ? f_.row_scale[row] : 1.0f;
      for (int64_t k = all; k < all + count; ++k) {
        sorter.at[k] += line;
        sorter.value[k] *= scale;
      }
      all += count;
    }
    sorter.sort(all);
    for (int64_t residue = 0; residue < residues_.count(); ++residue) {
      for (int64_t c = 0; c < channels; ++c) lists[c] = sorter.list(residue * layer_.channels + channel0 + c);
      float* const into = sums + residue * round_up(channels, VL) * ld;
      for (int64_t tile = tile0; tile < tile1; ++tile) {
        const Lines::Tile place = lines_.tile(tile);
        find_gather(place.count)(lists, channels, x + place.first - first, into + (tile - tile0) * TILE, ld);
      }
    }
  }
  for (int64_t residue = 0; residue < residues_.count(); ++residue) {
    const Position& at = residues_.at[residue];
    Grid grid = lines_.grid;
    int64_t size[3];
    for (int d = 0; d < 3; ++d) {
      grid.step[d] = call_.g.stride[d];
      size[d] = divide_up(call_.g.wide[d] - at.x[d], call_.g.stride[d]);
    }
    const Result result{call_.wide, f_.scale, call_.epilogue, grid, at};
    for (int64_t tile = tile0; tile < tile1; ++tile) {
      const Lines::Tile place = lines_.tile(tile);
      const int64_t run_count = lines_.result_runs(place, size, runs);
      store_sums(result, sums + residue * round_up(channels, VL) * ld + (tile - tile0) * TILE, ld,
                 group * layer_.channels + channel0, channels, place.count, runs, run_count, turned);
    }
  }
}

}  // namespace

void convolve_transposed_stored(const Call& call) {
  const Transposed transposed(call);
  parallel_for(call.threads, transposed.tasks(), [&](int64_t task) { transposed.run(task); });
}

}  // namespace fk::FK_ISA_NS
