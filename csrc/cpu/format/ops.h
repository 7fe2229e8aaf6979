// Declarations of one variant's kernels; their meaning is in kernels.h.
#pragma once
#include "cpu/format/kernels.h"
#include "cpu/core/parallel.h"
#include "cpu/simd/simd.h"
#include "cpu/words/row_block.h"

namespace fk::FK_ISA_NS {

void codes(const Frozen&, int64_t row0, int64_t col0, int16_t* out, int threads);
void draws(const Frozen&, int64_t row0, int64_t col0, int32_t* out, int threads);
void partition(const Frozen&, int64_t row0, int64_t col0, int8_t* out, int threads);
void uniform_scores(const Frozen&, int64_t row0, int64_t col0, float bound, float* out, int threads);
void histogram(const Frozen&, int64_t* counts, int threads);
void partition_counts(const Frozen&, int64_t* counts, int threads);
void offsets(const Frozen&, int64_t* out, int threads);
void free_draws(const Frozen&, uint32_t purpose, int32_t* out, int threads);
void keep_plane(const Frozen&, uint32_t* out, int threads);
void pack_plane(const Frozen&, uint8_t* stream, int64_t bytes, int threads);
void sign_plane(const Frozen&, uint32_t* out, int threads);
void byte_plane(const Frozen&, uint8_t* out, int threads);
int64_t count_free(const int8_t* partition, int64_t n, int threads);
void pack(const uint8_t* keep, const int8_t* partition, int64_t rows, int64_t cols, uint8_t* stream, int64_t bytes,
          int threads);
void unpack(const uint8_t* stream, int64_t bytes, const int8_t* partition, int64_t rows, int64_t cols, uint8_t* keep,
            int threads);
void planes(const uint8_t* keep, int64_t rows, int64_t cols, uint32_t* out, int threads);
int64_t popcount(const uint8_t* data, int64_t bytes, int threads);
uint32_t select(const ScoreSpan* spans, int64_t count, int64_t rank, int threads);
void pack_above(const ScoreSpan& scores, uint32_t key, uint8_t* out, int threads);
void weight(const Frozen&, int64_t channels, int64_t taps, DType dtype, void* out, int threads);
void weight_grad_scores(const Frozen&, const void* grad, DType grad_dtype, const WeightStrides&, const void* scores,
                        DType score_dtype, void* out, int threads);
void embedding(const Frozen&, const int64_t* indices, int64_t count, int64_t padding_idx, DType dtype, void* out,
               int threads);
void embedding_grad_scores(const Frozen&, const void* grad, DType grad_dtype, int64_t stride0, int64_t stride1,
                           const int64_t* indices, int64_t count, int64_t padding_idx, const void* scores,
                           DType score_dtype, void* out, int threads);
std::vector<int64_t> swap(const ScoreSpan& scores, const uint8_t* mask, int64_t kept, double rate, int threads);
void flip(uint8_t* mask, int64_t bytes, const int64_t* positions, int64_t count);
void plane_offsets(const uint32_t* keep, int64_t rows, int64_t cols, int64_t* out, int threads);
void pack_values(const void* weight, int64_t bytes, const WeightStrides&, const KeptWeights&, const int64_t* offsets,
                 void* out, int threads);
void stored_weight(const StridedWeight& values, const KeptWeights&, DType out_dtype, void* out, int threads);
void packed_weight(const PackedValues&, int64_t channels, int64_t taps, const KeptWeights&, DType out_dtype, void* out,
                   int threads);
void stored_grad_scores(int64_t rows, const StridedWeight& grad, const StridedWeight& values, DType score_dtype,
                        void* out, int threads);

// Rows in blocks of VL and columns in segments of a few chunks, so that one long row is shared by threads too.
// fn(row0, nrows, w0, nw) with w0 a multiple of CHUNK_WORDS from `first`, itself a multiple of 4.
template <class Fn>
void for_tiles(int64_t rows, int64_t first, int64_t last, int64_t segment, int threads, const Fn& fn) {
  const int64_t across = (last - first + segment - 1) / segment, down = (rows + VL - 1) / VL;
  parallel_for(threads, across * down, [&](int64_t task) {
    const int64_t row0 = task / across * VL, w0 = first + task % across * segment;
    fn(row0, std::min<int64_t>(VL, rows - row0), w0, std::min(segment, last - w0));
  });
}

constexpr int64_t SEGMENT_WORDS = 8 * CHUNK_WORDS;

// Calls fill(values) for the 32 values of the word whose first column is element `at` of `row` (it may lie before the
// row's start); columns [lo, hi) of the word are written.
template <class T, class Fill>
FK_INLINE void put_columns(T* row, int64_t at, int64_t lo, int64_t hi, const Fill& fill) {
  if (lo == 0 && hi == 32) return fill(row + at);
  T values[32];
  fill(values);
  if (lo < hi) memcpy(row + (at + lo), values + lo, static_cast<size_t>(hi - lo) * sizeof(T));
}

// counts[i] becomes the sum of those before it, for i up to `entries`, which is past the last.
inline void sum_before(int64_t* counts, int64_t entries) {
  int64_t total = 0;
  for (int64_t i = 0; i < entries; ++i) {
    const int64_t count = counts[i];
    counts[i] = total;
    total += count;
  }
  counts[entries] = total;
}

}  // namespace fk::FK_ISA_NS
