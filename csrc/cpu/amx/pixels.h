// Pixels as A tiles: float inputs split into bf16 parts, once for each input pixel, and the tiles found under the taps.
#pragma once
#include "cpu/amx/tiles.h"
#include "cpu/core/scratch.h"

namespace fk::FK_LEVEL_NS {

// 32 values as PARTS bf16 vectors whose sum they are; put(part, vector) stores one. Each part takes the eight leading
// bits of what is left. Infinities and NaN go into the first part alone: inf - inf would make NaN of every result.
template <int PARTS, class Put>
FK_INLINE void split(__m512 a, __m512 b, const Put& put) {
  if constexpr (PARTS > 1) {
    const __m512 lead = _mm512_castsi512_ps(_mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
    const __mmask16 finite_a = static_cast<__mmask16>(~_mm512_fpclass_ps_mask(a, 0x99));
    const __mmask16 finite_b = static_cast<__mmask16>(~_mm512_fpclass_ps_mask(b, 0x99));
    __m512 high_a = _mm512_mask_and_ps(a, finite_a, a, lead), high_b = _mm512_mask_and_ps(b, finite_b, b, lead);
    put(0, (__m512i)_mm512_cvtne2ps_pbh(high_b, high_a));
    a = _mm512_maskz_sub_ps(finite_a, a, high_a);
    b = _mm512_maskz_sub_ps(finite_b, b, high_b);
#pragma GCC unroll 2
    for (int p = 1; p < PARTS; ++p) {
      // The last part needs no cut: its bits fit.
      high_a = p + 1 < PARTS ? _mm512_and_ps(a, lead) : a;
      high_b = p + 1 < PARTS ? _mm512_and_ps(b, lead) : b;
      put(p, (__m512i)_mm512_cvtne2ps_pbh(high_b, high_a));
      a = _mm512_sub_ps(a, high_a);
      b = _mm512_sub_ps(b, high_b);
    }
  } else {
    put(0, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
}
template <int PARTS>
FK_INLINE void put_parts(__m512 a, __m512 b, char* out, int64_t part) {
  split<PARTS>(a, b, [&](int p, __m512i x) { _mm512_storeu_si512(out + p * part, x); });
}
template <int PARTS>
FK_INLINE void put_some_parts(__m512 a, __m512 b, __mmask32 columns, char* out, int64_t part) {
  split<PARTS>(a, b, [&](int p, __m512i x) { _mm512_mask_storeu_epi16(out + p * part, columns, x); });
}

FK_INLINE __mmask16 lanes16(int64_t count) {
  return count >= 16 ? 0xFFFF : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1u);
}
FK_INLINE __mmask32 lanes32(int64_t count) { return count >= 32 ? 0xFFFFFFFFu : count <= 0 ? 0 : (1u << count) - 1u; }

template <int DTYPE>
FK_INLINE __m512 load_lanes(const typename Element<DTYPE>::Type* p, __mmask16 lanes) {
  if constexpr (DTYPE == FLOAT32) {
    return _mm512_maskz_loadu_ps(lanes, p);
  } else {
    const __m256i half = _mm256_maskz_loadu_epi16(lanes, p);
    if constexpr (DTYPE == FLOAT16) return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
  }
}

// `count` consecutive values to `out`, zero from there to `width`; `word` bytes between vectors.
template <int DTYPE>
FK_INLINE void split_values(const typename Element<DTYPE>::Type* from, int64_t count, int64_t width, char* out,
                            int64_t word, int64_t part) {
  int64_t i = 0;
  for (; i + 32 <= count; i += 32, out += word) {
    if constexpr (DTYPE == BFLOAT16) {
      _mm512_storeu_si512(out, _mm512_loadu_si512(from + i));
    } else {
      put_parts<parts_of(DTYPE)>(load_vector<DTYPE>(from + i).v, load_vector<DTYPE>(from + i + 16).v, out, part);
    }
  }
  for (; i < width; i += 32, out += word) {
    if constexpr (DTYPE == BFLOAT16) {
      _mm512_mask_storeu_epi16(out, lanes32(width - i), _mm512_maskz_loadu_epi16(lanes32(count - i), from + i));
    } else {
      put_some_parts<parts_of(DTYPE)>(load_lanes<DTYPE>(from + i, lanes16(count - i)),
                                      load_lanes<DTYPE>(from + i + 16, lanes16(count - i - 16)), lanes32(width - i),
                                      out, part);
    }
  }
}

// Channels [0, channels) of `pixels` pixels of one line to place(pixel), `width` channels with zeros past the last.
template <int DTYPE, class Place>
void split_line(const typename Element<DTYPE>::Type* from, int64_t pixel_step, int64_t channel_step, int64_t pixels,
                int64_t channels, int64_t width, const Place& place) {
  const int64_t part = place.part;
  if (channel_step == 1) {
    for (int64_t i = 0; i < pixels; ++i) {
      split_values<DTYPE>(from + i * pixel_step, channels, width, place(i, 0), place.word, part);
    }
    return;
  }
  alignas(64) float lines[32 * 16], turned[16 * 32];
  for (int64_t c = 0; c < width; c += 32) {
    const int64_t used = std::min<int64_t>(32, channels - c);
    const __mmask32 columns = lanes32(width - c);
    if (used < 32) clear(lines, 32 * 16);
    for (int64_t i = 0; i < pixels; i += 16) {
      const int64_t count = std::min<int64_t>(16, pixels - i);
      for (int64_t j = 0; j < used; ++j) {
        read<DTYPE>(from + (c + j) * channel_step + i * pixel_step, pixel_step, count, lines + j * 16);
      }
      transpose_tile(lines, 4 * 16, turned, 4 * 32);
      transpose_tile(lines + 16 * 16, 4 * 16, turned + 16, 4 * 32);
      for (int64_t j = 0; j < count; ++j) {
        put_some_parts<parts_of(DTYPE)>(_mm512_load_ps(turned + 32 * j), _mm512_load_ps(turned + 32 * j + 16), columns,
                                        place(i + j, c / 32), part);
      }
    }
  }
}

// Packed A tiles: [pixel tile][word][part][16 pixels][64 bytes].
struct PackedPlace {
  char* data;
  int64_t words, first, word;  // words of a tile, first pixel, bytes between words
  int64_t part = TILE_BYTES;

  char* operator()(int64_t pixel, int64_t w) const {
    const int64_t at = first + pixel;
    return data + (at / TILE * words + w) * word + at % TILE * WORD_BYTES;
  }
};

// Channels of a staged pixel, how many there are with the zeros past the last, and bytes from one pixel to the next.
struct StagedPixel {
  int64_t channels, width, bytes;
};

// The wide pixels under all taps of a block of narrow pixels, padding included: [part][segment][tap of dimension
// 0][row][column][channel]. A segment is the part of the block with one batch entry and one place in dimension 0.
class Region {
 public:
  struct Segment {
    int64_t batch, q0, q1, rows;
  };

  Region(const Geometry& g, const Run* runs, int64_t count, Segment* segments) : g_(g), segments_(segments) {
    int64_t most_rows = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Run& run = runs[i];
      const bool joins = count_ && segments[count_ - 1].batch == run.batch && segments[count_ - 1].q0 == run.q.x[0];
      if (!joins) segments[count_++] = {run.batch, run.q.x[0], run.q.x[1], 0};
      Segment& segment = segments[count_ - 1];
      segment.rows = run.q.x[1] - segment.q1 + 1;
      most_rows = std::max(most_rows, segment.rows);
    }
    const bool part_of_line = count == 1;
    first_column_ = part_of_line ? runs[0].q.x[2] : 0;
    rows_ = extent(g, 1, most_rows);
    columns_ = extent(g, 2, part_of_line ? runs[0].count : g.narrow[2]);
  }

  // Upper bounds for a block of `pixels` narrow pixels.
  static int64_t most_columns(const Geometry& g) { return extent(g, 2, g.narrow[2]); }
  static int64_t most_pixels(const Geometry& g, int64_t pixels) {
    const int64_t line = g.narrow[2], plane = line * g.narrow[1], columns = most_columns(g);
    // Blocks start at multiples of their size.
    if (pixels % plane == 0) return pixels / plane * g.taps[0] * extent(g, 1, g.narrow[1]) * columns;
    if (plane % pixels == 0 && pixels % line == 0) return g.taps[0] * extent(g, 1, pixels / line) * columns;
    if (line % pixels == 0) return g.taps[0] * extent(g, 1, 1) * extent(g, 2, pixels);
    const int64_t lines = std::min(pixels, (pixels - 1) / line + 2);
    const int64_t segments = std::min(lines, (lines - 1) / g.narrow[1] + 2);
    return segments * g.taps[0] * extent(g, 1, std::min(lines, g.narrow[1])) * columns;
  }

  int64_t pixels() const { return count_ * g_.taps[0] * rows_ * columns_; }
  int64_t step() const { return step(g_, 2); }  // staged pixels between neighbours of a line

  // Staged pixel of narrow pixel (segment, q1, q2) under the first tap, and distance to the one under `tap`.
  int64_t base(int64_t segment, int64_t q1, int64_t q2) const {
    const int64_t row = segment * g_.taps[0] * rows_ + (q1 - segments_[segment].q1) * step(g_, 1);
    return row * columns_ + (q2 - first_column_) * step(g_, 2);
  }
  int64_t tap(const Position& p) const {
    return (p.x[0] * rows_ + p.x[1] * g_.dilation[1]) * columns_ + p.x[2] * g_.dilation[2];
  }

  // Splits channels from `channel` on of the region to out.
  void stage(const Activations& wide, int64_t channel, const StagedPixel& pixel, char* out, int64_t part,
             float* line) const {
    with_dtype(wide.dtype, [&](auto dtype) { stage_as<dtype>(wide, channel, pixel, out, part, line); });
  }

 private:
  static int64_t step(const Geometry& g, int d) { return g.taps[d] == 1 ? 1 : g.stride[d]; }
  static int64_t extent(const Geometry& g, int d, int64_t narrow) {
    return (narrow - 1) * step(g, d) + (g.taps[d] - 1) * g.dilation[d] + 1;
  }
  // Wide pixels between staged ones.
  int64_t stretch(int d) const { return g_.taps[d] == 1 ? g_.stride[d] : 1; }

  template <int DTYPE>
  void stage_as(const Activations& wide, int64_t channel, const StagedPixel& pixel, char* out, int64_t part,
                float* line) const {
    using T = typename Element<DTYPE>::Type;
    constexpr int PARTS = parts_of(DTYPE);
    const auto zero = [&](char* at, int64_t pixels) {
      for (int p = 0; p < PARTS; ++p) memset(at + p * part, 0, static_cast<size_t>(pixels * pixel.bytes));
    };
    const int64_t x0 = first_column_ * g_.stride[2] - g_.padding[2], by = stretch(2);
    const int64_t left = x0 >= 0 ? 0 : std::min(columns_, (by - 1 - x0) / by);
    const int64_t right = x0 >= g_.wide[2] ? left : std::clamp((g_.wide[2] - x0 + by - 1) / by, left, columns_);
    const T* const data = static_cast<const T*>(wide.data) + channel * wide.stride[CHANNEL];
    for (int64_t s = 0; s < count_; ++s) {
      for (int64_t t = 0; t < g_.taps[0]; ++t) {
        const int64_t i0 = segments_[s].q0 * g_.stride[0] - g_.padding[0] + t * g_.dilation[0];
        for (int64_t r = 0; r < rows_; ++r, out += columns_ * pixel.bytes) {
          const int64_t i1 = segments_[s].q1 * g_.stride[1] - g_.padding[1] + r * stretch(1);
          if (i0 < 0 || i0 >= g_.wide[0] || i1 < 0 || i1 >= g_.wide[1]) {
            zero(out, columns_);
            continue;
          }
          zero(out, left);
          zero(out + right * pixel.bytes, columns_ - right);
          const T* const from = data + segments_[s].batch * wide.stride[BATCH] + i0 * wide.stride[SPATIAL] +
                                i1 * wide.stride[SPATIAL + 1] + (x0 + left * by) * wide.stride[SPATIAL + 2];
          split_row<DTYPE>(from, by * wide.stride[SPATIAL + 2], wide.stride[CHANNEL], right - left, pixel,
                           out + left * pixel.bytes, part, line);
        }
      }
    }
  }

  template <int DTYPE>
  static void split_row(const typename Element<DTYPE>::Type* from, int64_t pixel_step, int64_t channel_step,
                        int64_t pixels, const StagedPixel& pixel, char* out, int64_t part, float* line) {
    const int64_t channels = pixel.channels;
    const bool gaps = pixel.bytes != 2 * channels, one_run = channel_step == 1 && pixel_step == channels;
    if (gaps || (channels >= TILE && !one_run)) {
      struct Place {
        char* data;
        int64_t pixel_bytes, part, word = WORD_BYTES;
        char* operator()(int64_t pixel, int64_t w) const { return data + pixel * pixel_bytes + w * WORD_BYTES; }
      };
      split_line<DTYPE>(from, pixel_step, channel_step, pixels, channels, pixel.width, Place{out, pixel.bytes, part});
      return;
    }
    // Few channels, no gaps between pixels: the whole line as one run of values.
    const int64_t count = pixels * channels;
    if (one_run) {
      split_values<DTYPE>(from, count, count, out, WORD_BYTES, part);
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < pixels; ++i) {
        line[i * channels + c] = load_one<DTYPE>(from + i * pixel_step + c * channel_step);
      }
    }
    for (int64_t i = 0; i < count; i += 32, out += WORD_BYTES) {
      put_some_parts<parts_of(DTYPE)>(_mm512_maskz_loadu_ps(lanes16(count - i), line + i),
                                      _mm512_maskz_loadu_ps(lanes16(count - i - 16), line + i + 16), lanes32(count - i),
                                      out, part);
    }
  }

  const Geometry& g_;
  Segment* segments_;
  int64_t count_ = 0, first_column_, rows_, columns_;
};

}  // namespace fk::FK_LEVEL_NS
