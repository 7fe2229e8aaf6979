#include "cpu/lookup/integer_lookup.h"

#include <cmath>
#include <optional>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/fma/fma.h"
#include "cpu/lookup/index.h"
#include "cpu/lookup/scale.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t LEAST_REUSE = 8;  // lookups of a table that pay for building it

// One layer's call. Every sum is a sum over chunks of channels, in order, of one chain over taps and groups each, or of
// shorter ones over some of the taps.
struct Job {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;
  const Activations& wide;
  const Result result;
  const Grid grid;
  const LookupPlan plan;
  const int64_t chain;              // tables, where there are neighbouring taps to cut between
  const ImageScales* const scales;  // of tables of integers, where taps slide
  const bool integers, past_caches;
  const PackIndices pack;

  void run(int threads) const;

 private:
  void run_rows(int threads) const;
  void run_panels(int threads) const;
  void pack_block(const LookupPanel& panel, int64_t at, int64_t group, int64_t block, int64_t vector) const;
  void run_tile(const LookupPanel& panel, int64_t group, int64_t first_block, int64_t panel_block, int64_t blocks,
                int64_t tile) const;
  int64_t batch_of(int64_t tile) const { return tile / plan.tiles_along / plan.tiles_down / g.narrow[0]; }
};

int64_t block_vectors(const Layer& layer, int64_t block) {
  return std::min<int64_t>(TILE_ROW_VECTORS, divide_up(layer.rows - block * BLOCK_ROWS, VL));
}

// Where the inputs of neighbouring source pixels lie as floats.
struct Inputs {
  const float* data;
  int64_t pixel_step, channel_step;
};

// Runs of `count` pixels from `first` on, of lines of `columns` pixels; the first of all is that of `origin`.
int64_t runs_of_tile(int64_t first, int64_t count, int64_t columns, const Run& origin, Run* runs) {
  int64_t found = 0;
  for (int64_t p = 0; p < count;) {
    const int64_t line = (first + p) / columns, column = (first + p) % columns;
    Run& run = runs[found++] = origin;
    run.lane = p;
    run.count = std::min(count - p, columns - column);
    run.q.x[1] += line;
    run.q.x[2] += column;
    p += run.count;
  }
  return found;
}

// A part of a group's rows in a panel and the sums of a tile of pixels.
template <class Tables>
class TileTask {
 public:
  TileTask(const Job& job, const LookupPanel& panel, int64_t group, int64_t first_block, int64_t panel_block,
           int64_t blocks, int64_t tile)
      : job_(job),
        panel_(panel),
        shape_(job.plan.shape),
        group_(group),
        first_block_(first_block),
        panel_block_(panel_block),
        blocks_(blocks),
        rows_(std::min(job.layer.rows - first_block * BLOCK_ROWS, blocks * BLOCK_ROWS)),
        ld_(round_up(rows_, VL)) {
    const LookupPlan& plan = job.plan;
    const int64_t along = tile % plan.tiles_along, down = tile / plan.tiles_along % plan.tiles_down;
    plane_ = tile / plan.tiles_along / plan.tiles_down;
    line0_ = down * plan.lines;
    column0_ = along * plan.columns;
  }

  void run() {
    if (taps_slide(job_.g)) {
      slide();
    } else {
      pointwise();
    }
    if (job_.past_caches) _mm_sfence();
  }

 private:
  using Builder = TableBuilder<Tables>;

  void slide();
  void pointwise();
  void find_offsets(const Span* spans, int64_t count, int64_t pixels, int64_t* offsets) const;
  void build_window(int64_t chunk, const Builder& builder, const LookupWindow& window, float* staged,
                    float* tables) const;
  void build_line(int64_t chunk, const Builder& builder, const Position& from, int64_t columns, float* staged,
                  float* tables) const;
  void build(const Inputs& inputs, int64_t pixels, int64_t chunk, const Builder& builder, float* tables) const;
  void sum_sizes(const float* staged, int64_t step, const int64_t* offsets, int64_t pixels, int64_t chunk,
                 float* sums) const;
  template <class Any>
  void add_products(int64_t chunk, const Path& path, const float* const* tables, const float* units, int64_t pixels,
                    bool add, float* sums, const Output* output) const;
  void store(const float* sums, float* turned, const Run* runs, int64_t count, int64_t pixels) const;

  Output output_of(float* factors, float* biases) const;
  void find_results(const Run* runs, int64_t count, Output& output) const;

  int64_t channel() const { return group_ * job_.layer.rows + first_block_ * BLOCK_ROWS; }  // the first of the result
  bool stores_tiles() const { return job_.result.side.stride[CHANNEL] == 1 && job_.result.side.dtype == FLOAT32; }
  bool by_channel() const { return job_.wide.stride[CHANNEL] == 1; }
  bool in_place() const { return by_channel() && job_.wide.dtype == FLOAT32; }
  int64_t channels_of(int64_t chunk) const {
    return std::min(TRIPLE * shape_.groups_of(chunk), shape_.channels - TRIPLE * chunk * shape_.chunk);
  }
  int64_t first_channel(int64_t chunk) const { return group_ * job_.layer.channels + TRIPLE * chunk * shape_.chunk; }
  // Sums and, transposed, 16 rows of them.
  int64_t sum_floats(int64_t pixels) const { return round_up(pixels, VL) * (ld_ + VL); }

  const Job& job_;
  const LookupPanel& panel_;
  const LookupShape& shape_;
  const int64_t group_, first_block_, panel_block_, blocks_, rows_, ld_;
  int64_t plane_, line0_, column0_;
};

template <class Tables>
void TileTask<Tables>::build(const Inputs& inputs, int64_t pixels, int64_t chunk, const Builder& from,
                             float* tables) const {
  const int64_t channels = channels_of(chunk), next = shape_.groups_of(chunk) * TABLE;
  const auto run = [&, builder = from](auto step) {
    for (int64_t p = 0; p < pixels; ++p) {
      builder.build(inputs.data + p * inputs.pixel_step, step, channels, tables + p * next);
    }
  };
  if (inputs.channel_step == 1) {
    run(std::integral_constant<int64_t, 1>());
  } else {
    run(inputs.channel_step);
  }
}

// Sums over integers are exact and have one chain.
template <class Tables>
template <class Any>
void TileTask<Tables>::add_products(int64_t chunk, const Path& path, const float* const* tables, const float* units,
                                    int64_t pixels, bool add, float* sums, const Output* output) const {
  const int64_t chain = Any::INTEGERS ? path.count * path.run : job_.chain;
  for (int64_t b = 0; b < blocks_; ++b) {
    const int64_t vectors = block_vectors(job_.layer, first_block_ + b);
    const LookUp look_up = find_lookup<Any>(vectors, pixels);
    const uint8_t* const indices = panel_.at(chunk, panel_block_ + b);
    const int64_t bytes = 64 * vectors * shape_.quads_of(chunk);  // of one entry of the path
    const int64_t at_once = std::clamp<int64_t>(chain / path.run, 1, path.count);
    Output own = output ? *output : Output{};
    if (output) own.skip_rows(b * BLOCK_ROWS);
    for (int64_t e = 0; e < path.count; e += at_once) {
      const Path part{path.offsets + e, std::min(at_once, path.count - e), path.run};
      const bool last = output && e + part.count == path.count;
      look_up(indices + e * bytes, part, tables, units, add || e > 0, sums + b * BLOCK_ROWS, ld_,
              last ? &own : nullptr);
    }
  }
}

// Tables of `columns` source pixels from `from` on, those outside the source zero.
template <class Tables>
void TileTask<Tables>::build_line(int64_t chunk, const Builder& builder, const Position& from, int64_t columns,
                                  float* staged, float* tables) const {
  const Geometry& g = job_.g;
  const int64_t channels = channels_of(chunk), step = shape_.groups_of(chunk) * TABLE;
  const bool inside =
      from.x[0] >= 0 && from.x[0] < g.wide[0] && from.x[1] >= 0 && from.x[1] < g.wide[1] && from.x[2] < g.wide[2];
  const int64_t begin = inside ? std::clamp<int64_t>(-from.x[2], 0, columns) : columns;
  const int64_t end = inside ? std::clamp<int64_t>(g.wide[2] - from.x[2], begin, columns) : columns;
  clear(tables, begin * step);
  clear(tables + end * step, (columns - end) * step);
  if (begin == end) return;
  const int64_t* const stride = job_.wide.stride;
  const int64_t next = stride[SPATIAL + 2], batch = plane_ / g.narrow[0];
  const int64_t offset = batch * stride[BATCH] + from.x[0] * stride[SPATIAL] + from.x[1] * stride[SPATIAL + 1] +
                         (from.x[2] + begin) * next + first_channel(chunk) * stride[CHANNEL];
  if (in_place()) {
    build({static_cast<const float*>(job_.wide.data) + offset, next, 1}, end - begin, chunk, builder,
          tables + begin * step);
    return;
  }
  const Inputs inputs = by_channel() ? Inputs{staged, TRIPLE * shape_.chunk, 1} : Inputs{staged, 1, columns};
  with_dtype(job_.wide.dtype, [&](auto dtype) {
    const auto* source = static_cast<const typename Element<dtype>::Type*>(job_.wide.data) + offset;
    if (by_channel()) {
      for (int64_t p = 0; p < end - begin; ++p, source += next) {
        read<dtype>(source, 1, channels, staged + p * inputs.pixel_step);
      }
    } else {
      for (int64_t c = 0; c < channels; ++c, source += stride[CHANNEL]) {
        read<dtype>(source, next, end - begin, staged + c * inputs.channel_step);
      }
    }
  });
  build(inputs, end - begin, chunk, builder, tables + begin * step);
}

template <class Tables>
void TileTask<Tables>::build_window(int64_t chunk, const Builder& builder, const LookupWindow& window, float* staged,
                                    float* tables) const {
  const Geometry& g = job_.g;
  const int64_t line_step = window.line_step(shape_.groups_of(chunk));
  for (int64_t z = 0; z < window.planes; ++z) {
    for (int64_t line = 0; line < window.lines; ++line, tables += line_step) {
      const Position from{{plane_ % g.narrow[0] * g.stride[0] + z * g.dilation[0] - g.padding[0],
                           line0_ * g.stride[1] + line - g.padding[1], column0_ * g.stride[2] - g.padding[2]}};
      build_line(chunk, builder, from, window.columns, staged, tables);
    }
  }
}

template <class Tables>
void TileTask<Tables>::slide() {
  const Geometry& g = job_.g;
  const int64_t lines = std::min(job_.plan.lines, g.narrow[1] - line0_);
  const int64_t columns = std::min(job_.plan.columns, g.narrow[2] - column0_);
  const int64_t pixels = lines * columns;
  const LookupWindow window(g, lines, columns);
  const int64_t staged_floats = TRIPLE * shape_.chunk * window.columns;
  Scratch scratch(4 * (window.floats(shape_.chunk) + staged_floats + sum_floats(pixels) + 2 * ld_) +
                  8 * shape_.entries + lines * static_cast<int64_t>(sizeof(Run)) + 1024);
  float* const tables = scratch.take<float>(window.floats(shape_.chunk));
  float* const staged = scratch.take<float>(staged_floats);
  float* const sums = scratch.take<float>(sum_floats(pixels));
  float* const finishes = scratch.take<float>(2 * ld_);
  Output output = output_of(finishes, finishes + ld_);
  int64_t* const offsets = scratch.take<int64_t>(shape_.entries);
  Run* const runs = scratch.take<Run>(lines);
  const int64_t q0 = plane_ % g.narrow[0], batch = plane_ / g.narrow[0];
  const Run origin{0, 0, batch, {{q0, line0_, column0_}}};
  for (int64_t chunk = 0; chunk < shape_.chunks(); ++chunk) {
    const Scale scale = Tables::INTEGERS ? job_.scales->at(group_, batch, chunk) : Scale{1.0f, 1.0f};
    const float units[TILE_PIXELS] = {scale.unit, scale.unit, scale.unit, scale.unit, scale.unit};
    build_window(chunk, Builder(scale.up), window, staged, tables);
    const int64_t groups = shape_.groups_of(chunk), pixel_step = groups * TABLE;
    const int64_t line_step = window.line_step(groups);
    for (int64_t i = 0; i < shape_.entries; ++i) {
      const Position tap = tap_position(g, i * shape_.run_taps);
      offsets[i] =
          (tap.x[0] * window.lines + tap.x[1] * g.dilation[1]) * line_step + tap.x[2] * g.dilation[2] * pixel_step;
    }
    const Path path{offsets, shape_.entries, shape_.run_taps * groups};
    const bool last = stores_tiles() && chunk + 1 == shape_.chunks();
    const int64_t tiles = divide_up(pixels, TILE_PIXELS);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = pixels * t / tiles, count = pixels * (t + 1) / tiles - first;
      const float* at[TILE_PIXELS];
      for (int64_t p = 0; p < count; ++p) {
        const int64_t line = (first + p) / columns, column = (first + p) % columns;
        at[p] = tables + line * g.stride[1] * line_step + column * g.stride[2] * pixel_step;
      }
      Run own[TILE_PIXELS];
      if (last) find_results(own, runs_of_tile(first, count, columns, origin, own), output);
      add_products<Tables>(chunk, path, at, units, count, chunk > 0, sums + first * ld_, last ? &output : nullptr);
    }
  }
  if (stores_tiles()) return;
  for (int64_t i = 0; i < lines; ++i) runs[i] = {i * columns, columns, batch, {{q0, line0_ + i, column0_}}};
  store(sums, sums + round_up(pixels, VL) * ld_, runs, lines, pixels);
}

// Offset of each pixel's source; pixels of the padding get NOWHERE.
template <class Tables>
void TileTask<Tables>::find_offsets(const Span* spans, int64_t count, int64_t pixels, int64_t* offsets) const {
  std::fill_n(offsets, pixels, NOWHERE);
  const int64_t step = job_.grid.step[2] * job_.wide.stride[SPATIAL + 2];
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t p = 0; p < spans[i].count; ++p) offsets[spans[i].lane + p] = spans[i].offset + p * step;
  }
}

// For each pixel the sum of the sizes of its inputs: where they lie, or staged by pixel or by channel, `step` apart.
template <class Tables>
void TileTask<Tables>::sum_sizes(const float* staged, int64_t step, const int64_t* offsets, int64_t pixels,
                                 int64_t chunk, float* sums) const {
  const int64_t channels = channels_of(chunk);
  if (!by_channel()) {
    clear(sums, round_up(pixels, VL));
    for (int64_t c = 0; c < channels; ++c, staged += step) add_sizes(staged, pixels, sums);
    return;
  }
  const float* const source = static_cast<const float*>(job_.wide.data) + first_channel(chunk);
  for (int64_t p = 0; p < pixels; ++p) {
    const bool nowhere = in_place() && offsets[p] == NOWHERE;
    sums[p] = nowhere ? 0.0f : sum_of_sizes(in_place() ? source + offsets[p] : staged + p * step, channels);
  }
}

// One tap: tables are built for a tile of registers at a time and stay in the first-level cache. A pixel whose inputs
// have no scale is computed by floats, alone, so that its neighbours' bits do not depend on it.
template <class Tables>
void TileTask<Tables>::pointwise() {
  const int64_t pixels = std::min(job_.plan.columns, job_.grid.pixels() - column0_);
  const int64_t lanes = round_up(pixels, VL) + VL, floats = shape_.chunk * TABLE;
  const int64_t staged_floats = in_place()     ? 0
                                : by_channel() ? pixels * staged_step(shape_)
                                               : TRIPLE * shape_.chunk * lanes;
  Scratch scratch(4 * (TILE_PIXELS * floats + staged_floats + sum_floats(pixels) + 2 * ld_ + lanes) +
                  pixels * static_cast<int64_t>(sizeof(Run) + sizeof(Span) + sizeof(int64_t)) + 1024);
  float* const tables = scratch.take<float>(TILE_PIXELS * floats);
  float* const staged = scratch.take<float>(staged_floats);
  float* const sums = scratch.take<float>(sum_floats(pixels));
  float* const finishes = scratch.take<float>(2 * ld_);
  Output output = output_of(finishes, finishes + ld_);
  float* const bounds = scratch.take<float>(lanes);
  Run* const runs = scratch.take<Run>(pixels);
  Span* const spans = scratch.take<Span>(pixels);
  int64_t* const offsets = scratch.take<int64_t>(pixels);
  const int64_t run_count = find_runs(job_.grid, column0_, pixels, runs);
  const int64_t span_count = find_spans(job_.grid, job_.wide, narrow_shift(job_.g, 0), runs, run_count, spans);
  find_offsets(spans, span_count, pixels, offsets);
  const int64_t zero = 0, tiles = divide_up(pixels, TILE_PIXELS);
  const int64_t step = by_channel() ? staged_step(shape_) : lanes;  // of what is staged

  for (int64_t chunk = 0; chunk < shape_.chunks(); ++chunk) {
    const int64_t groups = shape_.groups_of(chunk), channels = channels_of(chunk), from = first_channel(chunk);
    const Path path{&zero, 1, groups};
    const bool last = stores_tiles() && chunk + 1 == shape_.chunks();
    if (!in_place() && by_channel()) {
      pack_channels(job_.wide, job_.grid, spans, span_count, pixels, from, channels, staged, step);
    } else if (!in_place()) {
      pack_lanes(job_.wide, job_.grid, spans, span_count, pixels, from, channels, staged, lanes);
    }
    if (Tables::INTEGERS) sum_sizes(staged, step, offsets, pixels, chunk, bounds);
    const auto inputs_of = [&](int64_t p) -> Inputs {
      if (in_place()) return {static_cast<const float*>(job_.wide.data) + offsets[p] + from, 0, 1};
      return by_channel() ? Inputs{staged + p * step, step, 1} : Inputs{staged + p, 1, step};
    };
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = pixels * t / tiles, count = pixels * (t + 1) / tiles - first;
      const float* at[TILE_PIXELS];
      float units[TILE_PIXELS] = {};
      bool all = true;
      for (int64_t p = 0; p < count; ++p) {
        float* const own = tables + p * groups * TABLE;
        at[p] = own;
        const bool scaled = !Tables::INTEGERS || has_scale(bounds[first + p]);
        all = all && scaled;
        if (!scaled || (in_place() && offsets[first + p] == NOWHERE)) {
          clear(own, groups * TABLE);
          continue;
        }
        const Scale scale = Tables::INTEGERS ? scale_of(bounds[first + p]) : Scale{1.0f, 1.0f};
        units[p] = scale.unit;
        build(inputs_of(first + p), 1, chunk, Builder(scale.up), own);
      }
      Run own[TILE_PIXELS];
      if (last) find_results(own, find_runs(job_.grid, column0_ + first, count, own), output);
      add_products<Tables>(chunk, path, at, units, count, chunk > 0, sums + first * ld_, last ? &output : nullptr);
      if constexpr (Tables::INTEGERS) {
        for (int64_t p = 0; !all && p < count; ++p) {
          if (has_scale(bounds[first + p])) continue;
          const Inputs inputs = inputs_of(first + p);
          TableBuilder<FloatTables>().build(inputs.data, inputs.channel_step, channels, tables);
          at[0] = tables;
          output.to[0] = output.to[p];
          // Its integers, all zero, have begun the sums, unless they went to the result.
          add_products<FloatTables>(chunk, path, at, units, 1, chunk > 0 || !last, sums + (first + p) * ld_,
                                    last ? &output : nullptr);
        }
      }
    }
  }
  if (!stores_tiles()) store(sums, sums + round_up(pixels, VL) * ld_, runs, run_count, pixels);
}

// What the sums of all rows become, where results are floats that are neighbours in memory.
template <class Tables>
Output TileTask<Tables>::output_of(float* factors, float* biases) const {
  if (!stores_tiles()) return {};
  Output output{factors, biases, job_.result.epilogue.relu ? 0.0f : -INFINITY, rows_, job_.past_caches, {}};
  for (int64_t row = 0; row < rows_; row += VL) {
    const Finish finish = job_.result.finish_of(channel() + row, std::min<int64_t>(VL, rows_ - row));
    finish.factor.store(factors + row);
    finish.bias.store(biases + row);
  }
  return output;
}

// Asks for the lines of the results of a tile, which are written when its products are summed.
template <class Tables>
void TileTask<Tables>::find_results(const Run* runs, int64_t count, Output& output) const {
  const int64_t asked = output.past_caches ? 0 : rows_;
  float** next = output.to;
  for (int64_t i = 0; i < count; ++i) {
    float* to = static_cast<float*>(job_.result.place(runs[i], channel()));
    for (int64_t p = 0; p < runs[i].count; ++p, to += job_.result.pixel_step()) {
      *next++ = to;
      for (int64_t row = 0; row < asked; row += VL) asm volatile("prefetchw %0" : : "m"(to[row]));
    }
  }
}

template <class Tables>
void TileTask<Tables>::store(const float* sums, float* turned, const Run* runs, int64_t count, int64_t pixels) const {
  if (job_.result.side.stride[CHANNEL] == 1) {
    job_.result.store_channels(sums, ld_, channel(), rows_, runs, count);
    return;
  }
  const int64_t lanes = round_up(pixels, VL);
  for (int64_t row = 0; row < rows_; row += VL) {
    transpose(sums + row, ld_, pixels, VL, turned, lanes);
    job_.result.store_lanes(turned, lanes, channel() + row, std::min<int64_t>(VL, rows_ - row), runs, count);
  }
}

void Job::pack_block(const LookupPanel& panel, int64_t at, int64_t group, int64_t block, int64_t vector) const {
  const int64_t vectors = block_vectors(layer, block), row = block * BLOCK_ROWS + vector * VL;
  if (vector >= vectors) return;
  pack(f, panel, at, vector, vectors, group * layer.rows + row, std::min<int64_t>(VL, layer.rows - row));
}

void Job::run_tile(const LookupPanel& panel, int64_t group, int64_t first_block, int64_t panel_block, int64_t blocks,
                   int64_t tile) const {
  const auto run_task = [&](auto tables) {
    TileTask<decltype(tables)>(*this, panel, group, first_block, panel_block, blocks, tile).run();
  };
  if (integers && (!scales || scales->suits(group, batch_of(tile)))) {
    run_task(IntegerTables());
  } else {
    run_task(FloatTables());
  }
}

void Job::run(int threads) const {
  if (plan.tiles() == 1) {
    run_rows(threads);
  } else {
    run_panels(threads);
  }
}

// Each task has all pixels of its rows, and makes their indices where no other thread looks for them.
void Job::run_rows(int threads) const {
  const int64_t part = plan.split_blocks(), parts = divide_up(plan.blocks, part);
  parallel_for(threads, layer.groups * parts, [&](int64_t task) {
    const int64_t group = task / parts, first = task % parts * part, blocks = std::min(part, plan.blocks - first);
    LookupPanel panel{plan.shape, blocks, plan.vectors, nullptr};
    Scratch scratch(panel.bytes(), LASTING_SLOT);
    panel.indices = scratch.take<uint8_t>(panel.bytes());
    for (int64_t i = 0; i < blocks * plan.vectors; ++i) {
      const int64_t at = i / plan.vectors;
      pack_block(panel, at, group, first + at, i % plan.vectors);
    }
    run_tile(panel, group, first, 0, blocks, 0);
  });
}

// Panel by panel: all indices are made once, then used by every tile of pixels.
void Job::run_panels(int threads) const {
  const LookupPanel largest{plan.shape, plan.panel_groups * plan.panel_blocks, plan.vectors, nullptr};
  Scratch shared(largest.bytes(), LASTING_SLOT);
  uint8_t* const indices = shared.take<uint8_t>(largest.bytes());
  for (int64_t group0 = 0; group0 < layer.groups; group0 += plan.panel_groups) {
    const int64_t groups = std::min(plan.panel_groups, layer.groups - group0);
    for (int64_t block0 = 0; block0 < plan.blocks; block0 += plan.panel_blocks) {
      const int64_t blocks = std::min(plan.panel_blocks, plan.blocks - block0);
      const LookupPanel panel{plan.shape, groups * blocks, plan.vectors, indices};
      parallel_for(threads, groups * blocks * plan.vectors, [&](int64_t i) {
        const int64_t at = i / plan.vectors;
        pack_block(panel, at, group0 + at / blocks, block0 + at % blocks, i % plan.vectors);
      });
      const int64_t part = plan.split_blocks(), parts = divide_up(blocks, part);
      parallel_for(threads, groups * parts * plan.tiles(), [&](int64_t i) {
        const int64_t piece = i / plan.tiles(), first = piece % parts * part, group = piece / parts;
        run_tile(panel, group0 + group, block0 + first, group * blocks + first, std::min(part, blocks - first),
                 i % plan.tiles());
      });
    }
  }
}

}  // namespace

bool lookup_serves(const Call& c) {
  if (c.f.code != SIGN_CODE && c.f.code != CONSTANT_CODE) return false;
  const Layer& layer = c.layer;
  const Geometry& g = c.g;
  if (layer.rows < VL || !layer.channels || c.pixels < TILE_PIXELS) return false;
  const int64_t vectors = divide_up(layer.rows, VL);
  if (!taps_slide(g)) return vectors >= LEAST_REUSE;
  const int64_t lines = std::min<int64_t>(g.narrow[1], 8), columns = std::min<int64_t>(g.narrow[2], 16);
  const LookupWindow window(g, lines, columns);
  return 4 * window.floats(lookup_shape(g, layer.channels, false).chunk) <= STRIP_BYTES &&
         lines * columns * layer.taps * vectors >= LEAST_REUSE * window.pixels();
}

namespace {

// A result that a last-level cache would not keep for its reader need not be read before it is written.
bool goes_past_caches(const Call& c) {
  constexpr int64_t MOST_KEPT = 16 << 20;
  const Activations& to = c.narrow;
  if (c.pixels * c.f.rows * 4 < MOST_KEPT || to.dtype != FLOAT32 || to.stride[CHANNEL] != 1) return false;
  bool whole = reinterpret_cast<uintptr_t>(to.data) % 64 == 0 && c.layer.rows % VL == 0;
  for (int place = 0; place < 5; ++place) whole = whole && (place == CHANNEL || to.stride[place] % VL == 0);
  return whole;
}

void convolve(const Call& c, bool integers, PackIndices pack, bool past_caches) {
  const LookupPlan plan(c.g, c.layer, integers, c.threads);
  // A longer chain shows where the kernels that multiply would cut it too.
  const int64_t longest = longest_forward_chain(c), chain = longest < DEPTH ? longest : plan.shape.quads() * QUAD;
  std::optional<ImageScales> scales;
  if (integers && taps_slide(c.g)) scales.emplace(c, plan.shape);
  const ImageScales* const units = scales ? &*scales : nullptr;
  const Job job{c.f,
                c.g,
                c.layer,
                c.wide,
                narrow_result(c),
                narrow_grid(c.g),
                plan,
                chain,
                units,
                integers,
                past_caches && goes_past_caches(c),
                pack};
  job.run(c.threads);
}

}  // namespace

void convolve_lookup(const Call& c, PackIndices pack, bool past_caches) { convolve(c, false, pack, past_caches); }

// Few rows leave lanes empty; of few inputs, tables of floats are as fast; few pixels leave a tile of registers empty,
// and dot products of bytes are faster where their inputs are many. With one tap, lines of images are turned so often
// for their products that tables of pixels are faster.
bool integer_lookup_serves(const Call& c) {
  constexpr int64_t FEW_PIXELS = 8, MANY_INPUTS = 2048;
  if (!taps_slide(c.g)) {
    return (c.f.code == SIGN_CODE || c.f.code == CONSTANT_CODE) && c.layer.rows >= 4 * VL && c.layer.channels >= 32 &&
           c.pixels >= (c.layer.channels > MANY_INPUTS ? FEW_PIXELS : TILE_PIXELS) && c.wide.stride[CHANNEL] == 1 &&
           c.narrow.stride[CHANNEL] == 1;
  }
  return c.layer.rows > 2 * VL && c.layer.channels >= 8 && lookup_serves(c);
}

void convolve_integer_lookup(const Call& c, PackIndices pack, bool past_caches) {
  convolve(c, true, pack, past_caches);
}

}  // namespace fk::FK_ISA_NS

#endif
