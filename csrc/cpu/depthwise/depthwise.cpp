// Cuts depthwise layers into patches.
#include "cpu/depthwise/depthwise.h"

#include <numeric>
#include <vector>

#include "cpu/core/parallel.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t PATCH_FLOATS = 1 << 12;  // source values of one channel: they stay in the first cache
constexpr int64_t MOST_PRODUCTS = 1 << 19, LEAST_PRODUCTS = 1 << 18;  // of a task, where there is a choice

struct Cut {
  const Slide& s;
  bool channel_lanes;
  int64_t channels, lines, count;  // of a patch, at most
  int64_t first_task;

  int64_t channel_blocks() const { return divide_up(s.f.rows, channels); }
  // Vectors over pixels need the lines of a patch from one image.
  int64_t images() const { return channel_lanes ? 1 : s.grid.batch * s.grid.size[0]; }
  int64_t image_lines() const { return channel_lanes ? s.lines() : s.grid.size[1]; }
  int64_t line_blocks() const { return divide_up(image_lines(), lines); }
  int64_t parts() const { return divide_up(s.grid.size[2], count); }
  int64_t tasks() const { return channel_blocks() * images() * line_blocks() * parts(); }
  int64_t products() const { return channels * lines * count * s.f.cols; }

  void cut_channels(int64_t blocks) { channels = round_up(divide_up(s.f.rows, blocks), VL); }

  Patch patch(int64_t i) const {
    // Neighbouring tasks share lines: the channels of a pixel lie side by side.
    const int64_t channel = i % channel_blocks() * channels, x = i / channel_blocks() % parts() * count;
    const int64_t line = i / (channel_blocks() * parts()) % line_blocks() * lines;
    const int64_t image = i / (channel_blocks() * parts() * line_blocks());
    return {channel,
            std::min(channels, s.f.rows - channel),
            image * image_lines() + line,
            std::min(lines, image_lines() - line),
            x,
            std::min(count, s.grid.size[2] - x)};
  }
};

Cut make_cut(const Slide& s, int threads) {
  const bool channel_lanes = s.source.stride[CHANNEL] == 1 && s.f.rows >= VL / 2;
  Cut c{s, channel_lanes, 0, 1, std::min(s.grid.size[2], LINE_PIXELS), 0};
  c.cut_channels(divide_up(s.f.rows, DEPTH));
  if (channel_lanes) {
    c.lines = std::clamp<int64_t>(MOST_PRODUCTS / c.products(), 1, s.lines());
    while (c.lines > 1 && c.products() > LEAST_PRODUCTS && c.tasks() < 4 * threads) c.lines = (c.lines + 1) / 2;
  } else {
    c.lines = std::clamp<int64_t>(PATCH_FLOATS / (c.count * s.grid.step[1] * s.grid.step[2]), 1, s.grid.size[1]);
  }
  while (c.channels > VL && c.products() > LEAST_PRODUCTS && c.tasks() < 4 * threads) {
    c.cut_channels(c.channel_blocks() * 2);
  }
  return c;
}

void run(const std::vector<Slide>& slides, int threads) {
  std::vector<Cut> cuts;
  int64_t tasks = 0;
  for (const Slide& s : slides) {
    cuts.push_back(make_cut(s, threads));
    cuts.back().first_task = tasks;
    tasks += cuts.back().tasks();
  }
  parallel_for(threads, tasks, [&](int64_t i) {
    size_t which = cuts.size() - 1;
    while (cuts[which].first_task > i) --which;
    const Cut& c = cuts[which];
    if (c.channel_lanes) {
      slide_channels(c.s, c.patch(i - c.first_task));
    } else {
      slide_pixels(c.s, c.patch(i - c.first_task));
    }
  });
}

// Taps that reach wide pixels `at` + multiples of the stride from the narrow side, which they do in steps of one.
Axis residue_axis(const Geometry& g, int d, int64_t at) {
  const int64_t stride = g.stride[d], dilation = g.dilation[d], common = std::gcd(stride, dilation);
  Axis axis{0, 0, -stride / common, 0, dilation / common};
  for (int64_t tap = g.taps[d] - 1; tap >= 0; --tap) {
    const int64_t from = at + g.padding[d] - tap * dilation;
    if (from % stride) continue;
    if (!axis.count++) axis.tap = tap, axis.shift = from / stride;
  }
  return axis;
}

}  // namespace

void depthwise(const Call& call) {
  const Geometry& g = call.g;
  std::vector<Slide> slides{{call.f, call.wide, call.f.rows / g.groups, narrow_grid(g), {}, {}, narrow_result(call)}};
  for (int d = 0; d < 3; ++d) {
    slides[0].taps[d] = g.taps[d];
    slides[0].axis[d] = {g.taps[d], 0, 1, -g.padding[d], g.dilation[d]};
  }
  run(slides, call.threads);
}

void depthwise_transposed(const Call& call) {
  const Geometry& g = call.g;
  std::vector<Slide> slides;
  Position at;
  for (at.x[0] = 0; at.x[0] < std::min(g.stride[0], g.wide[0]); ++at.x[0]) {
    for (at.x[1] = 0; at.x[1] < std::min(g.stride[1], g.wide[1]); ++at.x[1]) {
      for (at.x[2] = 0; at.x[2] < std::min(g.stride[2], g.wide[2]); ++at.x[2]) {
        Grid grid{g.batch, {}, {1, 1, 1}, {g.narrow[0], g.narrow[1], g.narrow[2]}};
        for (int d = 0; d < 3; ++d) grid.size[d] = divide_up(g.wide[d] - at.x[d], g.stride[d]);
        Grid out = grid;
        for (int d = 0; d < 3; ++d) out.step[d] = g.stride[d];
        slides.push_back(
            {call.f, call.narrow, 1, grid, {}, {}, Result{call.wide, call.f.scale, call.epilogue, out, at}});
        for (int d = 0; d < 3; ++d) {
          slides.back().taps[d] = g.taps[d];
          slides.back().axis[d] = residue_axis(g, d, at.x[d]);
        }
      }
    }
  }
  run(slides, call.threads);
}

}  // namespace fk::FK_ISA_NS
