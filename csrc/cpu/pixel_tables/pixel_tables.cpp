#include "cpu/pixel_tables/pixel_tables.h"

#if FK_USES_PIXEL_TABLES
#include "cpu/core/parallel.h"
#include "cpu/lookup/lookup.h"
#include "cpu/pixel_tables/micro.h"
#include "cpu/pixel_tables/offsets.h"
#include "cpu/pixel_tables/plan.h"
#include "cpu/pixel_tables/window.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t LEAST_ROWS = 16;  // of a group, for tables to be read often enough

// Passes whose sums are added up before they join those of the passes before: one chain over all of a long row had
// three times torch's largest error.
constexpr int64_t BLOCK_PASSES = 16;

// One layer's call. Every sum is a sum over blocks of passes, in order, of sums over passes of one chain each.
struct Job {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;
  const Activations& wide;
  const Result result;
  const TablePlan plan;
  const OffsetLayout offsets;

  void run(int threads) const;
};

// turned[l] lane i = from[i] lane l for `count` <= VL vectors; the rest of each lane's vector is zero.
FK_INLINE void turn(const float* from, int64_t ld, int64_t count, vf32 (&turned)[VL]) {
#pragma GCC unroll 16
  for (int i = 0; i < VL; ++i) turned[i] = i < count ? vf32::load(from + i * ld) : vf32::zero();
  transpose_vectors(turned);
}

// Some rows of a panel and the sums of a task of pixels.
class TableTask {
 public:
  TableTask(const Job& job, const OffsetPanel& panel, int64_t row0, int64_t rows)
      : job_(job), panel_(panel), row0_(row0), rows_(rows) {}

  // Inputs come from `wide_channel` of the source on, results go to `channel` on.
  void run(int64_t task, int64_t wide_channel, int64_t channel) const;

 private:
  struct Buffers {
    int64_t* held;                  // the column of each place of the ring
    float *tables, *sums, *totals;  // totals: of blocks of passes, or null

    float* results() const { return totals ? totals : sums; }
  };

  // Out of line, for two kinds of windows call it.
  __attribute__((noinline)) void add_passes(const Window& window, int64_t wide_channel, int64_t channel,
                                            const Buffers& buffers) const;
  template <class Done>
  void add_pass(const Pass& pass, const Window& window, int64_t packed_triple, bool first, const Buffers& buffers,
                const Done& done) const;
  void join_block(int64_t column, bool first, const Buffers& buffers) const;
  void build_column(const Pass& pass, const Window& window, int64_t packed_triple, int64_t column, float* tables) const;
  // The sums of a column, to neighbouring channels: `places` [vector][lane] are where its pixels go, in elements.
  void store_channels(const float* sums, const int64_t* places, int64_t channel) const;
  void store_lanes(const PointWindow& pixels, int64_t channel, const Buffers& buffers) const;
  void store_lanes(const TileWindow& pixels, int64_t channel, const Buffers& buffers) const;

  bool by_channel() const { return job_.result.side.stride[CHANNEL] == 1; }
  // Sums lie [column][row][vector][lane].
  int64_t row_floats() const { return job_.plan.vectors * VL; }
  int64_t column_floats() const { return round_up(rows_, rows_at_once(job_.plan.vectors)) * row_floats(); }

  const Job& job_;
  const OffsetPanel& panel_;
  const int64_t row0_, rows_;
};

void TableTask::run(int64_t task, int64_t wide_channel, int64_t channel) const {
  const TablePlan& plan = job_.plan;
  const TableShape& shape = plan.shape;
  const int64_t ring = (shape.columns - 1) * job_.g.dilation[2] + 1;
  const int64_t table_floats = ring * shape.chunk * places_of(shape.lines, shape.step, plan.vectors) * TABLE_FLOATS;
  const int64_t packed_floats = Window::packed_floats(job_.g, plan);
  const int64_t sum_floats = plan.width * column_floats() + VL;  // a vector is read from any lane on
  const bool blocks = shape.passes.size() > BLOCK_PASSES;
  Scratch scratch(8 * ring + 1024 + 4 * (table_floats + packed_floats + (blocks ? 2 : 1) * sum_floats));
  const Buffers buffers{scratch.take<int64_t>(ring), scratch.take<float>(table_floats), scratch.take<float>(sum_floats),
                        blocks ? scratch.take<float>(sum_floats) : nullptr};
  float* const packed = scratch.take<float>(packed_floats);
  const auto run = [&](const auto& window) {
    add_passes(window, wide_channel, channel, buffers);
    if (!by_channel()) store_lanes(window, channel, buffers);
  };
  if (has_one_tap(job_.g)) {
    run(PointWindow(job_.g, job_.wide, plan, task, packed));
  } else {
    run(TileWindow(job_.g, job_.wide, plan, task, packed));
  }
}

// Channels of a pass are packed together, and those of many passes where channels are neighbours, to be read as
// vectors. A column is joined and stored while its sums are in the first-level cache.
void TableTask::add_passes(const Window& window, int64_t wide_channel, int64_t channel, const Buffers& buffers) const {
  const TableShape& shape = job_.plan.shape;
  const int64_t passes = job_.wide.stride[CHANNEL] == 1 ? shape.packed_channels() / (TRIPLE_CHANNELS * shape.chunk) : 1;
  const int64_t block = passes * shape.chunk, count = static_cast<int64_t>(shape.passes.size());
  const std::vector<int64_t> places = by_channel() ? window.places(job_.result) : std::vector<int64_t>();
  int64_t packed_from = -block;
  for (int64_t number = 0; number < count; ++number) {
    const Pass& pass = shape.passes[static_cast<size_t>(number)];
    if (pass.first_triple >= packed_from + block) {
      packed_from = pass.first_triple;
      const int64_t first = TRIPLE_CHANNELS * packed_from;
      const int64_t padded = TRIPLE_CHANNELS * std::min(block, shape.triples - packed_from);
      window.pack(wide_channel + first, std::min(padded, shape.channels - first), padded);
    }
    const bool last = number == count - 1, joins = buffers.totals && (last || (number + 1) % BLOCK_PASSES == 0);
    const bool stores = last && by_channel();
    add_pass(pass, window, pass.first_triple - packed_from, number % BLOCK_PASSES == 0, buffers, [&](int64_t column) {
      if (joins) join_block(column, number < BLOCK_PASSES, buffers);
      if (stores) {
        store_channels(buffers.results() + column * column_floats(), places.data() + column * row_floats(), channel);
      }
    });
  }
}

void TableTask::join_block(int64_t column, bool first, const Buffers& buffers) const {
  const float* const sums = buffers.sums + column * column_floats();
  float* const totals = buffers.totals + column * column_floats();
  for (int64_t i = 0; i < column_floats(); i += VL) {
    const vf32 sum = vf32::load(sums + i);
    (first ? sum : vf32::load(totals + i) + sum).store(totals + i);
  }
}

// Columns of tables lie in a ring just large enough for the taps of one pixel: they stay in the first-level cache.
template <class Done>
void TableTask::add_pass(const Pass& pass, const Window& window, int64_t packed_triple, bool first,
                         const Buffers& buffers, const Done& done) const {
  alignas(64) static constexpr float zeros[MOST_VECTORS * VL] = {};
  const Geometry& g = job_.g;
  const int64_t stride = has_one_tap(g) ? 1 : g.stride[2], dilation = g.dilation[2];
  const int64_t ring = (pass.columns - 1) * dilation + 1, vectors = job_.plan.vectors;
  const int64_t table_floats = pass.triples * pass.places(vectors) * TABLE_FLOATS;
  const AddEntries add = find_add_entries(pass, vectors);
  std::fill_n(buffers.held, ring, -1);
  for (int64_t x = 0; x < job_.plan.width; ++x) {
    const char* bases[MOST_BASES];
    for (int64_t k = 0; k < pass.columns; ++k) {
      const int64_t column = x * stride + k * dilation, place = column % ring;
      float* const tables = buffers.tables + place * table_floats;
      if (buffers.held[place] != column) {
        build_column(pass, window, packed_triple, pass.column * dilation + column, tables);
        buffers.held[place] = column;
      }
      bases[k] = reinterpret_cast<const char*>(tables);
    }
    float* const sums = buffers.sums + x * column_floats();
    add(panel_.at(pass, row0_), bases, {rows_, first ? zeros : sums, first ? 0 : row_floats(), sums});
    done(x);
  }
}

void TableTask::build_column(const Pass& pass, const Window& window, int64_t packed_triple, int64_t column,
                             float* tables) const {
  const Geometry& g = job_.g;
  const int64_t step = window.channel_step(), places = pass.places(job_.plan.vectors);
  // Places of a pass of one line stand for lines a stride apart.
  const int64_t first = pass.line * g.dilation[1], apart = pass.lines > 1 || has_one_tap(g) ? 1 : g.stride[1];
  for (int64_t t = 0; t < pass.triples; ++t) {
    const float* x = window.at(TRIPLE_CHANNELS * (packed_triple + t), pass.plane, first, column);
    for (int64_t p = 0; p < places; ++p, x += apart * window.line_step(), tables += TABLE_FLOATS) {
      build_table(vf32::load(x), vf32::load(x + step), vf32::load(x + 2 * step), tables);
    }
  }
}

void TableTask::store_channels(const float* sums, const int64_t* places, int64_t channel) const {
  with_dtype(job_.result.side.dtype, [&](auto dtype) {
    auto* to = static_cast<typename Element<dtype>::Type*>(job_.result.side.data) + channel;
    for (int64_t row = 0; row < rows_; row += VL, to += VL, sums += VL * row_floats()) {
      const int64_t count = std::min<int64_t>(VL, rows_ - row);
      const Finish finish = job_.result.finish_of(channel + row, count);
      for (int64_t p = 0; p < job_.plan.vectors; ++p) {
        vf32 turned[VL];
        turn(sums + p * VL, row_floats(), count, turned);
#pragma GCC unroll 16
        for (int l = 0; l < VL; ++l) {
          const int64_t place = places[p * VL + l];
          if (place != NOWHERE) store_some<dtype>(to + place, finish(turned[l]), count);
        }
      }
    }
  });
}

void TableTask::store_lanes(const PointWindow& pixels, int64_t channel, const Buffers& buffers) const {
  std::vector<Run> runs;
  for (int64_t p = 0; p < job_.plan.vectors; ++p) {
    runs.clear();
    // Sums of neighbouring places do not lie side by side.
    for (Run run : pixels.runs(p)) {
      while (run.count) {
        const int64_t place = run.lane / VL, lane = run.lane % VL, count = std::min(VL - lane, run.count);
        runs.push_back({place * column_floats() + lane, count, run.batch, run.q});
        run.lane += count, run.count -= count, run.q.x[2] += count;
      }
    }
    job_.result.store_lanes(buffers.results() + p * VL, row_floats(), channel, rows_, runs.data(),
                            static_cast<int64_t>(runs.size()));
  }
}

// VL pixels of each tile's line at a time: a lane's are neighbours in the result.
void TableTask::store_lanes(const TileWindow& pixels, int64_t channel, const Buffers& buffers) const {
  const int64_t width = job_.plan.width, step = job_.result.pixel_step(), next = job_.result.side.stride[CHANNEL];
  for (int64_t p = 0; p < job_.plan.vectors; ++p) {
    int64_t places[VL], counts[VL];
    for (int64_t l = 0; l < VL; ++l) {
      const Run run = pixels.run(p, l);
      places[l] = job_.result.offset(run), counts[l] = run.count;
    }
    with_dtype(job_.result.side.dtype, [&](auto dtype) {
      auto* to = static_cast<typename Element<dtype>::Type*>(job_.result.side.data) + channel * next;
      for (int64_t row = 0; row < rows_; ++row, to += next) {
        const Finish finish = job_.result.finish_of_all(channel + row);
        const float* from = buffers.results() + row * row_floats() + p * VL;
        for (int64_t x = 0; x < width; x += VL, from += VL * column_floats()) {
          vf32 turned[VL];
          turn(from, column_floats(), width - x, turned);
          if (step == 1) {
#pragma GCC unroll 16
            for (int l = 0; l < VL; ++l) {
              if (x < counts[l]) store_some<dtype>(to + places[l] + x, finish(turned[l]), counts[l] - x);
            }
            continue;
          }
          for (int l = 0; l < VL; ++l) {
            alignas(64) float lane[VL];
            turned[l].store(lane);
            const int64_t count = std::clamp<int64_t>(counts[l] - x, 0, VL);
            write<dtype>(lane, count, to + places[l] + x * step, step, finish);
          }
        }
      }
    });
  }
}

// Panel by panel: all offsets are made once, then used by every task of pixels.
void Job::run(int threads) const {
  const TableShape& shape = plan.shape;
  const int64_t held = plan.panel_groups * OffsetPanel::words_of(shape, plan.panel_rows);
  Scratch shared(4 * held + 64, LASTING_SLOT);
  uint32_t* const words = shared.take<uint32_t>(held);
  for (int64_t group0 = 0; group0 < layer.groups; group0 += plan.panel_groups) {
    const int64_t groups = std::min(plan.panel_groups, layer.groups - group0);
    for (int64_t row0 = 0; row0 < layer.rows; row0 += plan.panel_rows) {
      const int64_t rows = std::min(plan.panel_rows, layer.rows - row0), vectors = divide_up(rows, VL);
      const auto panel_of = [&](int64_t group) {
        return OffsetPanel{round_up(rows, VL), words + group * OffsetPanel::words_of(shape, rows)};
      };
      parallel_for(threads, groups * vectors, [&](int64_t i) {
        const int64_t group = i / vectors, first = i % vectors * VL;
        Scratch scratch(OffsetPacker::scratch_bytes(f, g, shape));
        OffsetPacker packer(f, g, shape, offsets, scratch);
        packer.read_rows((group0 + group) * layer.rows + row0 + first, std::min<int64_t>(VL, rows - first));
        const OffsetPanel panel = panel_of(group);
        for (const Pass& pass : shape.passes) packer.pack(pass, panel.at(pass, first));
      });
      const int64_t parts = divide_up(rows, plan.task_rows);
      parallel_for(threads, groups * parts * plan.pixel_tasks, [&](int64_t i) {
        const int64_t part = i / plan.pixel_tasks % parts, group = i / plan.pixel_tasks / parts;
        const int64_t first = part * plan.task_rows, count = std::min(plan.task_rows, rows - first);
        const OffsetPanel panel = panel_of(group);
        TableTask(*this, panel, first, count)
            .run(i % plan.pixel_tasks, (group0 + group) * layer.channels, (group0 + group) * layer.rows + row0 + first);
      });
    }
  }
}

// Where `lookup` serves too it is faster with few pixels or empty lanes, for its lanes are rows, and where strided taps
// share few tables.
bool suits_lookup([[maybe_unused]] const Call& c, [[maybe_unused]] const TableShape& shape) {
#if FK_USES_LOOKUP
  const bool many = c.pixels >= 128, full = c.pixels >= 32 && 8 * c.pixels >= 7 * round_up(c.pixels, VL);
  if (has_one_tap(c.g)) return !many && !full && lookup_serves(c);
  return (!many || (c.g.stride[1] * c.g.stride[2] > 1 && shape.lines == 1)) && lookup_serves(c);
#else
  return false;
#endif
}

}  // namespace

// Steps of a vector of pixels on tables, building them included, against those of FMA panels.
bool pixel_tables_serve(const Call& c) {
  if (c.f.code != SIGN_CODE && c.f.code != CONSTANT_CODE) return false;
  const Layer& layer = c.layer;
  const Geometry& g = c.g;
  if (layer.rows < LEAST_ROWS || !layer.channels || c.pixels < VL) return false;
  const TableShape shape(g, layer);
  if (suits_lookup(c, shape) || !TablePlan::possible(g, shape)) return false;
  const bool one_tap = has_one_tap(g);
  const int64_t lines = one_tap ? 1 : std::min(shape.lines, g.stride[1]) + (shape.lines - 1) / 2;
  const int64_t columns = one_tap ? 1 : std::min(shape.columns, g.stride[2]);
  double tables = 0, entries = 0;
  for (const Pass& pass : shape.passes) {
    tables += static_cast<double>(pass.triples * lines * columns);
    entries += static_cast<double>(pass.columns * pass.offsets()) + 2;
  }
  const double by_tables = 0.8 * entries + 50 * tables / static_cast<double>(layer.rows);
  return by_tables < 0.55 * static_cast<double>(layer.taps * layer.channels);
}

void convolve_pixel_tables(const Call& c) {
  const TablePlan plan(c.g, c.layer, c.pixels, c.threads);
  Job{c.f, c.g, c.layer, c.wide, narrow_result(c), plan, OffsetLayout(c.g, plan.shape)}.run(c.threads);
}

}  // namespace fk::FK_ISA_NS
#endif
