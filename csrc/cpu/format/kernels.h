// The table of format, search and weight kernels; one instance per instruction set. Matrices are [rows, cols],
// contiguous.
#pragma once
#include <vector>

#include "frozen/weight.h"

namespace fk {

// Scores of one tensor, for a selection over several.
struct ScoreSpan {
  const void* data;
  int64_t count;
  DType dtype;
};

// Element (row, column k = tap * channels + c) of a torch weight (d0, channels, *taps) lies at
// row * row_stride + c * channel_stride + tap_offsets[tap].
struct WeightStrides {
  int64_t channels, taps, row_stride, channel_stride;
  const int64_t* tap_offsets;
};

// A weight of any strides; `data` of `dtype` is element (0, 0).
struct StridedWeight {
  const void* data;
  DType dtype;
  WeightStrides strides;
};

// Which weights of a stored tensor are kept: a plane [rows, words], or, where that is null, a bit per weight in stream
// order.
struct KeptWeights {
  const uint32_t* plane;
  const uint8_t* stream;
  int64_t rows;
};

// The kept values of a stored tensor in stream order, and where those of each (row, chunk) begin. With `row_scale` they
// are int8, else of `dtype`.
struct PackedValues {
  const void* values;
  DType dtype;
  const float* row_scale;
  const int64_t* offsets;
};

struct FormatKernels {
  // Element (i, j) of these four is position (row0 + i, col0 + j).
  void (*codes)(const Frozen&, int64_t row0, int64_t col0, int16_t* out, int threads);
  void (*draws)(const Frozen&, int64_t row0, int64_t col0, int32_t* out, int threads);
  void (*partition)(const Frozen&, int64_t row0, int64_t col0, int8_t* out, int threads);
  void (*uniform_scores)(const Frozen&, int64_t row0, int64_t col0, float bound, float* out, int threads);

  void (*histogram)(const Frozen&, int64_t* counts, int threads);         // [65536] of u
  void (*partition_counts)(const Frozen&, int64_t* counts, int threads);  // pruned, locked, free
  void (*offsets)(const Frozen&, int64_t* out, int threads);
  void (*free_draws)(const Frozen&, uint32_t purpose, int32_t* out, int threads);
  void (*keep_plane)(const Frozen&, uint32_t* out, int threads);
  void (*pack_plane)(const Frozen&, uint8_t* stream, int64_t bytes, int threads);  // from `keep` and `offsets`
  void (*sign_plane)(const Frozen&, uint32_t* out, int threads);
  void (*byte_plane)(const Frozen&, uint8_t* out, int threads);

  // pack fills `stream` of ceil(free / 8) bytes, pad bits included.
  int64_t (*count_free)(const int8_t* partition, int64_t n, int threads);
  void (*pack)(const uint8_t* keep, const int8_t* partition, int64_t rows, int64_t cols, uint8_t* stream, int64_t bytes,
               int threads);
  void (*unpack)(const uint8_t* stream, int64_t bytes, const int8_t* partition, int64_t rows, int64_t cols,
                 uint8_t* keep, int threads);
  void (*planes)(const uint8_t* keep, int64_t rows, int64_t cols, uint32_t* out, int threads);
  int64_t (*popcount)(const uint8_t* data, int64_t bytes, int threads);

  // The rank-th smallest key, rank in 1 .. total; key > `key` as bits.
  uint32_t (*select)(const ScoreSpan* spans, int64_t count, int64_t rank, int threads);
  void (*pack_above)(const ScoreSpan& scores, uint32_t key, uint8_t* out, int threads);

  void (*weight)(const Frozen&, int64_t channels, int64_t taps, DType dtype, void* out, int threads);
  void (*weight_grad_scores)(const Frozen&, const void* grad, DType grad_dtype, const WeightStrides&,
                             const void* scores, DType score_dtype, void* out, int threads);
  void (*embedding)(const Frozen&, const int64_t* indices, int64_t count, int64_t padding_idx, DType dtype, void* out,
                    int threads);
  // grad is [count, cols] with the two strides.
  void (*embedding_grad_scores)(const Frozen&, const void* grad, DType grad_dtype, int64_t stride0, int64_t stride1,
                                const int64_t* indices, int64_t count, int64_t padding_idx, const void* scores,
                                DType score_dtype, void* out, int threads);

  // Positions in stream order of the weights that enter, best first, then of as many that leave, worst first.
  std::vector<int64_t> (*swap)(const ScoreSpan& scores, const uint8_t* mask, int64_t kept, double rate, int threads);
  void (*flip)(uint8_t* mask, int64_t bytes, const int64_t* positions, int64_t count);

  // Stored weights. Results are contiguous, in torch's order or in stream order.
  void (*plane_offsets)(const uint32_t* keep, int64_t rows, int64_t cols, int64_t* out, int threads);
  // Elements of `bytes` 1, 2, 4 or 8.
  void (*pack_values)(const void* weight, int64_t bytes, const WeightStrides&, const KeptWeights&,
                      const int64_t* offsets, void* out, int threads);
  void (*stored_weight)(const StridedWeight& values, const KeptWeights&, DType out_dtype, void* out, int threads);
  void (*packed_weight)(const PackedValues&, int64_t channels, int64_t taps, const KeptWeights&, DType out_dtype,
                        void* out, int threads);
  void (*stored_grad_scores)(int64_t rows, const StridedWeight& grad, const StridedWeight& values, DType score_dtype,
                             void* out, int threads);
};

}  // namespace fk
