// Depthwise sums with vectors over channels: for sources whose channels are contiguous.
#include <array>
#include <utility>

#include "cpu/depthwise/depthwise.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int MAX_PIXELS = 8;

// A source line from its pixel 0 on, and the codes of its first tap.
struct TapLine {
  const float* from;
  const float* codes;
};

// What a strip of results reads: taps from `first_tap` on of each line, the first of them at pixel x.
struct Taps {
  const TapLine* lines;
  int64_t count;
  int64_t pixel, code;           // floats from pixel to pixel and from tap to tap
  int64_t taps, distance, step;  // pixels from tap to tap and from result to result: for strips of any taps
  int64_t x, first_tap;
};

// Where results go: [pixel][channel], finished.
struct Target {
  void* to;
  int64_t next_pixel;
  const float *factor, *bias;  // by channel
  bool with_relu;
};

// PIXELS results that lie STEP source pixels apart, over TAPS neighbouring taps of each line. They are finished in
// registers: stores that miss the cache are then spread between the sums.
// TAPS = 0 stands for taps and results at any distance.
template <int DTYPE, int PIXELS, int TAPS, int STEP>
void strip(const Taps& taps, int64_t channels, const Target& target, int64_t result) {
  auto* const to = static_cast<typename Element<DTYPE>::Type*>(target.to) + result * target.next_pixel;
  const int64_t pixel = taps.pixel, count = taps.count;
  for (int64_t c = 0; c < channels; c += VL) {
    vf32 sum[PIXELS];
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; ++p) sum[p] = vf32::zero();
    for (int64_t i = 0; i < count; ++i) {
      const float* codes = taps.lines[i].codes + taps.first_tap * taps.code + c;
      const float* from = taps.lines[i].from + taps.x * pixel + c;
      if constexpr (TAPS == 0) {
        for (int64_t t = 0; t < taps.taps; ++t, codes += taps.code, from += taps.distance * pixel) {
          const vf32 code = vf32::load(codes);
#pragma GCC unroll 8
          for (int p = 0; p < PIXELS; ++p) {
            sum[p] = multiply_add(vf32::load(from + p * taps.step * pixel), code, sum[p]);
          }
        }
      } else {
        vf32 code[TAPS];
#pragma GCC unroll 8
        for (int t = 0; t < TAPS; ++t) code[t] = vf32::load(codes + t * taps.code);
#pragma GCC unroll 32
        for (int j = 0; j < (PIXELS - 1) * STEP + TAPS; ++j, from += pixel) {
          const vf32 x = vf32::load(from);
#pragma GCC unroll 8
          for (int p = 0; p < PIXELS; ++p) {
            if (j >= p * STEP && j < p * STEP + TAPS) sum[p] = multiply_add(x, code[j - p * STEP], sum[p]);
          }
        }
        // The last line is the one that no earlier result has read; the next strip goes on in it.
        if (i + 1 == count) {
#pragma GCC unroll 16
          for (int p = 0; p < PIXELS * STEP; ++p, from += pixel) __builtin_prefetch(from);
        }
      }
    }
    const Finish finish{vf32::load(target.factor + c), vf32::load(target.bias + c), target.with_relu};
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; ++p) store_vector<DTYPE>(to + p * target.next_pixel + c, finish(sum[p]));
  }
}

using Strip = void (*)(const Taps&, int64_t, const Target&, int64_t);

template <int DTYPE, int TAPS, int STEP, int... P>
constexpr std::array<Strip, sizeof...(P)> strips(std::integer_sequence<int, P...>) {
  return {strip<DTYPE, P + 1, TAPS, STEP>...};
}

// Strips of 1 to MAX_PIXELS pixels.
struct StripTable {
  const Strip* near;  // all taps of a line at once, or null where they are not neighbours
  const Strip* any;
};

StripTable find_strips(const Slide& s, int dtype) {
  constexpr auto all = std::make_integer_sequence<int, MAX_PIXELS>();
  const Axis& x = s.axis[2];
  const bool neighbours = x.shift_step == 1 && s.grid.step[2] <= 2, apart = s.grid.step[2] == 2;
  StripTable table{};
  with_dtype(dtype, [&](auto type) {
    static constexpr auto any = strips<type, 0, 0>(all), three = strips<type, 3, 1>(all),
                          three_apart = strips<type, 3, 2>(all), five = strips<type, 5, 1>(all),
                          five_apart = strips<type, 5, 2>(all);
    table.any = any.data();
    if (neighbours && x.count == 3) table.near = (apart ? three_apart : three).data();
    if (neighbours && x.count == 5) table.near = (apart ? five_apart : five).data();
  });
  return table;
}

// Lines of the source as floats: in place, or copied to a small cache of lines.
class Lines {
 public:
  Lines(const Slide& s, const Patch& p)
      : s_(s),
        p_(p),
        in_place_(s.source.dtype == FLOAT32 && s.multiplier == 1 && s.source.stride[CHANNEL] == 1 &&
                  p.channels % VL == 0),
        first_(std::max<int64_t>(0, p.x * s.grid.step[2] + s.axis[2].shift)),
        pixels_(std::max<int64_t>(
            0, std::min(s.grid.limit[2], (p.x + p.count - 1) * s.grid.step[2] + s.axis[2].shift + s.axis[2].reach()) -
                   first_)),
        ld_(round_up(p.channels, VL)),
        slots_{std::min(s.axis[0].reach(), s.grid.limit[0]), std::min(s.axis[1].reach(), s.grid.limit[1])} {}

  int64_t floats() const { return in_place_ ? 0 : slots_[0] * slots_[1] * pixels_ * ld_ + ld_; }
  int64_t tags() const { return in_place_ ? 0 : slots_[0] * slots_[1]; }
  void use(float* floats, int64_t* tags) {
    floats_ = floats, tags_ = tags;
    std::fill(tags_, tags_ + this->tags(), int64_t{-1});
  }

  int64_t next_pixel() const { return in_place_ ? s_.source.stride[SPATIAL + 2] : ld_; }

  // Where pixel 0 of a line is, or would be.
  const float* line(int64_t batch, int64_t z, int64_t y) {
    const int64_t* const stride = s_.source.stride;
    const int64_t offset = batch * stride[BATCH] + z * stride[SPATIAL] + y * stride[SPATIAL + 1];
    if (in_place_) return static_cast<const float*>(s_.source.data) + offset + p_.channel;
    const int64_t slot = z % slots_[0] * slots_[1] + y % slots_[1];
    const int64_t tag = (batch * s_.grid.limit[0] + z) * s_.grid.limit[1] + y;
    float* const to = floats_ + ld_ + slot * pixels_ * ld_;
    if (tags_[slot] != tag) copy(offset, to);
    tags_[slot] = tag;
    return to - first_ * ld_;
  }

 private:
  void copy(int64_t offset, float* to) const {
    const int64_t next = s_.source.stride[CHANNEL], m = s_.multiplier, channel = p_.channel / m;
    const int64_t channels = (p_.channel + p_.channels - 1) / m + 1 - channel;
    with_dtype(s_.source.dtype, [&](auto dtype) {
      const auto* from = static_cast<const typename Element<dtype>::Type*>(s_.source.data) + offset + channel * next +
                         first_ * s_.source.stride[SPATIAL + 2];
      for (int64_t i = 0; i < pixels_; ++i, from += s_.source.stride[SPATIAL + 2], to += ld_) {
        if (m == 1) {
          read<dtype>(from, next, channels, to);
        } else {
          read<dtype>(from, next, channels, floats_);
          for (int64_t c = 0; c < p_.channels; ++c) to[c] = floats_[(p_.channel + c) / m - channel];
        }
        for (int64_t c = p_.channels; c < ld_; ++c) to[c] = 0.0f;
      }
    });
  }

  const Slide& s_;
  const Patch& p_;
  bool in_place_;
  int64_t first_, pixels_, ld_, slots_[2];
  float* floats_ = nullptr;
  int64_t* tags_ = nullptr;
};

// Sums of one line of the result after another.
class Strips {
 public:
  Strips(const Slide& s, const Patch& p, Lines& lines, const float* codes, int dtype, TapLine* found)
      : s_(s), p_(p), lines_(lines), codes_(codes), strips_(find_strips(s, dtype)), found_(found) {
    const int64_t step = s.grid.step[2], low = -s.axis[2].shift, high = s.grid.limit[2] - s.axis[2].reach() + low;
    inner_ = std::clamp(low > 0 ? (low + step - 1) / step : 0, p.x, p.x + p.count);
    outer_ = std::clamp(high >= 0 ? high / step + 1 : 0, inner_, p.x + p.count);
  }

  static int64_t most_lines(const Slide& s) { return s.axis[0].count * s.axis[1].count; }

  void sum(const Run& line, const Target& target) {
    const Axis& c = s_.axis[2];
    Taps taps{found_, find_lines(line), lines_.next_pixel(), c.tap_step * LD, 0, c.shift_step, s_.grid.step[2], 0, 0};
    for (int64_t q = p_.x; q < inner_; ++q) edge(taps, q, target);
    // Results [inner_, outer_) have all their taps inside the source lines.
    taps.taps = c.count;
    taps.first_tap = 0;
    const Strip* const strips = strips_.near ? strips_.near : strips_.any;
    const int64_t results = outer_ - inner_, parts = (results + MAX_PIXELS - 1) / MAX_PIXELS;
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = inner_ + results * i / parts, size = inner_ + results * (i + 1) / parts - from;
      taps.x = from * taps.step + c.shift;
      strips[size - 1](taps, p_.channels, target, from - p_.x);
    }
    for (int64_t q = outer_; q < p_.x + p_.count; ++q) edge(taps, q, target);
  }

 private:
  // Source lines of the taps of the first two dimensions that are inside; how many.
  int64_t find_lines(const Run& line) {
    const Axis &a = s_.axis[0], &b = s_.axis[1];
    int64_t count = 0;
    for (int64_t k0 = 0; k0 < a.count; ++k0) {
      const int64_t z = line.q.x[0] * s_.grid.step[0] + a.shift + k0 * a.shift_step;
      if (z < 0 || z >= s_.grid.limit[0]) continue;
      for (int64_t k1 = 0; k1 < b.count; ++k1) {
        const int64_t y = line.q.x[1] * s_.grid.step[1] + b.shift + k1 * b.shift_step;
        if (y < 0 || y >= s_.grid.limit[1]) continue;
        found_[count++] = {lines_.line(line.batch, z, y), codes_ + s_.column(k0, k1, 0) * LD};
      }
    }
    return count;
  }

  // One result, of the taps that are inside.
  void edge(Taps& taps, int64_t q, const Target& target) const {
    const int64_t x = q * taps.step + s_.axis[2].shift, end = s_.grid.limit[2] - x, distance = taps.distance;
    const int64_t to = std::clamp<int64_t>(end > 0 ? (end + distance - 1) / distance : 0, 0, s_.axis[2].count);
    taps.first_tap = std::clamp<int64_t>(x < 0 ? (distance - 1 - x) / distance : 0, 0, to);
    taps.taps = to - taps.first_tap;
    taps.x = x + taps.first_tap * distance;
    strips_.any[0](taps, p_.channels, target, q - p_.x);
  }

  const Slide& s_;
  const Patch& p_;
  Lines& lines_;
  const float* codes_;
  StripTable strips_;
  TapLine* found_;
  int64_t inner_, outer_;
};

}  // namespace

void slide_channels(const Slide& s, const Patch& p) {
  Lines lines(s, p);
  const Result& result = s.result;
  const bool direct = result.side.stride[CHANNEL] == 1 && p.channels % VL == 0;
  const int64_t ld = round_up(p.channels, VL), most_lines = Strips::most_lines(s),
                sum_floats = direct ? 0 : p.count * ld;
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + slide_code_floats(s.f) + lines.floats() + 2 * ld + sum_floats) + 1024 +
                  lines.tags() * static_cast<int64_t>(sizeof(int64_t)) +
                  most_lines * static_cast<int64_t>(sizeof(TapLine)));
  const float* const codes = slide_codes(s.f, p, scratch);
  float* const factor = scratch.take<float>(ld);
  float* const bias = scratch.take<float>(ld);
  float* const sums = scratch.take<float>(sum_floats);
  lines.use(scratch.take<float>(lines.floats()), scratch.take<int64_t>(lines.tags()));
  Strips strips(s, p, lines, codes, direct ? result.side.dtype : FLOAT32, scratch.take<TapLine>(most_lines));
  for (int64_t c = 0; c < ld; c += VL) {
    const Finish finish = direct ? result.finish_of(p.channel + c, VL) : Finish{vf32::set(1.0f), vf32::zero(), false};
    finish.factor.store(factor + c);
    finish.bias.store(bias + c);
  }
  for (int64_t i = 0; i < p.lines; ++i) {
    Run line = s.line(p.line + i);
    line.count = p.count;
    line.q.x[2] = p.x;
    if (direct) {
      const int64_t next = s.result.grid.step[2] * result.side.stride[SPATIAL + 2];
      strips.sum(line, {result.place(line, p.channel), next, factor, bias, result.epilogue.relu});
    } else {
      strips.sum(line, {sums, ld, factor, bias, false});
      result.store_channels(sums, ld, p.channel, p.channels, &line, 1);
    }
  }
}

}  // namespace fk::FK_ISA_NS
