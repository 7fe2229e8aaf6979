// Bindings of the format, search and weight kernels. Every argument that ends in _at is a CPU address.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "cpu/format/kernels.h"
#include "cpu/core/isa.h"
#include "binding/bind.h"
#include "binding/pack.h"

FK_KERNEL_TABLE(FormatKernels, format_kernels)

namespace py = pybind11;

namespace fk {

namespace {

const FormatKernels& table() { return active_format_kernels(); }

// The (address, count, dtype id) of a score tensor.
using ScoreArgs = std::tuple<int64_t, int64_t, int>;

ScoreSpan to_span(const ScoreArgs& args) {
  const auto& [at, count, dtype] = args;
  if (dtype == FLOAT16) throw std::invalid_argument("scores are float16, expected float32 or bfloat16");
  return {pointer<const void>(at), count, to_dtype(dtype)};
}

// A matrix of the generator: header, code, rows, cols, row0, col0.
template <class T, class Kernel>
void shard(const Kernel& kernel, int64_t header_at, int code, const std::array<int64_t, 4>& place, int64_t out_at,
           int threads) {
  const auto& [rows, cols, row0, col0] = place;
  if (row0 < 0 || col0 < 0) {
    throw std::invalid_argument("row0 and col0 are " + std::to_string(row0) + " and " + std::to_string(col0) +
                                ", expected 0 or more");
  }
  to_frozen(header_at, code, row0 + rows, col0 + cols);
  kernel(to_frozen(header_at, code, rows, cols), row0, col0, pointer<T>(out_at), threads);
}

Frozen with_offsets(int64_t header_at, int64_t offsets_at, int64_t rows, int64_t cols) {
  Frozen f = to_frozen(header_at, SIGN_CODE, rows, cols);
  f.offsets = pointer<const int64_t>(offsets_at);
  return f;
}

Frozen with_scores(const Pack& pack, const ScoreSpan& scores) {
  const Frozen f = to_frozen(pack);
  require_equal("number of scores", scores.count, free_count(f));
  return f;
}

void bind_generators(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "codes",
      [](int64_t header_at, int code, const std::array<int64_t, 4>& place, int64_t out_at, int threads) {
        shard<int16_t>(table().codes, header_at, code, place, out_at, threads);
      },
      py::arg("header_at"), py::arg("code"), py::arg("place"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "draws",
      [](int64_t header_at, const std::array<int64_t, 4>& place, int64_t out_at, int threads) {
        shard<int32_t>(table().draws, header_at, SIGN_CODE, place, out_at, threads);
      },
      py::arg("header_at"), py::arg("place"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "partition",
      [](int64_t header_at, const std::array<int64_t, 4>& place, int64_t out_at, int threads) {
        shard<int8_t>(table().partition, header_at, SIGN_CODE, place, out_at, threads);
      },
      py::arg("header_at"), py::arg("place"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "uniform_scores",
      [](int64_t header_at, float bound, const std::array<int64_t, 4>& place, int64_t out_at, int threads) {
        const auto kernel = [&](const Frozen& f, int64_t row0, int64_t col0, float* out, int n) {
          table().uniform_scores(f, row0, col0, bound, out, n);
        };
        shard<float>(kernel, header_at, SIGN_CODE, place, out_at, threads);
      },
      py::arg("header_at"), py::arg("bound"), py::arg("place"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "histogram",
      [](int64_t header_at, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        table().histogram(to_frozen(header_at, SIGN_CODE, rows, cols), pointer<int64_t>(out_at), threads);
      },
      py::arg("header_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "partition_counts",
      [](int64_t header_at, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        table().partition_counts(to_frozen(header_at, SIGN_CODE, rows, cols), pointer<int64_t>(out_at), threads);
      },
      py::arg("header_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "offsets",
      [](int64_t header_at, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        table().offsets(to_frozen(header_at, SIGN_CODE, rows, cols), pointer<int64_t>(out_at), threads);
      },
      py::arg("header_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "free_draws",
      [](int64_t header_at, int64_t offsets_at, int64_t rows, int64_t cols, uint32_t purpose, int64_t out_at,
         int threads) {
        table().free_draws(with_offsets(header_at, offsets_at, rows, cols), purpose, pointer<int32_t>(out_at), threads);
      },
      py::arg("header_at"), py::arg("offsets_at"), py::arg("rows"), py::arg("cols"), py::arg("purpose"),
      py::arg("out_at"), py::arg("threads"), nogil);
}

void bind_streams(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "keep_plane",
      [](const Pack& pack, int64_t out_at, int threads) {
        table().keep_plane(to_frozen(pack), pointer<uint32_t>(out_at), threads);
      },
      py::arg("pack"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "pack_plane",
      [](const Pack& pack, int64_t out_at, int64_t bytes, int threads) {
        const Frozen f = to_frozen(pack);
        require_equal("stream bytes", bytes, (free_count(f) + 7) / 8);
        table().pack_plane(f, pointer<uint8_t>(out_at), bytes, threads);
      },
      py::arg("pack"), py::arg("out_at"), py::arg("bytes"), py::arg("threads"), nogil);
  m.def(
      "draw_plane",
      [](int64_t header_at, int code, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        const Frozen f = to_frozen(header_at, code, rows, cols);
        if (code == CONSTANT_CODE) throw std::invalid_argument("code is constant, expected one that has draws");
        if (code == SIGN_CODE) {
          table().sign_plane(f, pointer<uint32_t>(out_at), threads);
        } else {
          table().byte_plane(f, pointer<uint8_t>(out_at), threads);
        }
      },
      py::arg("header_at"), py::arg("code"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"),
      nogil);
  m.def(
      "count_free",
      [](int64_t partition_at, int64_t n, int threads) {
        return table().count_free(pointer<const int8_t>(partition_at), n, threads);
      },
      py::arg("partition_at"), py::arg("n"), py::arg("threads"), nogil);
  m.def(
      "pack",
      [](int64_t keep_at, int64_t partition_at, int64_t rows, int64_t cols, int64_t out_at, int64_t bytes,
         int threads) {
        table().pack(pointer<const uint8_t>(keep_at), pointer<const int8_t>(partition_at), rows, cols,
                     pointer<uint8_t>(out_at), bytes, threads);
      },
      py::arg("keep_at"), py::arg("partition_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"),
      py::arg("bytes"), py::arg("threads"), nogil);
  m.def(
      "unpack",
      [](int64_t stream_at, int64_t bytes, int64_t partition_at, int64_t rows, int64_t cols, int64_t out_at,
         int threads) {
        table().unpack(pointer<const uint8_t>(stream_at), bytes, pointer<const int8_t>(partition_at), rows, cols,
                       pointer<uint8_t>(out_at), threads);
      },
      py::arg("stream_at"), py::arg("bytes"), py::arg("partition_at"), py::arg("rows"), py::arg("cols"),
      py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "planes",
      [](int64_t keep_at, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        table().planes(pointer<const uint8_t>(keep_at), rows, cols, pointer<uint32_t>(out_at), threads);
      },
      py::arg("keep_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "popcount",
      [](int64_t data_at, int64_t bytes, int threads) {
        return table().popcount(pointer<const uint8_t>(data_at), bytes, threads);
      },
      py::arg("data_at"), py::arg("bytes"), py::arg("threads"), nogil);
}

void bind_search(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "select",
      [](const std::vector<ScoreArgs>& scores, int64_t rank, int threads) {
        std::vector<ScoreSpan> spans;
        for (const ScoreArgs& args : scores) spans.push_back(to_span(args));
        return table().select(spans.data(), static_cast<int64_t>(spans.size()), rank, threads);
      },
      py::arg("scores"), py::arg("rank"), py::arg("threads"), nogil);
  m.def(
      "pack_above",
      [](const ScoreArgs& scores, int64_t key, int64_t out_at, int threads) {
        if (key < 0 || key > 0x7FFFFFFF) {
          throw std::invalid_argument("key is " + std::to_string(key) + ", expected 0 to 2^31 - 1");
        }
        table().pack_above(to_span(scores), static_cast<uint32_t>(key), pointer<uint8_t>(out_at), threads);
      },
      py::arg("scores"), py::arg("key"), py::arg("out_at"), py::arg("threads"), nogil);
}

void bind_weights(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "weight",
      [](const Pack& pack, int64_t channels, int64_t taps, int dtype, int64_t out_at, int threads) {
        const Frozen f = to_frozen(pack);
        require_equal("columns", f.cols, channels * taps);
        table().weight(f, channels, taps, to_dtype(dtype), pointer<void>(out_at), threads);
      },
      py::arg("pack"), py::arg("channels"), py::arg("taps"), py::arg("dtype"), py::arg("out_at"), py::arg("threads"),
      nogil);
  m.def(
      "weight_grad_scores",
      [](const Pack& pack, int64_t grad_at, int grad_dtype, int64_t channels, int64_t row_stride,
         int64_t channel_stride, const std::vector<int64_t>& tap_offsets, const ScoreArgs& scores, int64_t out_at,
         int threads) {
        const ScoreSpan span = to_span(scores);
        const Frozen f = with_scores(pack, span);
        const int64_t taps = static_cast<int64_t>(tap_offsets.size());
        require_equal("columns", f.cols, channels * taps);
        const WeightStrides strides{channels, taps, row_stride, channel_stride, tap_offsets.data()};
        table().weight_grad_scores(f, pointer<const void>(grad_at), to_dtype(grad_dtype), strides, span.data,
                                   span.dtype, pointer<void>(out_at), threads);
      },
      py::arg("pack"), py::arg("grad_at"), py::arg("grad_dtype"), py::arg("channels"), py::arg("row_stride"),
      py::arg("channel_stride"), py::arg("tap_offsets"), py::arg("scores"), py::arg("out_at"), py::arg("threads"),
      nogil);
  m.def(
      "embedding",
      [](const Pack& pack, int64_t indices_at, int64_t count, int64_t padding_idx, int dtype, int64_t out_at,
         int threads) {
        table().embedding(to_frozen(pack), pointer<const int64_t>(indices_at), count, padding_idx, to_dtype(dtype),
                          pointer<void>(out_at), threads);
      },
      py::arg("pack"), py::arg("indices_at"), py::arg("count"), py::arg("padding_idx"), py::arg("dtype"),
      py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "embedding_grad_scores",
      [](const Pack& pack, int64_t grad_at, int grad_dtype, int64_t stride0, int64_t stride1, int64_t indices_at,
         int64_t count, int64_t padding_idx, const ScoreArgs& scores, int64_t out_at, int threads) {
        const ScoreSpan span = to_span(scores);
        table().embedding_grad_scores(with_scores(pack, span), pointer<const void>(grad_at), to_dtype(grad_dtype),
                                      stride0, stride1, pointer<const int64_t>(indices_at), count, padding_idx,
                                      span.data, span.dtype, pointer<void>(out_at), threads);
      },
      py::arg("pack"), py::arg("grad_at"), py::arg("grad_dtype"), py::arg("stride0"), py::arg("stride1"),
      py::arg("indices_at"), py::arg("count"), py::arg("padding_idx"), py::arg("scores"), py::arg("out_at"),
      py::arg("threads"), nogil);
}

// A weight (d0, channels, *taps): address, dtype id, strides of d0 and channels.
using WeightArgs = std::tuple<int64_t, int, int64_t, int64_t>;

StridedWeight to_weight(const WeightArgs& args, int64_t channels, const std::vector<int64_t>& tap_offsets) {
  const auto& [at, dtype, row_stride, channel_stride] = args;
  const int64_t taps = static_cast<int64_t>(tap_offsets.size());
  return {pointer<const void>(at), to_dtype(dtype), {channels, taps, row_stride, channel_stride, tap_offsets.data()}};
}

// Which weights are kept: rows, address of a plane or 0, address of a supermask.
using KeptArgs = std::tuple<int64_t, int64_t, int64_t>;

KeptWeights to_kept(const KeptArgs& args) {
  const auto& [rows, plane_at, stream_at] = args;
  return {pointer<const uint32_t>(plane_at), pointer<const uint8_t>(stream_at), rows};
}

void bind_swaps(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "swap",
      [](const ScoreArgs& scores, int64_t mask_at, int64_t kept, double rate, int threads) {
        std::vector<int64_t> found;
        {
          const py::gil_scoped_release release;
          found = table().swap(to_span(scores), pointer<const uint8_t>(mask_at), kept, rate, threads);
        }
        // a buffer of int64, since only the kernel knows how many
        return py::bytearray(reinterpret_cast<const char*>(found.data()), found.size() * sizeof(int64_t));
      },
      py::arg("scores"), py::arg("mask_at"), py::arg("kept"), py::arg("rate"), py::arg("threads"));
  m.def(
      "flip",
      [](int64_t mask_at, int64_t bytes, int64_t positions_at, int64_t count) {
        table().flip(pointer<uint8_t>(mask_at), bytes, pointer<const int64_t>(positions_at), count);
      },
      py::arg("mask_at"), py::arg("bytes"), py::arg("positions_at"), py::arg("count"), nogil);
}

void bind_stored(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> nogil;
  m.def(
      "plane_offsets",
      [](int64_t keep_at, int64_t rows, int64_t cols, int64_t out_at, int threads) {
        table().plane_offsets(pointer<const uint32_t>(keep_at), rows, cols, pointer<int64_t>(out_at), threads);
      },
      py::arg("keep_at"), py::arg("rows"), py::arg("cols"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "pack_values",
      [](const WeightArgs& weight, int64_t bytes, int64_t channels, const std::vector<int64_t>& tap_offsets,
         const KeptArgs& kept, int64_t offsets_at, int64_t out_at, int threads) {
        const StridedWeight from = to_weight(weight, channels, tap_offsets);
        table().pack_values(from.data, bytes, from.strides, to_kept(kept), pointer<const int64_t>(offsets_at),
                            pointer<void>(out_at), threads);
      },
      py::arg("weight"), py::arg("bytes"), py::arg("channels"), py::arg("tap_offsets"), py::arg("kept"),
      py::arg("offsets_at"), py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "stored_weight",
      [](const WeightArgs& values, int64_t channels, const std::vector<int64_t>& tap_offsets, const KeptArgs& kept,
         int dtype, int64_t out_at, int threads) {
        table().stored_weight(to_weight(values, channels, tap_offsets), to_kept(kept), to_dtype(dtype),
                              pointer<void>(out_at), threads);
      },
      py::arg("values"), py::arg("channels"), py::arg("tap_offsets"), py::arg("kept"), py::arg("dtype"),
      py::arg("out_at"), py::arg("threads"), nogil);
  m.def(
      "packed_weight",
      [](int64_t values_at, int values_dtype, int64_t row_scale_at, int64_t offsets_at, int64_t channels, int64_t taps,
         const KeptArgs& kept, int dtype, int64_t out_at, int threads) {
        const PackedValues packed{pointer<const void>(values_at), to_dtype(values_dtype),
                                  pointer<const float>(row_scale_at), pointer<const int64_t>(offsets_at)};
        table().packed_weight(packed, channels, taps, to_kept(kept), to_dtype(dtype), pointer<void>(out_at), threads);
      },
      py::arg("values_at"), py::arg("values_dtype"), py::arg("row_scale_at"), py::arg("offsets_at"),
      py::arg("channels"), py::arg("taps"), py::arg("kept"), py::arg("dtype"), py::arg("out_at"), py::arg("threads"),
      nogil);
  m.def(
      "stored_grad_scores",
      [](int64_t rows, int64_t channels, const WeightArgs& grad, const std::vector<int64_t>& grad_taps,
         const WeightArgs& values, const std::vector<int64_t>& value_taps, int score_dtype, int64_t out_at,
         int threads) {
        table().stored_grad_scores(rows, to_weight(grad, channels, grad_taps), to_weight(values, channels, value_taps),
                                   to_dtype(score_dtype), pointer<void>(out_at), threads);
      },
      py::arg("rows"), py::arg("channels"), py::arg("grad"), py::arg("grad_taps"), py::arg("values"),
      py::arg("value_taps"), py::arg("score_dtype"), py::arg("out_at"), py::arg("threads"), nogil);
}

}  // namespace

void bind_format(py::module_& m) {
  bind_generators(m);
  bind_streams(m);
  bind_search(m);
  bind_weights(m);
  bind_swaps(m);
  bind_stored(m);
}

}  // namespace fk
