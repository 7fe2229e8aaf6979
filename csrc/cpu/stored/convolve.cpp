// narrow = W wide, with pixels in lanes. A sum is a sum over chunks of columns, in order.
#include <vector>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/stored/decode.h"
#include "cpu/stored/gather.h"
#include "cpu/stored/stored.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t CHAIN_WORDS = 4;          // longest chain of a sum
constexpr int64_t NEAR_FLOATS = 1 << 13;    // of inputs that a chunk of columns reads again and again: 32 KB
constexpr int64_t REGION_FLOATS = 1 << 17;  // of inputs under a task
constexpr int64_t SUM_FLOATS = 1 << 16;     // of a task

// Residues of taps modulo the stride: each has the inputs that it meets beside each other.
struct Phases {
  std::vector<Position> shift;  // of a phase
  std::vector<int64_t> of_tap;  // the phase of each tap
  std::vector<Position> by;     // how far a tap lies in it
  int64_t extra[3] = {};

  explicit Phases(const Geometry& g) {
    for (int64_t tap = 0; tap < g.tap_count(); ++tap) {
      const Position at = tap_position(g, tap);
      Position first, far;
      for (int d = 0; d < 3; ++d) {
        const int64_t place = at.x[d] * g.dilation[d];
        first.x[d] = place % g.stride[d] - g.padding[d];
        far.x[d] = place / g.stride[d];
        extra[d] = std::max(extra[d], far.x[d]);
      }
      size_t phase = 0;
      while (phase < shift.size() && memcmp(shift[phase].x, first.x, sizeof(first.x)) != 0) ++phase;
      if (phase == shift.size()) shift.push_back(first);
      of_tap.push_back(static_cast<int64_t>(phase));
      by.push_back(far);
    }
  }
  int64_t count() const { return static_cast<int64_t>(shift.size()); }
};

Lines lines_of(const Geometry& g, const Phases& phases) { return {g.batch, g.narrow, phases.extra, g.stride, g.wide}; }

class Convolution {
 public:
  explicit Convolution(const Call& call)
      : f_(call.f), layer_(call.layer), call_(call), phases_(call.g), lines_(lines_of(call.g, phases_)) {
    const int64_t tile = std::min(TILE, round_up(lines_.used, VL)), near = NEAR_FLOATS / tile / 32;
    chunk_words_ = CHAIN_WORDS * chains(tile / VL);
    // Taps share the inputs of their channels.
    if (32 * near < layer_.channels) chunk_words_ = std::min(chunk_words_, near);
    plan();
    require_places(phases_.count() * layer_.channels * ld_);
    at_.resize(static_cast<size_t>(32 * f_.words));
    each_column(f_.cols, [&](int64_t column, int64_t place) {
      const int64_t tap = column / layer_.channels, channel = column % layer_.channels;
      const int64_t phase = phases_.of_tap[tap];
      at_[place] = static_cast<int32_t>((phase * layer_.channels + channel) * ld_ + lines_.distance(phases_.by[tap].x));
    });
  }

  int64_t tasks() const { return layer_.groups * row_blocks_ * tile_blocks_; }

  void run(int64_t task) const {
    const int64_t group = task / (row_blocks_ * tile_blocks_);
    const int64_t tile0 = task / row_blocks_ % tile_blocks_ * block_tiles_;
    const int64_t row0 = task % row_blocks_ * block_rows_;
    run_block(group, tile0, std::min(tile0 + block_tiles_, lines_.tiles()), row0,
              std::min(row0 + block_rows_, layer_.rows));
  }

 private:
  // Tasks: as many tiles as inputs and sums near the core allow, and few enough to keep every thread busy.
  void plan() {
    const int64_t tiles = lines_.tiles(), wanted = call_.threads > 1 ? 3 * call_.threads : 1;
    const int64_t inputs = layer_.channels * phases_.count() * TILE;
    block_tiles_ = std::clamp<int64_t>(REGION_FLOATS / std::max<int64_t>(inputs, 1), 1, 16);
    block_tiles_ = std::min(block_tiles_, std::max<int64_t>(1, tiles * layer_.groups / wanted));
    tile_blocks_ = divide_up(tiles, block_tiles_);
    block_rows_ = std::clamp<int64_t>(SUM_FLOATS / (block_tiles_ * TILE), 16, std::max<int64_t>(layer_.rows, 16));
    row_blocks_ = divide_up(layer_.rows, block_rows_);
    const int64_t missing = divide_up(wanted, layer_.groups * tile_blocks_);
    row_blocks_ = std::max(row_blocks_, std::min(missing, divide_up(layer_.rows, 16)));
    block_rows_ = round_up(divide_up(layer_.rows, row_blocks_), 16);
    row_blocks_ = divide_up(layer_.rows, block_rows_);
    region_ = lines_.widest_region(block_tiles_);
    ld_ = round_up(region_, VL) | VL;  // channels on different cache sets
  }

  void run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t row0, int64_t row1) const;
  int64_t decode(int64_t group, int64_t row0, int64_t rows, int64_t word, int64_t words, int64_t* next, int32_t* at,
                 float* value, List* lists) const;

  const Frozen& f_;
  const Layer& layer_;
  const Call& call_;
  const Phases phases_;
  const Lines lines_;
  int64_t chunk_words_, block_tiles_, tile_blocks_, block_rows_, row_blocks_, region_, ld_;
  std::vector<int32_t> at_;  // of the bits of a row, where their inputs are
};

// Lists of the rows in a chunk of words; `next`: the value with which each row goes on.
int64_t Convolution::decode(int64_t group, int64_t row0, int64_t rows, int64_t word, int64_t words, int64_t* next,
                            int32_t* at, float* value, List* lists) const {
  int64_t all = 0;
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t row = group * layer_.rows + row0 + i;
    const int64_t count = compress(f_.keep + row * f_.words + word, words, at_.data() + 32 * word, at + all);
    if (f_.value_dtype == FLOAT32) {
      lists[i] = {at + all, static_cast<const float*>(f_.values) + next[i], count};
    } else {
      read_values(f_, next[i], count, value + all);
      lists[i] = {at + all, value + all, count};
    }
    next[i] += count;
    all += count;
  }
  return all;
}

void Convolution::run_block(int64_t group, int64_t tile0, int64_t tile1, int64_t row0, int64_t row1) const {
  const int64_t rows = row1 - row0, channels = layer_.channels, inputs = phases_.count() * channels * ld_;
  const int64_t ld = (tile1 - tile0) * TILE + VL, entries = rows * 32 * chunk_words_ + LIST_SLACK;
  const int64_t most_runs = lines_.most_runs(region_);
  Scratch scratch(4 * (inputs + (region_ + VL) * LD + round_up(rows, VL) * ld + 2 * entries + VL * TILE) + 8 * rows +
                  rows * static_cast<int64_t>(sizeof(List)) +
                  most_runs * static_cast<int64_t>(sizeof(Run) + sizeof(Span)) + 1024);
  float* const x = scratch.take<float>(inputs);
  float* const stage = scratch.take<float>((region_ + VL) * LD);
  float* const sums = scratch.take<float>(round_up(rows, VL) * ld);
  int32_t* const at = scratch.take<int32_t>(entries);
  float* const value = scratch.take<float>(entries);
  float* const turned = scratch.take<float>(VL * TILE);
  int64_t* const next = scratch.take<int64_t>(rows);
  List* const lists = scratch.take<List>(rows);
  Run* const runs = scratch.take<Run>(most_runs);
  Span* const spans = scratch.take<Span>(most_runs);

  const int64_t first = lines_.tile(tile0).first, region = lines_.region(tile0, tile1);
  for (int64_t phase = 0; phase < phases_.count(); ++phase) {
    lines_.pack(call_.wide, phases_.shift[phase], first, region, group * channels, channels, x + phase * channels * ld_,
                ld_, stage, runs, spans);
  }
  clear(sums, rows * ld);
  for (int64_t i = 0; i < rows; ++i) next[i] = f_.offsets[(group * layer_.rows + row0 + i) * f_.chunks()];
  for (int64_t word = 0; word < f_.words; word += chunk_words_) {
    const int64_t words = std::min(chunk_words_, f_.words - word);
    decode(group, row0, rows, word, words, next, at, value, lists);
    for (int64_t tile = tile0; tile < tile1; ++tile) {
      const Lines::Tile place = lines_.tile(tile);
      find_gather(place.count)(lists, rows, x + place.first - first, sums + (tile - tile0) * TILE, ld);
    }
  }
  if (f_.row_scale) {
    for (int64_t i = 0; i < rows; ++i) {
      const vf32 scale = vf32::set(f_.row_scale[group * layer_.rows + row0 + i]);
      for (int64_t j = 0; j < (tile1 - tile0) * TILE; j += VL) {
        (vf32::load(sums + i * ld + j) * scale).store(sums + i * ld + j);
      }
    }
  }
  const Result result = narrow_result(call_);
  for (int64_t tile = tile0; tile < tile1; ++tile) {
    const Lines::Tile place = lines_.tile(tile);
    const int64_t run_count = lines_.result_runs(place, lines_.size, runs);
    store_sums(result, sums + (tile - tile0) * TILE, ld, group * layer_.rows + row0, rows, place.count, runs, run_count,
               turned);
  }
}

}  // namespace

void convolve_stored(const Call& call) {
  const Convolution convolution(call);
  parallel_for(call.threads, convolution.tasks(), [&](int64_t task) { convolution.run(task); });
}

}  // namespace fk::FK_ISA_NS
