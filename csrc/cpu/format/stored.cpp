// Stored weights: their values in torch's order at any strides, or the kept ones alone in stream order.
#include "cpu/core/scratch.h"
#include "cpu/format/ops.h"
#include "cpu/scores/writer.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t CHUNK_COLUMNS = 32 * CHUNK_WORDS;

FK_INLINE int columns_of(int64_t cols, int64_t w) { return static_cast<int>(std::min<int64_t>(32, cols - 32 * w)); }

// Offsets of a row's elements, in stream order: of a word the even columns, then the odd ones. Padded to whole words
// with the row's first element. The caller sees to it that they fit.
std::vector<int32_t> stream_places(const WeightStrides& strides) {
  const int64_t cols = strides.channels * strides.taps;
  std::vector<int32_t> places(static_cast<size_t>(round_up(cols, 32)));
  int64_t k = 0;
  for (int64_t tap = 0; tap < strides.taps; ++tap) {
    for (int64_t c = 0; c < strides.channels; ++c, ++k) {
      const int64_t even = (columns_of(cols, k / 32) + 1) / 2;
      const int64_t place = c * strides.channel_stride + strides.tap_offsets[tap];
      places[k / 32 * 32 + (k & 1) * even + (k & 31) / 2] = static_cast<int32_t>(place);
    }
  }
  return places;
}

// The bits of a word's columns in stream order: bit i for the i-th.
FK_INLINE uint32_t kept_bits(const KeptWeights& kept, int64_t row, int64_t cols, int64_t w) {
  const int n = columns_of(cols, w);
  if (!kept.plane) {
    const int64_t bytes = (kept.rows * cols + 7) / 8;
    const uint32_t bits = stream_bits(kept.stream, bytes, row * cols + 32 * w);
    return n == 32 ? bits : bits & ((1u << n) - 1u);
  }
  const uint32_t word = kept.plane[row * divide_up(cols, 32) + w];
  return n == 32 ? word : extract(word, column_mask(n));
}

// fn(row, chunk, w0, nw) for the chunks of all rows, a few thousand columns a task.
template <class Fn>
void each_chunk(int64_t rows, int64_t cols, int threads, const Fn& fn) {
  const int64_t words = divide_up(cols, 32), across = divide_up(words, SEGMENT_WORDS);
  const int64_t together = std::max<int64_t>(1, SEGMENT_WORDS / std::max<int64_t>(1, words));
  parallel_for(threads, across * divide_up(rows, together), [&](int64_t task) {
    const int64_t row0 = task / across * together, first = task % across * SEGMENT_WORDS;
    const int64_t last = std::min(first + SEGMENT_WORDS, words);
    for (int64_t row = row0; row < std::min(row0 + together, rows); ++row) {
      for (int64_t w0 = first; w0 < last; w0 += CHUNK_WORDS) {
        fn(row, w0 / CHUNK_WORDS, w0, std::min(CHUNK_WORDS, last - w0));
      }
    }
  });
}

// out[i] = row[places[i]] as float32.
FK_INLINE void gather(const void* row, DType dtype, const int32_t* places, int64_t n, float* out) {
  const auto each = [&](const auto* data, const auto& value) {
#pragma GCC unroll 8
    for (int64_t i = 0; i < n; ++i) out[i] = value(data[places[i]]);
  };
  if (dtype == FLOAT32) {
    each(static_cast<const float*>(row), [](float x) { return x; });
  } else if (dtype == BFLOAT16) {
    each(static_cast<const uint16_t*>(row), [](uint16_t x) { return bf16_to_float(x); });
  } else {
    each(static_cast<const uint16_t*>(row), [](uint16_t x) { return f16_to_float(x); });
  }
}

const void* row_of(const StridedWeight& weight, int64_t row) {
  const int64_t bytes = weight.dtype == FLOAT32 ? 4 : 2;
  return static_cast<const char*>(weight.data) + row * weight.strides.row_stride * bytes;
}

FK_INLINE vf32 load_vector(const void* data, DType dtype, int64_t at) {
  if (dtype == FLOAT32) return vf32::load(static_cast<const float*>(data) + at);
  const uint16_t* const half = static_cast<const uint16_t*>(data) + at;
  return dtype == BFLOAT16 ? load_bf16(half) : load_f16(half);
}

FK_INLINE void store_vector(void* out, DType dtype, int64_t at, vf32 x) {
  if (dtype == FLOAT32) {
    x.store(static_cast<float*>(out) + at);
  } else if (dtype == BFLOAT16) {
    store_bf16(static_cast<uint16_t*>(out) + at, x);
  } else {
    store_f16(static_cast<uint16_t*>(out) + at, x);
  }
}

// out[i] = a[i] * b[i], which may be one of them.
void multiply(const void* a, DType a_dtype, const void* b, DType b_dtype, int64_t n, float* out) {
  int64_t i = 0;
  for (; i + VL <= n; i += VL) (load_vector(a, a_dtype, i) * load_vector(b, b_dtype, i)).store(out + i);
  for (; i < n; ++i) out[i] = load_element(a, a_dtype, i) * load_element(b, b_dtype, i);
}

// Puts values, in stream order, at their places in a row that begins at element `start`.
void scatter(void* out, DType dtype, int64_t start, const int32_t* places, int64_t n, const float* values) {
  if (dtype == FLOAT32) {
    float* const row = static_cast<float*>(out) + start;
#pragma GCC unroll 8
    for (int64_t i = 0; i < n; ++i) row[places[i]] = values[i];
    return;
  }
  uint16_t rounded[CHUNK_COLUMNS];
  for (int64_t i = 0; i < round_up(n, 32); i += VL) store_vector(rounded, dtype, i, vf32::load(values + i));
  uint16_t* const row = static_cast<uint16_t*>(out) + start;
#pragma GCC unroll 8
  for (int64_t i = 0; i < n; ++i) row[places[i]] = rounded[i];
}

// The offsets of columns in a contiguous weight.
std::vector<int32_t> contiguous_places(int64_t channels, int64_t taps) {
  std::vector<int64_t> tap_offsets(static_cast<size_t>(taps));
  for (int64_t tap = 0; tap < taps; ++tap) tap_offsets[tap] = tap;
  return stream_places({channels, taps, channels * taps, taps, tap_offsets.data()});
}

template <class T>
void pack_as(const T* weight, const WeightStrides& strides, const KeptWeights& kept, const int64_t* offsets, T* out,
             int threads) {
  const int64_t cols = strides.channels * strides.taps, chunks = divide_up(cols, CHUNK_COLUMNS);
  const std::vector<int32_t> places = stream_places(strides);
  each_chunk(kept.rows, cols, threads, [&](int64_t row, int64_t chunk, int64_t w0, int64_t nw) {
    const T* const values = weight + row * strides.row_stride;
    T* next = out + offsets[row * chunks + chunk];
    for (int64_t w = w0; w < w0 + nw; ++w) {
      for (uint32_t bits = kept_bits(kept, row, cols, w); bits; bits &= bits - 1) {
        *next++ = values[places[32 * w + __builtin_ctz(bits)]];
      }
    }
  });
}

}  // namespace

void plane_offsets(const uint32_t* keep, int64_t rows, int64_t cols, int64_t* out, int threads) {
  const int64_t chunks = divide_up(cols, CHUNK_COLUMNS), entries = rows * chunks;
  const KeptWeights kept{keep, nullptr, rows};
  each_chunk(rows, cols, threads, [&](int64_t row, int64_t chunk, int64_t w0, int64_t nw) {
    int64_t count = 0;
    for (int64_t w = w0; w < w0 + nw; ++w) count += __builtin_popcount(kept_bits(kept, row, cols, w));
    out[row * chunks + chunk] = count;
  });
  sum_before(out, entries);
}

void pack_values(const void* weight, int64_t bytes, const WeightStrides& strides, const KeptWeights& kept,
                 const int64_t* offsets, void* out, int threads) {
  const auto as = [&](auto* typed) {
    using T = std::remove_pointer_t<decltype(typed)>;
    pack_as(static_cast<const T*>(weight), strides, kept, offsets, typed, threads);
  };
  if (bytes == 1) return as(static_cast<uint8_t*>(out));
  if (bytes == 2) return as(static_cast<uint16_t*>(out));
  if (bytes == 4) return as(static_cast<uint32_t*>(out));
  as(static_cast<uint64_t*>(out));
}

void stored_weight(const StridedWeight& values, const KeptWeights& kept, DType out_dtype, void* out, int threads) {
  const int64_t channels = values.strides.channels, taps = values.strides.taps, cols = channels * taps;
  const std::vector<int32_t> places = stream_places(values.strides), targets = contiguous_places(channels, taps);
  each_chunk(kept.rows, cols, threads, [&](int64_t row, int64_t, int64_t w0, int64_t nw) {
    float found[CHUNK_COLUMNS];
    gather(row_of(values, row), values.dtype, places.data() + 32 * w0, 32 * nw, found);
    for (int64_t i = 0; i < nw; ++i) {
      const uint32_t bits = kept_bits(kept, row, cols, w0 + i);
      float* const word = found + 32 * i;
      for (int k = 0; k < 32; k += VL) keep_where(from_bits(bits >> k), vf32::load(word + k)).store(word + k);
    }
    scatter(out, out_dtype, row * cols, targets.data() + 32 * w0, std::min(32 * nw, cols - 32 * w0), found);
  });
}

void packed_weight(const PackedValues& packed, int64_t channels, int64_t taps, const KeptWeights& kept, DType out_dtype,
                   void* out, int threads) {
  const int64_t cols = channels * taps, chunks = divide_up(cols, CHUNK_COLUMNS);
  const std::vector<int32_t> targets = contiguous_places(channels, taps);
  each_chunk(kept.rows, cols, threads, [&](int64_t row, int64_t chunk, int64_t w0, int64_t nw) {
    float found[CHUNK_COLUMNS] = {};
    int64_t at = packed.offsets[row * chunks + chunk];
    const auto expand = [&](const auto& load) {
      for (int64_t i = 0; i < nw; ++i) {
        for (uint32_t bits = kept_bits(kept, row, cols, w0 + i); bits; bits &= bits - 1) {
          found[32 * i + __builtin_ctz(bits)] = load(at++);
        }
      }
    };
    if (packed.row_scale) {
      const float scale = packed.row_scale[row];
      expand([&](int64_t i) { return static_cast<float>(static_cast<const int8_t*>(packed.values)[i]) * scale; });
    } else if (packed.dtype == FLOAT32) {
      expand([&](int64_t i) { return static_cast<const float*>(packed.values)[i]; });
    } else {
      expand([&](int64_t i) { return load_element(packed.values, packed.dtype, i); });
    }
    scatter(out, out_dtype, row * cols, targets.data() + 32 * w0, std::min(32 * nw, cols - 32 * w0), found);
  });
}

void stored_grad_scores(int64_t rows, const StridedWeight& grad, const StridedWeight& values, DType score_dtype,
                        void* out, int threads) {
  const int64_t cols = grad.strides.channels * grad.strides.taps;
  if (cols == 0) return;
  const std::vector<int32_t> grad_places = stream_places(grad.strides), places = stream_places(values.strides);
  // Rows of one layout without gaps are multiplied as they lie and put in order once.
  const bool whole = cols <= 32 * SEGMENT_WORDS && grad_places == places &&
                     *std::max_element(places.begin(), places.end()) == cols - 1;
  each_chunk(rows, cols, threads, [&](int64_t row, int64_t, int64_t w0, int64_t nw) {
    const int64_t n = std::min(32 * nw, cols - 32 * w0), start = row * cols + 32 * w0;
    const void *const ours = row_of(grad, row), *const theirs = row_of(values, row);
    float dw[CHUNK_COLUMNS], w[CHUNK_COLUMNS];
    if (whole) {
      // The chunks of a row come one after the other.
      float* const products = Scratch(cols * 4).take<float>(cols);
      if (w0 == 0) multiply(ours, grad.dtype, theirs, values.dtype, cols, products);
      gather(products, FLOAT32, places.data() + 32 * w0, 32 * nw, dw);
    } else {
      gather(ours, grad.dtype, grad_places.data() + 32 * w0, 32 * nw, dw);
      gather(theirs, values.dtype, places.data() + 32 * w0, 32 * nw, w);
      multiply(dw, FLOAT32, w, FLOAT32, 32 * nw, dw);
    }
    int64_t i = 0;
    for (; i + VL <= n; i += VL) store_vector(out, score_dtype, start + i, vf32::load(dw + i));
    for (; i < n; ++i) store_element(out, score_dtype, start + i, dw[i]);
  });
}

}  // namespace fk::FK_ISA_NS
