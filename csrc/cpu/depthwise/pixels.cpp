// Depthwise sums with vectors over pixels. The source of a patch is copied with its padding, split by position modulo
// the stride: then a tap is a fixed distance, and results of all lines are one row of vectors.
#include <array>
#include <utility>

#include "cpu/depthwise/depthwise.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int MAX_VECTORS = 8;

// sums[i] of VECTORS vectors; tap t reads from[distance[t] + i].
template <int VECTORS>
void slide_vectors(const float* from, const int64_t* distance, const float* codes, const int64_t* columns, int64_t taps,
                   float* sums) {
  vf32 sum[VECTORS];
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) sum[i] = vf32::zero();
  for (int64_t t = 0; t < taps; ++t) {
    const vf32 code = vf32::set(codes[columns[t] * LD]);
    const float* const x = from + distance[t];
#pragma GCC unroll 8
    for (int i = 0; i < VECTORS; ++i) sum[i] = multiply_add(vf32::load(x + i * VL), code, sum[i]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < VECTORS; ++i) sum[i].store(sums + i * VL);
}

using SlideVectors = void (*)(const float*, const int64_t*, const float*, const int64_t*, int64_t, float*);

template <int... N>
constexpr std::array<SlideVectors, sizeof...(N)> slides(std::integer_sequence<int, N...>) {
  return {slide_vectors<N + 1>...};
}

// A source line, at channel 0, and where it goes.
struct Copy {
  int64_t offset;
  float* to;
};

// The source of a patch for one channel: planes [tap of the first dimension][y modulo step][x modulo step], each with
// `rows` lines of `ld` pixels.
class Planes {
 public:
  Planes(const Slide& s, const Patch& p)
      : s_(s),
        at_(s.line(p.line)),
        x_(p.x * s.grid.step[2] + s.axis[2].shift),
        ld_(p.count + (s.axis[2].reach() - 1) / s.grid.step[2]),
        rows_(p.lines + (s.axis[1].reach() - 1) / s.grid.step[1]),
        plane_(rows_ * ld_ + VL) {}

  int64_t ld() const { return ld_; }
  int64_t line_floats() const { return ld_ * s_.grid.step[2] + 2 * VL; }
  int64_t floats() const { return s_.axis[0].count * s_.grid.step[1] * s_.grid.step[2] * plane_; }

  int64_t distance(int64_t k0, int64_t k1, int64_t k2) const {
    const int64_t y = k1 * s_.axis[1].shift_step, x = k2 * s_.axis[2].shift_step;
    return plane(k0, y, x) + y / s_.grid.step[1] * ld_ + x / s_.grid.step[2];
  }

  int64_t most_copies() const { return s_.axis[0].count * rows_ * s_.grid.step[1]; }

  // Finds the source lines that exist. `planes` and `line` are cleared once: no copy writes where there is padding.
  void start(float* planes, float* line, Copy* copies) {
    planes_ = planes, line_ = line, copies_ = copies;
    clear(planes, floats());
    clear(line, line_floats());
    const Axis &a = s_.axis[0], &b = s_.axis[1];
    const int64_t* const stride = s_.source.stride;
    const int64_t step = s_.grid.step[1], width = ld_ * s_.grid.step[2];
    from_ = std::clamp<int64_t>(-x_, 0, width);
    count_ = std::clamp<int64_t>(s_.grid.limit[2] - x_, from_, width) - from_;
    for (int64_t k0 = 0; k0 < a.count && count_; ++k0) {
      const int64_t z = at_.q.x[0] * s_.grid.step[0] + a.shift + k0 * a.shift_step;
      if (z < 0 || z >= s_.grid.limit[0]) continue;
      for (int64_t i = 0; i < rows_ * step; ++i) {
        const int64_t y = at_.q.x[1] * step + b.shift + i;
        if (y < 0 || y >= s_.grid.limit[1]) continue;
        copies_[copy_count_++] = {at_.batch * stride[BATCH] + z * stride[SPATIAL] + y * stride[SPATIAL + 1] +
                                      (x_ + from_) * stride[SPATIAL + 2],
                                  planes + plane(k0, i, 0) + i / step * ld_};
      }
    }
  }

  void fill(int64_t channel) const {
    const int64_t next = s_.source.stride[SPATIAL + 2], step = s_.grid.step[2];
    with_dtype(s_.source.dtype, [&](auto dtype) {
      const auto* const source =
          static_cast<const typename Element<dtype>::Type*>(s_.source.data) + channel * s_.source.stride[CHANNEL];
      for (int64_t i = 0; i < copy_count_; ++i) {
        float* const to = copies_[i].to;
        read<dtype>(source + copies_[i].offset, next, count_, (step == 1 ? to : line_) + from_);
        if (step == 2) {
          split(to, to + plane_);
        } else if (step > 2) {
          for (int64_t x = 0; x < step; ++x) {
            for (int64_t j = 0; j < ld_; ++j) to[x * plane_ + j] = line_[step * j + x];
          }
        }
      }
    });
  }

 private:
  int64_t plane(int64_t k0, int64_t y, int64_t x) const {
    return ((k0 * s_.grid.step[1] + y % s_.grid.step[1]) * s_.grid.step[2] + x % s_.grid.step[2]) * plane_;
  }

  void split(float* even, float* odd) const {
#if FK_HAS_AVX512
    const vu32 first = vu32::iota() + vu32::iota(), second = first + vu32::set(1);
    for (int64_t i = 0; i < ld_; i += VL) {
      const vf32 low = vf32::load(line_ + 2 * i), high = vf32::load(line_ + 2 * i + VL);
      const __mmask16 lanes = ld_ - i >= VL ? 0xFFFF : static_cast<__mmask16>((1u << (ld_ - i)) - 1u);
      _mm512_mask_storeu_ps(even + i, lanes, _mm512_permutex2var_ps(low.v, first.v, high.v));
      _mm512_mask_storeu_ps(odd + i, lanes, _mm512_permutex2var_ps(low.v, second.v, high.v));
    }
#else
    for (int64_t i = 0; i < ld_; ++i) {
      even[i] = line_[2 * i];
      odd[i] = line_[2 * i + 1];
    }
#endif
  }

  const Slide& s_;
  const Run at_;
  int64_t x_, ld_, rows_, plane_;
  int64_t from_ = 0, count_ = 0, copy_count_ = 0;  // pixels of a line that exist; lines
  float *planes_ = nullptr, *line_ = nullptr;
  Copy* copies_ = nullptr;
};

}  // namespace

void slide_pixels(const Slide& s, const Patch& p) {
  static constexpr auto slide = slides(std::make_integer_sequence<int, MAX_VECTORS>());
  Planes source(s, p);
  const Axis* const axis = s.axis;
  const int64_t most_taps = axis[0].count * axis[1].count * axis[2].count;
  const int64_t vectors = ((p.lines - 1) * source.ld() + p.count + VL - 1) / VL;
  Scratch scratch(4 * (Codes::SCRATCH_FLOATS + slide_code_floats(s.f) + source.floats() + source.line_floats() +
                       (vectors + 1) * VL) +
                  1024 + 2 * most_taps * static_cast<int64_t>(sizeof(int64_t)) +
                  p.lines * static_cast<int64_t>(sizeof(Run)) +
                  source.most_copies() * static_cast<int64_t>(sizeof(Copy)));
  const float* const codes = slide_codes(s.f, p, scratch);
  float* const planes = scratch.take<float>(source.floats());
  float* const line = scratch.take<float>(source.line_floats());
  float* const sums = scratch.take<float>((vectors + 1) * VL);
  int64_t* const distance = scratch.take<int64_t>(most_taps);
  int64_t* const columns = scratch.take<int64_t>(most_taps);
  Run* const runs = scratch.take<Run>(p.lines);
  for (int64_t i = 0; i < p.lines; ++i) {
    runs[i] = s.line(p.line + i);
    runs[i].lane = i * source.ld();
    runs[i].count = p.count;
    runs[i].q.x[2] = p.x;
  }
  source.start(planes, line, scratch.take<Copy>(source.most_copies()));
  int64_t taps = 0;
  for (int64_t k0 = 0; k0 < axis[0].count; ++k0) {
    for (int64_t k1 = 0; k1 < axis[1].count; ++k1) {
      for (int64_t k2 = 0; k2 < axis[2].count; ++k2) {
        distance[taps] = source.distance(k0, k1, k2);
        columns[taps++] = s.column(k0, k1, k2);
      }
    }
  }
  for (int64_t i = 0; i < p.channels; ++i) {
    const int64_t channel = (p.channel + i) / s.multiplier;
    if (!i || channel != (p.channel + i - 1) / s.multiplier) source.fill(channel);
    for (int64_t at = 0; at < vectors; at += MAX_VECTORS) {
      const int64_t count = std::min<int64_t>(MAX_VECTORS, vectors - at);
      slide[count - 1](planes + at * VL, distance, codes + i, columns, taps, sums + at * VL);
    }
    s.result.store_lanes(sums, source.ld(), p.channel + i, 1, runs, p.lines);
  }
}

}  // namespace fk::FK_ISA_NS
