// The inputs under the pixels of a task, packed: a vector of lanes for each channel and place.
#pragma once
#include "cpu/pixel_tables/plan.h"

namespace fk::FK_ISA_NS {

// Packed inputs [channel][plane][line][column][lane], zero where there is no source. With one tap lines are the vectors
// of a place, columns the places.
class Window {
 public:
  Window(const Geometry& g, const Activations& source, const TablePlan& plan, float* packed)
      : planes(g.taps[0]),
        lines(plan.window_lines(g)),
        columns(plan.window_columns(g)),
        source_(source),
        packed_(packed) {}
  virtual ~Window() = default;

  // Inputs of `channels` channels from `channel` on, then zeros up to `padded`.
  virtual void pack(int64_t channel, int64_t channels, int64_t padded) const = 0;
  // Where each pixel's result goes, in elements, or NOWHERE: [column][vector][lane].
  virtual std::vector<int64_t> places(const Result& result) const = 0;

  static int64_t packed_floats(const Geometry& g, const TablePlan& plan) {
    const int64_t channels = std::min(plan.shape.packed_channels(), TRIPLE_CHANNELS * plan.shape.triples);
    return channels * g.taps[0] * plan.window_lines(g) * plan.window_columns(g) * VL;
  }

  int64_t line_step() const { return columns * VL; }
  int64_t channel_step() const { return planes * lines * columns * VL; }
  const float* at(int64_t channel, int64_t plane, int64_t line, int64_t column) const {
    return packed_ + (((channel * planes + plane) * lines + line) * columns + column) * VL;
  }

  const int64_t planes, lines, columns;

 protected:
  bool by_channel(int64_t channels) const { return source_.stride[CHANNEL] == 1 && channels > 1; }
  float* line_of(int64_t i) const { return packed_ + i * line_step(); }
  void clear_from(int64_t channel, int64_t count) const {
    clear(packed_ + channel * channel_step(), count * channel_step());
  }

  // Neighbouring channels of VL lanes, whose element offsets are given.
  template <int DTYPE>
  void pack_channels(const int64_t* offsets, int64_t channel, int64_t channels, float* out) const {
    const auto* const base = static_cast<const typename Element<DTYPE>::Type*>(source_.data) + channel;
    int64_t c = 0;
    if constexpr (DTYPE == FLOAT32) {
      alignas(64) static constexpr float nothing[VL] = {};
      for (; c + VL <= channels; c += VL, out += VL * channel_step()) {
        const char* lanes[VL];
        for (int l = 0; l < VL; ++l) {
          lanes[l] = reinterpret_cast<const char*>(offsets[l] == NOWHERE ? nothing : base + offsets[l] + c);
        }
        transpose_rows([&](int l) { return lanes[l]; }, out, 4 * channel_step());
      }
    }
    for (; c < channels; c += VL, out += VL * channel_step()) {
      const int64_t count = std::min<int64_t>(VL, channels - c);
      alignas(64) float lanes[VL * VL] = {}, whole[VL * VL];
      for (int64_t l = 0; l < VL; ++l) {
        if (offsets[l] != NOWHERE) read<DTYPE>(base + offsets[l] + c, 1, count, lanes + l * VL);
      }
      transpose_tile(lanes, 4 * VL, whole, 4 * VL);
      for (int64_t i = 0; i < count; ++i) vf32::load(whole + i * VL).store(out + i * channel_step());
    }
  }

  const Activations& source_;
  float* packed_;
};

// One tap: the pixels of a task follow each other, first along the lanes of a place, then places, then lines.
class PointWindow : public Window {
 public:
  PointWindow(const Geometry& g, const Activations& source, const TablePlan& plan, int64_t task, float* packed)
      : Window(g, source, plan, packed),
        grid_(narrow_grid(g)),
        runs_(static_cast<size_t>(lines)),
        spans_(static_cast<size_t>(lines)),
        offsets_(source.stride[CHANNEL] == 1 ? static_cast<size_t>(lines * line_step()) : 0, NOWHERE) {
    const int64_t step = grid_.step[2] * source.stride[SPATIAL + 2];
    for (int64_t line = 0; line < lines; ++line) {
      const int64_t first = (task * lines + line) * line_step();
      const int64_t count = std::clamp<int64_t>(grid_.pixels() - first, 0, line_step());
      std::vector<Run>& runs = runs_[static_cast<size_t>(line)];
      std::vector<Span>& spans = spans_[static_cast<size_t>(line)];
      runs.resize(static_cast<size_t>(count));
      spans.resize(static_cast<size_t>(count));
      runs.resize(static_cast<size_t>(find_runs(grid_, first, count, runs.data())));
      spans.resize(static_cast<size_t>(
          find_spans(grid_, source, narrow_shift(g, 0), runs.data(), static_cast<int64_t>(runs.size()), spans.data())));
      if (offsets_.empty()) continue;
      for (const Span& span : spans) {
        int64_t* const to = offsets_.data() + line * line_step() + span.lane;
        for (int64_t i = 0; i < span.count; ++i) to[i] = span.offset + i * step;
      }
    }
  }

  // Pixels of the result that follow each other; lanes count through a line.
  const std::vector<Run>& runs(int64_t line) const { return runs_[static_cast<size_t>(line)]; }

  std::vector<int64_t> places(const Result& result) const override {
    std::vector<int64_t> found(static_cast<size_t>(lines * line_step()), NOWHERE);
    for (int64_t line = 0; line < lines; ++line) {
      for (const Run& run : runs(line)) {
        const int64_t first = result.offset(run);
        for (int64_t i = 0; i < run.count; ++i) {
          const int64_t column = (run.lane + i) / VL, lane = (run.lane + i) % VL;
          found[static_cast<size_t>((column * lines + line) * VL + lane)] = first + i * result.pixel_step();
        }
      }
    }
    return found;
  }

  void pack(int64_t channel, int64_t channels, int64_t padded) const override {
    clear_from(channels, padded - channels);
    for (int64_t line = 0; line < lines; ++line) {
      if (by_channel(channels)) {
        with_dtype(source_.dtype, [&](auto dtype) {
          for (int64_t i = 0; i < line_step(); i += VL) {
            pack_channels<dtype>(offsets_.data() + line * line_step() + i, channel, channels, line_of(line) + i);
          }
        });
      } else {
        const std::vector<Span>& spans = spans_[static_cast<size_t>(line)];
        pack_lanes(source_, grid_, spans.data(), static_cast<int64_t>(spans.size()), line_step(), channel, channels,
                   line_of(line), channel_step());
      }
    }
  }

 private:
  const Grid grid_;
  std::vector<std::vector<Run>> runs_;
  std::vector<std::vector<Span>> spans_;
  std::vector<int64_t> offsets_;  // [line][column][lane], for neighbouring channels
};

// Lanes of a line whose bit is 1, the others zero; elements lie `step` apart.
template <int DTYPE>
FK_INLINE vf32 load_where(const typename Element<DTYPE>::Type* from, int64_t step, uint32_t lanes) {
  if constexpr (DTYPE == FLOAT32) {
#if FK_HAS_AVX512
    if (step == 1) return {_mm512_maskz_loadu_ps(static_cast<__mmask16>(lanes), from)};
#else
    if (step == 1) return {_mm256_maskload_ps(from, from_bits(lanes).v)};
#endif
  }
  if (step == 1 && lanes == (1u << VL) - 1) return load_vector<DTYPE>(from);
  alignas(64) float values[VL] = {};
  for (; lanes; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    values[lane] = load_one<DTYPE>(from + lane * step);
  }
  return vf32::load(values);
}

// Many taps: a lane has a tile of `vectors` lines by `width` pixels, and the window is what lies under it.
class TileWindow : public Window {
 public:
  TileWindow(const Geometry& g, const Activations& source, const TablePlan& plan, int64_t task, float* packed)
      : Window(g, source, plan, packed), g_(g), plan_(plan), sources_(static_cast<size_t>(planes * lines * VL)) {
    for (int64_t l = 0; l < VL; ++l) {
      const int64_t i = task * VL + l, along = i % plan.tiles_along, down = i / plan.tiles_along % plan.tiles_down;
      const int64_t plane = i / plan.tiles_along / plan.tiles_down;
      Run& run = runs_[l];
      run = {l, 0, plane / g.narrow[0], {{plane % g.narrow[0], down * plan.vectors, along * plan.width}}};
      if (plane < plan.planes) run.count = std::min(plan.width, g.narrow[2] - run.q.x[2]);
      for (int64_t z = 0; z < planes; ++z) {
        for (int64_t line = 0; line < lines; ++line) sources_[index(z * lines + line, l)] = find(run, z, line);
      }
    }
  }

  std::vector<int64_t> places(const Result& result) const override {
    std::vector<int64_t> found(static_cast<size_t>(plan_.width * plan_.vectors * VL), NOWHERE);
    for (int64_t p = 0; p < plan_.vectors; ++p) {
      for (int64_t l = 0; l < VL; ++l) {
        const Run line = run(p, l);
        const int64_t first = result.offset(line);
        for (int64_t x = 0; x < line.count; ++x) {
          found[static_cast<size_t>((x * plan_.vectors + p) * VL + l)] = first + x * result.pixel_step();
        }
      }
    }
    return found;
  }

  // The pixels of line p of the tile in lane l; none where the tile reaches beyond the result.
  Run run(int64_t p, int64_t l) const {
    Run found = runs_[l];
    found.q.x[1] += p;
    if (found.q.x[1] >= g_.narrow[1]) found.count = 0;
    return found;
  }

  void pack(int64_t channel, int64_t channels, int64_t padded) const override {
    clear_from(channels, padded - channels);
    with_dtype(source_.dtype, [&](auto dtype) {
      for (int64_t i = 0; i < planes * lines; ++i) {
        const Source* const lanes = sources_.data() + index(i, 0);
        if (by_channel(channels)) {
          pack_columns<dtype>(lanes, channel, channels, line_of(i));
        } else {
          pack_lines<dtype>(lanes, channel, channels, line_of(i));
        }
      }
    });
  }

 private:
  // Where column 0 of a lane's line would be, in elements, and which columns exist: a bit each.
  struct Source {
    int64_t offset;
    uint64_t columns;
  };

  static uint64_t first_bits(int64_t count) { return count == MOST_COLUMNS ? ~0ull : (1ull << count) - 1; }
  static size_t index(int64_t line, int64_t lane) { return static_cast<size_t>(line * VL + lane); }

  Source find(const Run& run, int64_t z, int64_t line) const {
    const int64_t* const stride = source_.stride + SPATIAL;
    const int64_t x[3] = {run.q.x[0] * g_.stride[0] + z * g_.dilation[0] - g_.padding[0],
                          run.q.x[1] * g_.stride[1] + line - g_.padding[1], run.q.x[2] * g_.stride[2] - g_.padding[2]};
    if (!run.count || x[0] < 0 || x[0] >= g_.wide[0] || x[1] < 0 || x[1] >= g_.wide[1]) return {0, 0};
    const int64_t begin = std::clamp<int64_t>(-x[2], 0, columns);
    const int64_t end = std::clamp<int64_t>(g_.wide[2] - x[2], begin, columns);
    return {run.batch * source_.stride[BATCH] + x[0] * stride[0] + x[1] * stride[1] + x[2] * stride[2],
            first_bits(end) & ~first_bits(begin)};
  }

  template <int DTYPE>
  void pack_lines(const Source* lanes, int64_t channel, int64_t channels, float* out) const {
    const int64_t next = source_.stride[CHANNEL], step = source_.stride[SPATIAL + 2];
    const auto* from = static_cast<const typename Element<DTYPE>::Type*>(source_.data) + channel * next;
    for (int64_t c = 0; c < channels; ++c, from += next, out += channel_step()) {
      for (int64_t i = 0; i < columns; i += VL) {
        vf32 turned[VL];
#pragma GCC unroll 16
        for (int l = 0; l < VL; ++l) {
          const uint32_t some = static_cast<uint32_t>(lanes[l].columns >> i) & ((1u << VL) - 1);
          turned[l] = load_where<DTYPE>(from + lanes[l].offset + i * step, step, some);
        }
        transpose_vectors(turned);
#pragma GCC unroll 16
        for (int j = 0; j < VL; ++j) {
          if (i + j < columns) turned[j].store(out + (i + j) * VL);
        }
      }
    }
  }

  template <int DTYPE>
  void pack_columns(const Source* lanes, int64_t channel, int64_t channels, float* out) const {
    const int64_t step = source_.stride[SPATIAL + 2];
    for (int64_t column = 0; column < columns; ++column, out += VL) {
      int64_t offsets[VL];
      for (int64_t l = 0; l < VL; ++l) {
        offsets[l] = lanes[l].columns >> column & 1 ? lanes[l].offset + column * step : NOWHERE;
      }
      pack_channels<DTYPE>(offsets, channel, channels, out);
    }
  }

  const Geometry& g_;
  const TablePlan& plan_;
  Run runs_[VL];
  std::vector<Source> sources_;
};

}  // namespace fk::FK_ISA_NS
