// Blocks of pixels of a score gradient: both sides packed by pixel, and which pixels meet under each tap.
#pragma once
#include "cpu/conv/layer.h"
#include "cpu/core/scratch.h"
#include "cpu/scores/prefetch.h"
#include "cpu/scores/scores.h"
#include "cpu/scores/tile.h"

namespace fk::FK_ISA_NS {

// Rows of a task, cut as evenly as can be into what a tile takes.
struct Slivers {
  int64_t count;
  int64_t first[DEPTH / SLIVER_ROWS + 2];  // and the end

  explicit Slivers(int64_t rows) : count(divide_up(rows, SLIVER_ROWS)) {
    for (int64_t i = 0; i <= count; ++i) first[i] = rows * i / count;
  }
  int64_t rows(int64_t i) const { return first[i + 1] - first[i]; }
};

// Consecutive pixels of the narrow side and the inputs under a few taps. Taps share inputs: each is packed once.
class PixelBlock {
 public:
  static constexpr int64_t MOST_TAPS = 32;  // whose pairs exist at once

  PixelBlock(const ScoreCall& call, int64_t group, Scratch& scratch)
      : call_(call),
        group_(group),
        grid_(narrow_grid(call.g)),
        runs_(scratch.take<Run>(DEPTH)),
        lines_(scratch.take<Run>(MOST_LINES)),
        spans_(scratch.take<Span>(MOST_LINES)),
        next_spans_(scratch.take<Span>(MOST_LINES)),
        pairs_(scratch.take<PixelPair>(MOST_TAPS * DEPTH)),
        staging_(scratch.take<float>(VL * STAGING_LD)),
        inputs_(scratch.take<float>(INPUT_FLOATS)) {
    clear(staging_, VL * STAGING_LD);
    // Lanes past the last channel are multiplied, too, and denormals there would cost time.
    if (call.layer.channels % VL) clear(inputs_, INPUT_FLOATS);
  }
  static int64_t scratch_bytes() {
    return 4 * (VL * STAGING_LD + INPUT_FLOATS) + 512 + MOST_TAPS * DEPTH * static_cast<int64_t>(sizeof(PixelPair)) +
           (DEPTH + MOST_LINES) * static_cast<int64_t>(sizeof(Run)) +
           2 * MOST_LINES * static_cast<int64_t>(sizeof(Span));
  }

  // Columns of so few channels are packed beside each other, as if they were channels under one tap.
  static bool as_one_tap(const Layer& layer) { return layer.channels < VL && layer.taps > 1; }

  // Pixels [pixel, pixel + depth), at most DEPTH.
  void start(int64_t pixel, int64_t depth) {
    const int64_t image = image_pixels();
    // Blocks of whole images have the same pairs.
    known_taps_ = depth == depth_ && DEPTH % image == 0 ? known_taps_ : 0;
    pixel_ = pixel;
    depth_ = depth;
    batch_ = pixel / image;
    run_count_ = find_runs(grid_, pixel, depth, runs_);
  }

  // out[(i * DEPTH + pixel) * VL + j] = row j of sliver i; the first of them is row `row` of the group.
  void pack_rows(int64_t row, const Slivers& slivers, float* out) {
    const Grid direct = every_pixel(grid_.size);
    const Activations& side = call_.narrow;
    const int64_t count = find_spans(direct, side, Position{}, runs_, run_count_, spans_);
    const int64_t channel = group_ * call_.layer.rows + row;
    if (side.stride[CHANNEL] != 1) {
      for (int64_t i = 0; i < slivers.count; ++i, out += DEPTH * VL) {
        pack(side, direct, count, depth_, channel + slivers.first[i], slivers.rows(i), out, VL);
      }
      return;
    }
    with_dtype(side.dtype, [&](auto dtype) {
      const auto* const base = static_cast<const typename Element<dtype>::Type*>(side.data) + channel;
      for (int64_t i = 0; i < count; ++i) {
        const auto* from = base + spans_[i].offset;
        float* to = out + spans_[i].lane * VL;
        for (int64_t pixel = 0; pixel < spans_[i].count; ++pixel, from += side.stride[SPATIAL + 2], to += VL) {
          pack_pixel<dtype>(from, slivers, to);
        }
      }
    });
  }

  // Makes the pairs of taps [tap, tap + taps), for inputs of `channels` channels. False where the taps lie too far
  // apart to share inputs; one tap alone never does.
  bool find_pairs(int64_t tap, int64_t taps, int64_t channels) {
    if (taps == 1) {
      pair_in_order(tap, channels);
      return true;
    }
    if (known_taps_ != taps || tap_ != tap) {
      known_taps_ = 0;
      if (!pair_shared(tap, taps, channels)) return false;
      known_taps_ = taps;
      tap_ = tap;
    }
    from_ = every_pixel(call_.g.wide);
    const int64_t count = find_runs(from_, first_ + batch_ * image_inputs(), input_count_, lines_);
    span_count_ = find_spans(from_, call_.wide, Position{}, lines_, count, spans_);
    return true;
  }
  // Of the tap that is `i` behind the first.
  const PixelPair* pairs(int64_t i) const { return pairs_ + i * DEPTH; }
  int64_t pair_count(int64_t i) const { return pair_count_[i]; }

  // The inputs that pairs lead to, of at most `channels_at_once` channels.
  int64_t channels_at_once() const { return ld_ - GAP; }
  const float* pack_inputs(int64_t channel, int64_t channels) {
    if (as_one_tap(call_.layer)) {
      pack_columns(channel, channels);
    } else {
      pack(call_.wide, from_, span_count_, input_count_, group_ * call_.layer.channels + channel, channels, inputs_,
           ld_);
    }
    return inputs_;
  }

  // What the next block will pack and this one did not: rows [row, row + rows) and the inputs of all channels.
  void foresee(int64_t row, int64_t rows, LinePrefetch& memory) {
    memory.clear();
    const int64_t next = pixel_ + depth_, depth = std::min(DEPTH, grid_.pixels() - next);
    if (depth <= 0) return;
    const auto add = [&](const Activations& side, const Grid& grid, const Position& shift, int64_t runs,
                         int64_t channel, int64_t channels) {
      memory.add(side, grid, next_spans_, find_spans(grid, side, shift, lines_, runs, next_spans_), channel, channels);
    };
    const int64_t channels = call_.layer.channels, channel = group_ * channels;
    int64_t runs = find_runs(grid_, next, depth, lines_);
    add(call_.narrow, every_pixel(grid_.size), Position{}, runs, group_ * call_.layer.rows + row, rows);
    if (!known_taps_) return add(call_.wide, grid_, narrow_shift(call_.g, tap_), runs, channel, channels);
    const int64_t from = batch_ * image_inputs() + first_ + input_count_;
    const int64_t inputs = std::min(depth * image_inputs() / image_pixels(), grid_.batch * image_inputs() - from);
    if (inputs <= 0 || inputs / call_.g.wide[2] + 2 > MOST_LINES) return;
    runs = find_runs(from_, from, inputs, lines_);
    add(call_.wide, from_, Position{}, runs, channel, channels);
  }

 private:
  static constexpr int64_t INPUT_FLOATS = 1 << 16;
  static constexpr int64_t MOST_INPUTS = 8 * DEPTH, MOST_LINES = 2 * DEPTH;
  static constexpr int64_t STAGING_LD = MOST_INPUTS + 16;
  // Floats: from pixel to pixel an odd number of cache lines.
  static constexpr int64_t UNIT = 32, GAP = 16;
  static_assert(UNIT % TILE_LANES == 0 && GAP >= VL);

  Grid every_pixel(const int64_t* size) const {
    Grid all{grid_.batch, {}, {1, 1, 1}, {}};
    for (int d = 0; d < 3; ++d) all.size[d] = all.limit[d] = size[d];
    return all;
  }
  int64_t image_pixels() const { return grid_.size[0] * grid_.size[1] * grid_.size[2]; }
  int64_t image_inputs() const { return call_.g.wide[0] * call_.g.wide[1] * call_.g.wide[2]; }

  template <int DTYPE>
  static FK_INLINE void pack_pixel(const typename Element<DTYPE>::Type* from, const Slivers& slivers, float* to) {
    const int64_t last = slivers.first[slivers.count] - VL;
    for (int64_t i = 0; i < slivers.count; ++i, to += DEPTH * VL) {
      const int64_t first = slivers.first[i];
      if (first <= last) {
        load_vector<DTYPE>(from + first).store(to);
      } else {
        read<DTYPE>(from + first, 1, slivers.rows(i), to);
      }
    }
  }

  void hold(int64_t inputs, int64_t channels) {
    const int64_t most = (INPUT_FLOATS / round_up(inputs, VL) - GAP) / UNIT * UNIT;
    input_count_ = inputs;
    ld_ = std::min(most, round_up(channels, UNIT)) + GAP;
  }

  void pair_in_order(int64_t tap, int64_t channels) {
    known_taps_ = 0;
    tap_ = tap;
    hold(depth_, channels);
    from_ = grid_;
    span_count_ = find_spans(grid_, call_.wide, narrow_shift(call_.g, tap), runs_, run_count_, spans_);
    PixelPair* to = pairs_;
    const auto pair = [&](int64_t lane, int64_t count) {
      for (int64_t i = lane; i < lane + count; ++i)
        *to++ = {static_cast<int32_t>(i * ld_), static_cast<int32_t>(i * VL)};
    };
    if (as_one_tap(call_.layer)) {
      pair(0, depth_);
    } else {
      for (int64_t i = 0; i < span_count_; ++i) pair(spans_[i].lane, spans_[i].count);
    }
    pair_count_[0] = to - pairs_;
  }

  bool pair_shared(int64_t tap, int64_t taps, int64_t channels) {
    // Offsets into this are numbers of inputs.
    Activations numbers{};
    const int64_t* const size = call_.g.wide;
    numbers.stride[BATCH] = image_inputs();
    for (int d = 0; d < 3; ++d) numbers.stride[SPATIAL + d] = d == 0 ? size[1] * size[2] : d == 1 ? size[2] : 1;
    const int64_t base = batch_ * image_inputs(), step = grid_.step[2];
    int64_t first = INT64_MAX, last = INT64_MIN;
    for (int64_t t = 0; t < taps; ++t) {
      const int64_t count = find_spans(grid_, numbers, narrow_shift(call_.g, tap + t), runs_, run_count_, spans_);
      PixelPair* to = pairs_ + t * DEPTH;
      for (int64_t i = 0; i < count; ++i) {
        const Span& span = spans_[i];
        const int64_t from = span.offset - base;
        first = std::min(first, from);
        last = std::max(last, from + (span.count - 1) * step);
        for (int64_t j = 0; j < span.count; ++j) {
          *to++ = {static_cast<int32_t>(from + j * step), static_cast<int32_t>((span.lane + j) * VL)};
        }
      }
      pair_count_[t] = to - (pairs_ + t * DEPTH);
    }
    if (first > last) first = last = 0;
    if (last > INT32_MAX) return false;
    const int64_t lines = (base + last) / size[2] - (base + first) / size[2] + 1;
    if (last - first >= MOST_INPUTS || lines > MOST_LINES) return false;
    first_ = first;
    hold(last - first + 1, channels);
    for (int64_t t = 0; t < taps; ++t) {
      PixelPair* const pairs = pairs_ + t * DEPTH;
      for (int64_t i = 0; i < pair_count_[t]; ++i) {
        pairs[i].x = static_cast<int32_t>((pairs[i].x - first) * ld_);
      }
    }
    return true;
  }

  // out[pixel * ld + i] = channel + i
  void pack(const Activations& side, const Grid& grid, int64_t span_count, int64_t pixels, int64_t channel,
            int64_t channels, float* out, int64_t ld) {
    if (side.stride[CHANNEL] == 1) {
      return pack_channels(side, grid, spans_, span_count, pixels, channel, channels, out, ld);
    }
    for (int64_t c = 0; c < channels; c += VL) {
      const int64_t count = std::min<int64_t>(VL, channels - c);
      pack_lanes(side, grid, spans_, span_count, round_up(pixels, VL), channel + c, count, staging_, STAGING_LD);
      transpose(staging_, STAGING_LD, count, pixels, out + c, ld);
    }
  }

  void pack_columns(int64_t column, int64_t columns) {
    const int64_t channels = call_.layer.channels, channel0 = group_ * channels;
    const bool by_channel = call_.wide.stride[CHANNEL] == 1;
    for (int64_t k0 = column; k0 < column + columns; k0 += VL) {
      const int64_t end = std::min(k0 + VL, column + columns);
      for (int64_t k = k0; k < end;) {
        const int64_t tap = k / channels, channel = k % channels, count = std::min(channels - channel, end - k);
        const int64_t found = find_spans(grid_, call_.wide, narrow_shift(call_.g, tap), runs_, run_count_, spans_);
        if (by_channel) {
          pack_channels(call_.wide, grid_, spans_, found, depth_, channel0 + channel, count, inputs_ + (k - column),
                        ld_);
        } else {
          pack_lanes(call_.wide, grid_, spans_, found, round_up(depth_, VL), channel0 + channel, count,
                     staging_ + (k - k0) * STAGING_LD, STAGING_LD);
        }
        k += count;
      }
      if (!by_channel) transpose(staging_, STAGING_LD, end - k0, depth_, inputs_ + (k0 - column), ld_);
    }
  }

  const ScoreCall& call_;
  const int64_t group_;
  const Grid grid_;
  Run *const runs_, *const lines_;
  Span *const spans_, *const next_spans_;
  PixelPair* const pairs_;
  float *const staging_, *const inputs_;
  int64_t pair_count_[MOST_TAPS];
  int64_t pixel_ = 0, depth_ = 0, batch_ = 0, run_count_ = 0;
  int64_t known_taps_ = 0, tap_ = 0;                      // whose pairs are shared
  int64_t first_ = 0, input_count_ = 0, span_count_ = 0;  // packed inputs, the first counted from the batch entry's
  int64_t ld_ = 0;
  Grid from_{};
};

}  // namespace fk::FK_ISA_NS
