#include "cpu/one_tap/one_tap.h"

#if FK_USES_ONE_TAP
#include <vector>

#include "cpu/conv/codes.h"
#include "cpu/core/parallel.h"
#include "cpu/fma/fma.h"
#include "cpu/one_tap/micro.h"
#include "cpu/pixel_tables/pixel_tables.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t PANEL_BYTES = 512 << 10;      // weights decoded at once, read again for each tile of pixels
constexpr int64_t MOST_WEIGHT_BYTES = 4 << 20;  // dense
constexpr int64_t TASK_TILES = 64;  // at most: enough to hide the start of a task, few enough to share evenly
constexpr int64_t LEAST_PIXELS = 128, LEAST_ROWS = VL / 2;

// Rows of one group whose weights are decoded together: [column][vectors * VL].
struct Strip {
  int64_t row, rows, vectors;
  int64_t channel;  // the first that the group reads
  bool first;       // of its group
  int64_t whole;    // strips of all their rows from here on in the group
};

std::vector<Strip> strips_of(const Layer& layer, int64_t strip_rows) {
  std::vector<Strip> strips;
  for (int64_t group = 0; group < layer.groups; ++group) {
    for (int64_t row = 0; row < layer.rows; row += strip_rows) {
      const int64_t rows = std::min(strip_rows, layer.rows - row);
      strips.push_back({group * layer.rows + row, rows, divide_up(rows, VL), group * layer.channels, row == 0,
                        (layer.rows - row) / strip_rows});
    }
  }
  return strips;
}

// Pixels of a task that lie evenly in the source and the result; where the first does, in elements.
struct Line {
  int64_t lane, count, inputs, out;
};

// Pixels that a register tile takes: of one line where that has enough, else of several.
struct PointTile {
  int64_t lane, count;
  size_t line;  // that it begins in
  bool single;
  const char* inputs;  // of its first pixel
  char* out;
};

struct Panel {
  const Strip* strips;
  int64_t count;
  const float *weights, *factors, *biases;
};

int64_t bytes_of(const Activations& side) { return side.dtype == FLOAT32 ? 4 : 2; }

struct Job {
  const Call& call;
  const Grid grid;
  const Result result;
  const int64_t chains;                    // of a sum
  const int64_t wide_bytes, narrow_bytes;  // of an element
  const int64_t strip_rows, tile_pixels;   // at most

  int64_t strip_floats() const { return call.layer.channels * strip_rows; }
  void decode(const Strip& strip, float* weights, float* factors, float* biases) const;
};

void Job::decode(const Strip& strip, float* weights, float* factors, float* biases) const {
  const Frozen& f = call.f;
  const int64_t width = strip.vectors * VL;
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + WINDOW_COLS * LD) + 1024);
  Codes codes(f, scratch);
  float* const panel = scratch.take<float>(WINDOW_COLS * LD);
  codes.start(strip.row, strip.rows);
  for (int64_t word = 0; word < f.words; word += WINDOW_WORDS) {
    codes.decode(word, std::min(WINDOW_WORDS, f.words - word), panel);
    const int64_t columns = std::min(WINDOW_COLS, f.cols - 32 * word);
    for (int64_t k = 0; k < columns; ++k, weights += width) {
      for (int64_t r = 0; r < width; r += VL) vf32::load(panel + k * LD + r).store(weights + r);
    }
  }
  for (int64_t r = 0; r < strip.rows; r += VL) {
    const Finish finish = result.finish_of(strip.row + r, std::min<int64_t>(VL, strip.rows - r));
    finish.factor.store(factors + r);
    finish.bias.store(biases + r);
  }
}

// A block of pixels and some strips of a panel.
class PointTask {
 public:
  PointTask(const Job& job, int64_t pixel0, int64_t pixels);
  void run(const Panel& panel, int64_t first, int64_t count) const;

 private:
  struct Source {
    const float* at;
    int64_t step;
  };
  struct Buffers {
    float *joined, *staged;
  };

  int64_t run_tile(const PointTile& tile, const Panel& panel, int64_t s, int64_t end_strip, const Source& source,
                   const Ahead& ahead, const Buffers& buffers) const;
  Source source_of(const PointTile& tile, int64_t channel, float* packed) const;
  void store_staged(const PointTile& tile, const Strip& strip, const float* staged) const;
  void find_lines(int64_t pixel0, int64_t pixels);
  template <class Fn>
  void each_pixel(const PointTile& tile, const Fn& fn) const;

  int64_t packed_ld() const { return round_up(job_.call.layer.channels, VL) + VL; }
  int64_t source_step() const { return job_.grid.step[2] * job_.call.wide.stride[SPATIAL + 2]; }

  const Job& job_;
  std::vector<Line> lines_;
  std::vector<PointTile> tiles_;
};

PointTask::PointTask(const Job& job, int64_t pixel0, int64_t pixels) : job_(job) {
  find_lines(pixel0, pixels);
  const int64_t most = job.tile_pixels, out_step = job.call.narrow.stride[SPATIAL + 2];
  size_t i = 0;
  for (int64_t lane = 0; lane < pixels;) {
    while (lines_[i].lane + lines_[i].count <= lane) ++i;
    const Line& line = lines_[i];
    const int64_t left = line.lane + line.count - lane, all = std::min(most, pixels - lane);
    const int64_t even = left >= 2 * most ? most : divide_up(left, divide_up(left, most));
    const bool single = left >= all || 4 * even >= 3 * most;
    const int64_t inputs = line.inputs + (lane - line.lane) * source_step();
    const int64_t out = line.out + (lane - line.lane) * out_step;
    tiles_.push_back({lane, single ? even : all, i, single,
                      static_cast<const char*>(job.call.wide.data) + inputs * job.wide_bytes,
                      static_cast<char*>(job.call.narrow.data) + out * job.narrow_bytes});
    lane += tiles_.back().count;
  }
}

void PointTask::find_lines(int64_t pixel0, int64_t pixels) {
  const size_t most = static_cast<size_t>(divide_up(pixels, job_.grid.size[2]) + 1);
  std::vector<Run> runs(most);
  std::vector<Span> spans(most);
  const int64_t count = find_runs(job_.grid, pixel0, pixels, runs.data());
  find_spans(job_.grid, job_.call.wide, Position{}, runs.data(), count, spans.data());
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    lines_.push_back({runs[i].lane, runs[i].count, spans[i].offset, job_.result.offset(runs[i])});
  }
}

// Calls fn(pixel, offset of its inputs, offset of its results) for the pixels of a tile.
template <class Fn>
FK_INLINE void PointTask::each_pixel(const PointTile& tile, const Fn& fn) const {
  const int64_t out_step = job_.call.narrow.stride[SPATIAL + 2];
  for (int64_t lane = tile.lane, end = tile.lane + tile.count, i = static_cast<int64_t>(tile.line); lane < end; ++i) {
    const Line& line = lines_[static_cast<size_t>(i)];
    for (const int64_t stop = std::min(end, line.lane + line.count); lane < stop; ++lane) {
      fn(lane - tile.lane, line.inputs + (lane - line.lane) * source_step(), line.out + (lane - line.lane) * out_step);
    }
  }
}

PointTask::Source PointTask::source_of(const PointTile& tile, int64_t channel, float* packed) const {
  const Activations& wide = job_.call.wide;
  if (tile.single && wide.dtype == FLOAT32) {
    return {reinterpret_cast<const float*>(tile.inputs) + channel, source_step()};
  }
  const int64_t channels = job_.call.layer.channels;
  with_dtype(wide.dtype, [&](auto dtype) {
    const auto* const base = static_cast<const typename Element<dtype>::Type*>(wide.data) + channel;
    each_pixel(tile, [&](int64_t pixel, int64_t offset, int64_t) {
      read<dtype>(base + offset, 1, channels, packed + pixel * packed_ld());
    });
  });
  return {packed, packed_ld()};
}

// Finished results [pixel][width] of a strip.
void PointTask::store_staged(const PointTile& tile, const Strip& strip, const float* staged) const {
  const Activations& narrow = job_.call.narrow;
  const int64_t width = strip.vectors * VL, lanes = strip.rows - width + VL;
  with_dtype(narrow.dtype, [&](auto dtype) {
    auto* const base = static_cast<typename Element<dtype>::Type*>(narrow.data) + strip.row;
    each_pixel(tile, [&](int64_t pixel, int64_t, int64_t offset) {
      const float* const from = staged + pixel * width;
      int64_t r = 0;
      for (; r + VL < width; r += VL) store_vector<dtype>(base + offset + r, vf32::load(from + r));
      store_some<dtype>(base + offset + r, vf32::load(from + r), lanes);
    });
  });
}

void PointTask::run(const Panel& panel, int64_t first, int64_t count) const {
  const int64_t out_step = job_.call.narrow.stride[SPATIAL + 2] * job_.narrow_bytes;
  Scratch scratch(4 * TILE_PIXELS * (packed_ld() + 2 * job_.strip_rows) + 1024);
  float* const packed = scratch.take<float>(TILE_PIXELS * packed_ld());
  const Buffers buffers{scratch.take<float>(TILE_PIXELS * job_.strip_rows),
                        scratch.take<float>(TILE_PIXELS * job_.strip_rows)};
  for (size_t i = 0; i < tiles_.size(); ++i) {
    const PointTile &tile = tiles_[i], &next = tiles_[std::min(i + 1, tiles_.size() - 1)];
    Source source{};
    for (int64_t s = first; s < first + count;) {
      const Strip& strip = panel.strips[s];
      const bool begins = s == first || strip.first;
      if (begins) source = source_of(tile, strip.channel, packed);
      const char* const inputs = (begins ? next : tile).inputs + strip.channel * job_.wide_bytes;
      const Ahead ahead{inputs, source_step() * job_.wide_bytes, VL * job_.wide_bytes,
                        next.out + strip.row * job_.narrow_bytes, out_step};
      s += run_tile(tile, panel, s, first + count, source, ahead, buffers);
    }
  }
}

// Returns how many strips it did: with one chain all that follow each other.
int64_t PointTask::run_tile(const PointTile& tile, const Panel& panel, int64_t s, int64_t end_strip,
                            const Source& source, const Ahead& ahead, const Buffers& buffers) const {
  const Strip& strip = panel.strips[s];
  const int64_t columns = job_.call.layer.channels, width = strip.vectors * VL;
  const float* const weights = panel.weights + s * job_.strip_floats();
  const MultiplyStrips multiply = find_strips(tile.count, strip.vectors);
  const bool stores = tile.single && job_.call.narrow.dtype == FLOAT32;
  ChainEnd end{buffers.joined,
               true,
               nullptr,
               stores ? job_.call.narrow.stride[SPATIAL + 2] : width,
               panel.factors + s * job_.strip_rows,
               panel.biases + s * job_.strip_rows,
               job_.call.epilogue.relu,
               stores ? strip.rows - width + VL : VL};
  const int64_t together = stores && job_.chains == 1 ? std::clamp<int64_t>(strip.whole, 1, end_strip - s) : 1;
  for (int64_t c = 1, from = 0; c <= job_.chains; ++c) {
    const int64_t to = c == job_.chains ? columns : columns * c / job_.chains;
    if (c == job_.chains) end.out = stores ? reinterpret_cast<float*>(tile.out) + strip.row : buffers.staged;
    const Ahead part{ahead.inputs + from / VL * ahead.block, ahead.step, ahead.block, ahead.out, ahead.out_step};
    multiply({source.at + from, source.step, to - from, weights + from * width}, part, end, together);
    end.first = false;
    from = to;
  }
  if (!stores) store_staged(tile, strip, buffers.staged);
  return together;
}

// Sign and constant codes: rows enough to share a table, and inputs enough to pay for sums stored in between, by what
// tables of an input and sums of a row cost in multiply-adds. Measured for 64 to 192 rows and 64 to 1,024 inputs.
bool suits_tables(const Call& c) {
  const Layer& layer = c.layer;
  constexpr int64_t build = FK_HAS_AVX512 ? 96 : 64, store = FK_HAS_AVX512 ? 64 : 40;
  return build * layer.channels + store * layer.rows < layer.rows * layer.channels && pixel_tables_serve(c);
}

}  // namespace

bool one_tap_serves(const Call& c) {
  const Layer& layer = c.layer;
  if (layer.taps != 1 || c.g.padding[0] || c.g.padding[1] || c.g.padding[2]) return false;
  if (c.wide.stride[CHANNEL] != 1 || c.narrow.stride[CHANNEL] != 1) return false;
  if ((c.f.code == SIGN_CODE || c.f.code == CONSTANT_CODE) && suits_tables(c)) return false;
  for (int d = 0; d < 3; ++d) {
    if ((c.g.narrow[d] - 1) * c.g.stride[d] >= c.g.wide[d]) return false;
  }
  return layer.channels && layer.rows >= LEAST_ROWS && c.pixels >= LEAST_PIXELS &&
         4 * c.f.rows * c.f.cols <= MOST_WEIGHT_BYTES;
}

// Panel by panel: weights are decoded once, then read by every task.
void convolve_one_tap(const Call& c) {
  const bool triple = TRIPLE_PIXELS && divide_up(c.layer.rows, VL) == 3;
  const int64_t strip_rows = (triple ? 3 : 2) * VL, tile_pixels = triple ? TRIPLE_PIXELS : TILE_PIXELS;
  const std::vector<Strip> strips = strips_of(c.layer, strip_rows);
  const int64_t count = static_cast<int64_t>(strips.size());
  const int64_t chains = divide_up(c.layer.channels, longest_forward_chain(c));
  const Job job{c,          narrow_grid(c.g), narrow_result(c), chains, bytes_of(c.wide), bytes_of(c.narrow),
                strip_rows, tile_pixels};
  const int64_t floats = job.strip_floats();
  const int64_t held = std::clamp<int64_t>(PANEL_BYTES / (4 * floats), 1, count);
  Scratch shared(4 * held * (floats + 2 * strip_rows) + 256, LASTING_SLOT);
  float* const weights = shared.take<float>(held * floats);
  float* const factors = shared.take<float>(held * strip_rows);
  float* const biases = shared.take<float>(held * strip_rows);
  const int64_t tiles = divide_up(c.pixels, tile_pixels);
  const int64_t task_pixels = tile_pixels * std::clamp<int64_t>(tiles / (8 * c.threads), 1, TASK_TILES);
  const int64_t blocks = divide_up(c.pixels, task_pixels);
  for (int64_t first = 0; first < count; first += held) {
    const Panel panel{strips.data() + first, std::min(held, count - first), weights, factors, biases};
    parallel_for(c.threads, panel.count, [&](int64_t i) {
      job.decode(panel.strips[i], weights + i * floats, factors + i * strip_rows, biases + i * strip_rows);
    });
    const int64_t parts = std::min(panel.count, divide_up(4 * c.threads, blocks));
    parallel_for(c.threads, parts * blocks, [&](int64_t i) {
      const int64_t part = i / blocks, pixel0 = i % blocks * task_pixels;
      const int64_t from = panel.count * part / parts, to = panel.count * (part + 1) / parts;
      PointTask(job, pixel0, std::min(task_pixels, c.pixels - pixel0)).run(panel, from, to - from);
    });
  }
}

}  // namespace fk::FK_ISA_NS
#endif
