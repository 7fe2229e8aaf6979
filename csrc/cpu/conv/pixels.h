// Pixels of a layer packed for products on vectors: which source element each pixel of a tile reads under a tap, and
// the copies.
#pragma once
#include <algorithm>

#include "cpu/conv/blocks.h"
#include "cpu/simd/transpose_tile.h"
#include "frozen/geometry.h"
#include "frozen/weight.h"

namespace fk::FK_ISA_NS {

struct Position {
  int64_t x[3];
};

// Pixels q of a grid, counted (batch, q0, q1, q2), and the source pixel q * step + shift(tap) of each.
struct Grid {
  int64_t batch, size[3];
  int64_t step[3], limit[3];  // source pixels outside [0, limit) are padding
  int64_t pixels() const { return batch * size[0] * size[1] * size[2]; }
};

constexpr int64_t NOWHERE = INT64_MIN;  // the offset of a pixel without a source, or of a lane without a result

// Consecutive pixels of one grid line.
struct Run {
  int64_t lane, count, batch;
  Position q;
};

// A part of a run whose source pixels exist; offset of its first, in elements.
struct Span {
  int64_t lane, count, offset;
};

inline int64_t find_runs(const Grid& grid, int64_t first, int64_t count, Run* runs) {
  int64_t rest = first;
  Position q;
  for (int d = 2; d >= 0; --d) {
    q.x[d] = rest % grid.size[d];
    rest /= grid.size[d];
  }
  int64_t batch = rest, found = 0;
  for (int64_t lane = 0; lane < count;) {
    const int64_t length = std::min(count - lane, grid.size[2] - q.x[2]);
    runs[found++] = {lane, length, batch, q};
    lane += length;
    q.x[2] = 0;
    if (++q.x[1] == grid.size[1]) {
      q.x[1] = 0;
      if (++q.x[0] == grid.size[0]) {
        q.x[0] = 0;
        ++batch;
      }
    }
  }
  return found;
}

inline int64_t find_spans(const Grid& grid, const Activations& source, const Position& shift, const Run* runs,
                          int64_t count, Span* spans) {
  const int64_t* const stride = source.stride + SPATIAL;
  const int64_t step = grid.step[2], limit = grid.limit[2];
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Run& run = runs[i];
    const int64_t a = run.q.x[0] * grid.step[0] + shift.x[0], b = run.q.x[1] * grid.step[1] + shift.x[1];
    if (a < 0 || a >= grid.limit[0] || b < 0 || b >= grid.limit[1]) continue;
    const int64_t x = run.q.x[2] * step + shift.x[2];
    int64_t from = 0, to = run.count;
    if (x < 0) from = (step - 1 - x) / step;
    if (x + (to - 1) * step >= limit) to = x < limit ? (limit - x + step - 1) / step : 0;
    if (from >= to) continue;
    const int64_t offset =
        run.batch * source.stride[BATCH] + a * stride[0] + b * stride[1] + (x + from * step) * stride[2];
    spans[found++] = {run.lane + from, to - from, offset};
  }
  return found;
}

template <int DTYPE>
struct Element {
  using Type = uint16_t;
};
template <>
struct Element<FLOAT32> {
  using Type = float;
};

template <int DTYPE>
FK_INLINE float load_one(const typename Element<DTYPE>::Type* p) {
  if constexpr (DTYPE == FLOAT32) return *p;
  if constexpr (DTYPE == BFLOAT16) return bf16_to_float(*p);
  if constexpr (DTYPE == FLOAT16) return f16_to_float(*p);
}
template <int DTYPE>
FK_INLINE vf32 load_vector(const typename Element<DTYPE>::Type* p) {
  if constexpr (DTYPE == FLOAT32) return vf32::load(p);
  if constexpr (DTYPE == BFLOAT16) return load_bf16(p);
  if constexpr (DTYPE == FLOAT16) return load_f16(p);
}
template <int DTYPE>
FK_INLINE void store_one(typename Element<DTYPE>::Type* p, float x) {
  if constexpr (DTYPE == FLOAT32) *p = x;
  if constexpr (DTYPE == BFLOAT16) *p = float_to_bf16(x);
  if constexpr (DTYPE == FLOAT16) *p = float_to_f16(x);
}
template <int DTYPE>
FK_INLINE void store_vector(typename Element<DTYPE>::Type* p, vf32 x) {
  if constexpr (DTYPE == FLOAT32) x.store(p);
  if constexpr (DTYPE == BFLOAT16) store_bf16(p, x);
  if constexpr (DTYPE == FLOAT16) store_f16(p, x);
}

// The first `count` < VL lanes.
template <int DTYPE>
FK_INLINE void store_first(typename Element<DTYPE>::Type* p, vf32 x, int64_t count) {
#if FK_HAS_AVX512
  if constexpr (DTYPE == FLOAT32) return _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), x.v);
#elif FK_HAS_AVX2
  if constexpr (DTYPE == FLOAT32) {
    const __m256i lanes = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), vu32::iota().v);
    return _mm256_maskstore_ps(p, lanes, x.v);
  }
#endif
  alignas(64) typename Element<DTYPE>::Type all[VL];
  store_vector<DTYPE>(all, x);
#if FK_HAS_AVX512
  if constexpr (DTYPE != FLOAT32) {
    const __m256i halves = _mm256_load_si256(reinterpret_cast<const __m256i*>(all));
    return _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << count) - 1u), halves);
  }
#endif
  memcpy(p, all, static_cast<size_t>(count) * sizeof(*p));
}

// The first `count` lanes, or all.
template <int DTYPE>
FK_INLINE void store_some(typename Element<DTYPE>::Type* p, vf32 x, int64_t count) {
  if (count >= VL) {
    store_vector<DTYPE>(p, x);
  } else {
    store_first<DTYPE>(p, x, count);
  }
}

// Calls fn(std::integral_constant<int, dtype>).
template <class Fn>
FK_INLINE void with_any_dtype(int dtype, const Fn& fn) {
  if (dtype == BFLOAT16) return fn(std::integral_constant<int, BFLOAT16>());
  if (dtype == FLOAT16) return fn(std::integral_constant<int, FLOAT16>());
  fn(std::integral_constant<int, FLOAT32>());
}

// Inputs, results and biases of libfrozen are float32 alone.
#ifdef FK_LIBRARY
constexpr bool HAS_HALVES = false;
#else
constexpr bool HAS_HALVES = true;
#endif

// The same of inputs, results and biases.
template <class Fn>
FK_INLINE void with_dtype(int dtype, const Fn& fn) {
  if constexpr (HAS_HALVES) return with_any_dtype(dtype, fn);
  fn(std::integral_constant<int, FLOAT32>());
}

// to[i] = from[i * step]
template <int DTYPE>
FK_INLINE void read(const typename Element<DTYPE>::Type* from, int64_t step, int64_t count, float* to) {
  int64_t i = 0;
  if (step == 1) {
    for (; i + VL <= count; i += VL) load_vector<DTYPE>(from + i).store(to + i);
#if FK_HAS_AVX512
    if (i < count) {
      const __mmask16 rest = static_cast<__mmask16>((1u << (count - i)) - 1u);
      if constexpr (DTYPE == FLOAT32) {
        _mm512_mask_storeu_ps(to + i, rest, _mm512_maskz_loadu_ps(rest, from + i));
      } else {
        const __m256i half = _mm256_maskz_loadu_epi16(rest, from + i);
        const __m512 x = DTYPE == FLOAT16 ? _mm512_cvtph_ps(half)
                                          : _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
        _mm512_mask_storeu_ps(to + i, rest, x);
      }
    }
    return;
#endif
  }
#if FK_HAS_AVX512
  if constexpr (DTYPE == FLOAT32) {
    if (step > -(1 << 24) && step < 1 << 24) {
      const __m512i index = _mm512_mullo_epi32(vu32::iota().v, _mm512_set1_epi32(static_cast<int>(step)));
      for (; i < count; i += VL) {
        const __mmask16 lanes = count - i >= VL ? 0xFFFF : static_cast<__mmask16>((1u << (count - i)) - 1u);
        const __m512 x = _mm512_mask_i32gather_ps(_mm512_setzero_ps(), lanes, index, from + i * step, 4);
        _mm512_mask_storeu_ps(to + i, lanes, x);
      }
      return;
    }
  }
#endif
  for (; i < count; ++i) to[i] = load_one<DTYPE>(from + i * step);
}

// What becomes of sums before they are rounded.
struct Finish {
  vf32 factor, bias;
  bool with_relu;

  FK_INLINE vf32 operator()(vf32 sum) const {
    const vf32 x = sum * factor + bias;
    return with_relu ? relu(x) : x;
  }
};

// to[i * step] = finish(from[i]), rounded. Reads up to the next multiple of VL.
template <int DTYPE>
FK_INLINE void write(const float* from, int64_t count, typename Element<DTYPE>::Type* to, int64_t step,
                     const Finish& finish) {
  if (step == 1) {
    int64_t i = 0;
    for (; i + VL <= count; i += VL) store_vector<DTYPE>(to + i, finish(vf32::load(from + i)));
    if (i < count) store_first<DTYPE>(to + i, finish(vf32::load(from + i)), count - i);
    return;
  }
  for (int64_t i = 0; i < count; i += VL) {
    alignas(64) float rest[VL];
    finish(vf32::load(from + i)).store(rest);
    for (int64_t j = 0; j < std::min<int64_t>(VL, count - i); ++j) store_one<DTYPE>(to + (i + j) * step, rest[j]);
  }
}

inline void clear(float* p, int64_t count) { memset(p, 0, static_cast<size_t>(count) * sizeof(float)); }

// out[channel][lane]; `width` lanes are written, zero where there is no source.
inline void pack_lanes(const Activations& source, const Grid& grid, const Span* spans, int64_t count, int64_t width,
                       int64_t channel, int64_t channels, float* out, int64_t ld) {
  int64_t covered = 0;
  for (int64_t i = 0; i < count; ++i) covered += spans[i].count;
  if (covered < width) {
    for (int64_t c = 0; c < channels; ++c) clear(out + c * ld, width);
  }
  const int64_t step = grid.step[2] * source.stride[SPATIAL + 2], next = source.stride[CHANNEL];
  with_dtype(source.dtype, [&](auto dtype) {
    const auto* const base = static_cast<const typename Element<dtype>::Type*>(source.data) + channel * next;
    for (int64_t i = 0; i < count; ++i) {
      const auto* from = base + spans[i].offset;
      float* to = out + spans[i].lane;
      for (int64_t c = 0; c < channels; ++c, from += next, to += ld) read<dtype>(from, step, spans[i].count, to);
    }
  });
}

// out[pixel][channel] for `pixels` pixels, zero where there is no source.
inline void pack_channels(const Activations& source, const Grid& grid, const Span* spans, int64_t count, int64_t pixels,
                          int64_t channel, int64_t channels, float* out, int64_t ld = LD) {
  const int64_t step = grid.step[2] * source.stride[SPATIAL + 2], next = source.stride[CHANNEL];
  with_dtype(source.dtype, [&](auto dtype) {
    const auto* const base = static_cast<const typename Element<dtype>::Type*>(source.data) + channel * next;
    int64_t pixel = 0;
    for (int64_t i = 0; i < count; ++i) {
      for (; pixel < spans[i].lane; ++pixel) clear(out + pixel * ld, channels);
      const auto* from = base + spans[i].offset;
      for (const int64_t end = pixel + spans[i].count; pixel < end; ++pixel, from += step) {
        read<dtype>(from, next, channels, out + pixel * ld);
      }
    }
    for (; pixel < pixels; ++pixel) clear(out + pixel * ld, channels);
  });
}

// to[j][i] = from[i][j]; both are read and written up to multiples of VL.
inline void transpose(const float* from, int64_t ld_from, int64_t rows, int64_t cols, float* to, int64_t ld_to) {
  for (int64_t i = 0; i < rows; i += VL) {
    for (int64_t j = 0; j < cols; j += VL) {
      transpose_tile(from + i * ld_from + j, 4 * ld_from, to + j * ld_to + i, 4 * ld_to);
    }
  }
}

}  // namespace fk::FK_ISA_NS
