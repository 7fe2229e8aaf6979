// Depthwise sums with vectors over channels: for sources whose channels are contiguous.
#include "depthwise.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int MAX_PIXELS = 8;
constexpr int64_t SUM_FLOATS = 1 << 12;  // sums stored at once, unless one line has more

// Taps of one source line: the first pixel they read, and the codes of the first of them.
struct TapLine {
  const float* from;
  const float* codes;
};

// sums[pixel][channel] of PIXELS results that lie STEP source pixels apart, over TAPS neighbouring taps of each line.
template <int PIXELS, int TAPS, int STEP>
void strip(const TapLine* lines, int64_t count, int64_t next_pixel, int64_t next_tap, int64_t channels, float* sums,
           int64_t ld) {
  for (int64_t c = 0; c < channels; c += VL) {
    vf32 sum[PIXELS];
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; ++p) sum[p] = vf32::zero();
    for (int64_t i = 0; i < count; ++i) {
      vf32 code[TAPS];
#pragma GCC unroll 8
      for (int t = 0; t < TAPS; ++t) code[t] = vf32::load(lines[i].codes + t * next_tap + c);
      const float* from = lines[i].from + c;
#pragma GCC unroll 32
      for (int j = 0; j < (PIXELS - 1) * STEP + TAPS; ++j, from += next_pixel) {
        const vf32 x = vf32::load(from);
#pragma GCC unroll 8
        for (int p = 0; p < PIXELS; ++p) {
          if (j >= p * STEP && j < p * STEP + TAPS) sum[p] = multiply_add(x, code[j - p * STEP], sum[p]);
        }
      }
    }
#pragma GCC unroll 8
    for (int p = 0; p < PIXELS; ++p) sum[p].store(sums + p * ld + c);
  }
}

using Strip = void (*)(const TapLine*, int64_t, int64_t, int64_t, int64_t, float*, int64_t);

template <int TAPS, int STEP, int... P>
constexpr std::array<Strip, sizeof...(P)> strips(std::integer_sequence<int, P...>) {
  return {strip<P + 1, TAPS, STEP>...};
}

// Strips for 1 to MAX_PIXELS pixels; null where only single taps have them.
const Strip* find_strips(const Slide& s) {
  constexpr auto all = std::make_integer_sequence<int, MAX_PIXELS>();
  static constexpr auto three = strips<3, 1>(all), three_apart = strips<3, 2>(all), five = strips<5, 1>(all),
                        five_apart = strips<5, 2>(all);
  const Axis& x = s.axis[2];
  if (x.shift_step != 1 || s.grid.step[2] > 2) return nullptr;
  const bool apart = s.grid.step[2] == 2;
  if (x.count == 3) return (apart ? three_apart : three).data();
  if (x.count == 5) return (apart ? five_apart : five).data();
  return nullptr;
}
const Strip* find_single_strips() {
  static constexpr auto single = strips<1, 1>(std::make_integer_sequence<int, MAX_PIXELS>());
  return single.data();
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
  Strips(const Slide& s, const Patch& p, Lines& lines, const float* codes, TapLine* found, TapLine* taps)
      : s_(s),
        p_(p),
        lines_(lines),
        codes_(codes),
        found_(found),
        taps_(taps),
        near_(find_strips(s)),
        ld_(round_up(p.channels, VL)) {
    const int64_t step = s.grid.step[2], low = -s.axis[2].shift, high = s.grid.limit[2] - s.axis[2].reach() + low;
    inner_ = std::clamp(low > 0 ? (low + step - 1) / step : 0, p.x, p.x + p.count);
    outer_ = std::clamp(high >= 0 ? high / step + 1 : 0, inner_, p.x + p.count);
  }

  static int64_t most_taps(const Slide& s) { return s.axis[0].count * s.axis[1].count * s.axis[2].count; }

  void sum(const Run& line, float* sums) {
    const int64_t x0 = p_.x, x1 = p_.x + p_.count;
    find_lines(line);
    for (int64_t x = x0; x < inner_; ++x) edge(x, sums + (x - x0) * ld_);
    if (inner_ < outer_) inner(sums + (inner_ - x0) * ld_);
    for (int64_t x = outer_; x < x1; ++x) edge(x, sums + (x - x0) * ld_);
  }

 private:
  // Source lines of the taps of the first two dimensions that are inside, from their pixel 0 on.
  void find_lines(const Run& line) {
    const Axis &a = s_.axis[0], &b = s_.axis[1];
    line_count_ = 0;
    for (int64_t k0 = 0; k0 < a.count; ++k0) {
      const int64_t z = line.q.x[0] * s_.grid.step[0] + a.shift + k0 * a.shift_step;
      if (z < 0 || z >= s_.grid.limit[0]) continue;
      for (int64_t k1 = 0; k1 < b.count; ++k1) {
        const int64_t y = line.q.x[1] * s_.grid.step[1] + b.shift + k1 * b.shift_step;
        if (y < 0 || y >= s_.grid.limit[1]) continue;
        found_[line_count_++] = {lines_.line(line.batch, z, y), codes_ + s_.column(k0, k1, 0) * LD};
      }
    }
  }

  // Taps [from, to) of each line, one by one, for the result whose first tap is source pixel x.
  int64_t single_taps(int64_t x, int64_t from, int64_t to) {
    const Axis& c = s_.axis[2];
    int64_t count = 0;
    for (int64_t i = 0; i < line_count_; ++i) {
      const TapLine& line = found_[i];
      for (int64_t k = from; k < to; ++k) {
        taps_[count++] = {line.from + (x + k * c.shift_step) * lines_.next_pixel(), line.codes + k * c.tap_step * LD};
      }
    }
    return count;
  }

  // Results whose taps all lie inside the source lines.
  void inner(float* sums) {
    const Axis& c = s_.axis[2];
    const int64_t pixel = lines_.next_pixel(), step = s_.grid.step[2], x = inner_ * step + c.shift;
    const int64_t pixels = outer_ - inner_, parts = (pixels + MAX_PIXELS - 1) / MAX_PIXELS;
    int64_t count = line_count_;
    if (near_) {
      for (int64_t i = 0; i < count; ++i) taps_[i] = {found_[i].from + x * pixel, found_[i].codes};
    } else {
      count = single_taps(x, 0, c.count);
    }
    const Strip* const strips = near_ ? near_ : find_single_strips();
    for (int64_t i = 0; i < parts; ++i) {
      const int64_t from = pixels * i / parts, size = pixels * (i + 1) / parts - from;
      strips[size - 1](taps_, count, near_ ? pixel : step * pixel, c.tap_step * LD, p_.channels, sums + from * ld_,
                       ld_);
      for (int64_t j = 0; j < count; ++j) taps_[j].from += size * step * pixel;
    }
  }

  void edge(int64_t q, float* sums) {
    const Axis& c = s_.axis[2];
    const int64_t x = q * s_.grid.step[2] + c.shift, end = s_.grid.limit[2] - x, step = c.shift_step;
    const int64_t to = std::clamp<int64_t>(end > 0 ? (end + step - 1) / step : 0, 0, c.count);
    const int64_t from = std::clamp<int64_t>(x < 0 ? (step - 1 - x) / step : 0, 0, to);
    find_single_strips()[0](taps_, single_taps(x, from, to), 0, 0, p_.channels, sums, ld_);
  }

  const Slide& s_;
  const Patch& p_;
  Lines& lines_;
  const float* codes_;
  TapLine *found_, *taps_;
  int64_t line_count_ = 0;
  const Strip* near_;
  int64_t ld_, inner_, outer_;
};

}  // namespace

void slide_channels(const Slide& s, const Patch& p) {
  Lines lines(s, p);
  const int64_t ld = round_up(p.channels, VL), taps = Strips::most_taps(s);
  const int64_t together = std::clamp<int64_t>(SUM_FLOATS / (p.count * ld), 1, p.lines);
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + slide_code_floats(s.f) + lines.floats() + together * p.count * ld) +
                  1024 + lines.tags() * static_cast<int64_t>(sizeof(int64_t)) +
                  2 * taps * static_cast<int64_t>(sizeof(TapLine)) + together * static_cast<int64_t>(sizeof(Run)));
  const float* const codes = slide_codes(s.f, p, scratch);
  float* const sums = scratch.take<float>(together * p.count * ld);
  lines.use(scratch.take<float>(lines.floats()), scratch.take<int64_t>(lines.tags()));
  Run* const runs = scratch.take<Run>(together);
  TapLine* const found = scratch.take<TapLine>(taps);
  Strips strips(s, p, lines, codes, found, scratch.take<TapLine>(taps));
  for (int64_t first = 0; first < p.lines; first += together) {
    const int64_t count = std::min(together, p.lines - first);
    for (int64_t i = 0; i < count; ++i) {
      runs[i] = s.line(p.line + first + i);
      runs[i].lane = i * p.count;
      runs[i].count = p.count;
      runs[i].q.x[2] = p.x;
      strips.sum(runs[i], sums + runs[i].lane * ld);
    }
    s.result.store_channels(sums, ld, p.channel, p.channels, runs, count);
  }
}

}  // namespace fk::FK_ISA_NS
