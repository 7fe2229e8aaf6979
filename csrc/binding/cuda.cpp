// The module frozen_kernels._cuda: integers in, a reason or an error out.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <limits>
#include <optional>
#include <stdexcept>

#include "binding/geometry.h"
#include "cuda/api.h"
#include "cuda/convolution.h"

namespace py = pybind11;

namespace fk {

namespace {

// header pointer, code, rows, cols, keep pointer, draw pointer, values pointer, their dtype, offsets pointer, row_scale
// pointer; device memory, 0 for none
using Weight = std::array<int64_t, 10>;
using Reason = std::optional<std::string>;

enum Field { WIDE, NARROW, TAPS, STRIDE, PADDING, DILATION };
constexpr int DIMENSIONS = 3;
constexpr int SPATIAL_STRIDES = 4;  // of a side, where those of spatial dimensions begin

int64_t field(const Sizes& sizes, int dimension, Field which) { return sizes[2 + 6 * dimension + which]; }

bool fits(int64_t value) { return value <= std::numeric_limits<int>::max(); }

cuda::Product to_product(const Weight& w, const Side& x, const Side& y, const EpilogueArgs& e) {
  const auto [header, code, rows, cols, keep, draw, values, value_dtype, offsets, row_scale] = w;
  cuda::Product p = {};
  p.header = pointer<const int32_t>(header);
  p.code = static_cast<int>(code);
  p.rows = static_cast<int>(rows);
  p.cols = static_cast<int>(cols);
  p.words = static_cast<int>((cols + 31) / 32);
  p.keep = pointer<const uint32_t>(keep);
  if (code == SIGN_CODE) p.sign = pointer<const uint32_t>(draw);
  if (code == UNIFORM_CODE || code == NORMAL_CODE) p.bytes = pointer<const uint8_t>(draw);
  p.values = pointer<const void>(values);
  p.value_dtype = static_cast<int>(value_dtype);
  p.offsets = pointer<const int64_t>(offsets);
  p.row_scale = pointer<const float>(row_scale);
  p.x = pointer<const void>(x[0]);
  p.y = pointer<void>(y[0]);
  p.dtype = static_cast<int>(x[1]);
  p.bias = pointer<const void>(e[0]);
  p.bias_dtype = static_cast<int>(e[1]);
  p.gain = pointer<const float>(e[3]);
  p.relu = e[5] != 0;
  return p;
}

// Elements from a pixel to the next where pixels lie evenly; nothing else is one line.
std::optional<int64_t> pixel_stride(const Sizes& sizes, const Side& side) {
  std::optional<int64_t> step;
  int64_t expected = 0;
  for (int dimension = DIMENSIONS - 1; dimension >= -1; --dimension) {
    const int64_t size = dimension < 0 ? sizes[0] : field(sizes, dimension, WIDE);
    const int64_t stride = dimension < 0 ? side[2] : side[SPATIAL_STRIDES + dimension];
    if (size == 1) continue;
    if (step && stride != expected) return std::nullopt;
    if (!step) step = stride;
    expected = stride * size;
  }
  return step ? step : 0;
}

bool is_point(const Sizes& sizes) {
  for (int d = 0; d < DIMENSIONS; ++d) {
    if (field(sizes, d, TAPS) != 1 || field(sizes, d, STRIDE) != 1 || field(sizes, d, PADDING) != 0) return false;
  }
  return true;
}

template <class Layer>
Reason run_layer(const Layer& layer, int device, uint64_t stream) {
  const py::gil_scoped_release unlocked;
  const cuda::Outcome outcome = cuda::run(layer, device, pointer<void>(static_cast<int64_t>(stream)));
  if (outcome.error) throw std::runtime_error(std::string("CUDA: ") + outcome.error);
  return outcome.refused ? Reason(outcome.refused) : std::nullopt;
}

Reason run_linear(cuda::Product p, const Sizes& sizes, const Side& x, const Side& y, bool transposed, int device,
                  uint64_t stream) {
  const int64_t pixels = sizes[0] * field(sizes, 0, WIDE) * field(sizes, 1, WIDE) * field(sizes, 2, WIDE);
  const std::optional<int64_t> x_stride = pixel_stride(sizes, x), y_stride = pixel_stride(sizes, y);
  if (!fits(pixels)) return "too many pixels";
  if (x[3] != 1 || y[3] != 1 || !x_stride || !y_stride) return "pixels or channels that do not lie evenly";
  p.x_stride = *x_stride;
  p.y_stride = *y_stride;
  p.pixels = static_cast<int>(pixels);
  p.transposed = transposed;
  return run_layer(p, device, stream);
}

Reason run_convolution(const cuda::Product& p, const Sizes& sizes, const Side& wide, const Side& narrow, int device,
                       uint64_t stream) {
  if (field(sizes, 0, WIDE) != 1 || field(sizes, 0, TAPS) != 1 || field(sizes, 0, STRIDE) != 1 ||
      field(sizes, 0, PADDING) != 0) {
    return "a third spatial dimension";
  }
  cuda::Convolution c = {};
  c.weight = p;
  c.batch = static_cast<int>(sizes[0]);
  for (int i = 0; i < 2; ++i) {
    for (const auto& [to, which] :
         {std::pair{c.wide, WIDE}, std::pair{c.narrow, NARROW}, std::pair{c.taps, TAPS}, std::pair{c.stride, STRIDE},
          std::pair{c.padding, PADDING}, std::pair{c.dilation, DILATION}}) {
      if (!fits(field(sizes, 1 + i, which))) return "sizes of 2^31 or more";
      to[i] = static_cast<int>(field(sizes, 1 + i, which));
    }
  }
  c.channels = p.cols / (c.taps[0] * c.taps[1]);
  const int64_t pixels = sizes[0] * c.narrow[0] * c.narrow[1];
  if (!fits(pixels)) return "too many pixels";
  c.weight.pixels = static_cast<int>(pixels);
  for (const auto& [to, side] : {std::pair{c.x_stride, &wide}, std::pair{c.y_stride, &narrow}}) {
    to[0] = (*side)[2];
    to[1] = (*side)[3];
    to[2] = (*side)[SPATIAL_STRIDES + 1];
    to[3] = (*side)[SPATIAL_STRIDES + 2];
  }
  return run_layer(c, device, stream);
}

// narrow = relu(gain * W wide + bias); transposed: wide = relu(gain * W^T narrow + bias). Returns why nothing was
// launched, if so.
Reason product(const Weight& weight, const Sizes& sizes, const Side& wide, const Side& narrow,
               const EpilogueArgs& epilogue, bool transposed, int device, uint64_t stream) {
  const Side &x = transposed ? narrow : wide, &y = transposed ? wide : narrow;
  if (!fits(weight[2]) || !fits(weight[3])) return "rows or columns of 2^31 or more";
  if (sizes[1] != 1) return "groups";
  const cuda::Product p = to_product(weight, x, y, epilogue);
  Reason why_not = "the transpose of a convolution";
  if (is_point(sizes)) {
    why_not = run_linear(p, sizes, x, y, transposed, device, stream);
    if (!why_not) return why_not;
  }
  if (transposed) return why_not;
  const Reason nor = run_convolution(p, sizes, wide, narrow, device, stream);
  return nor && is_point(sizes) ? why_not : nor;
}

py::tuple status() {
  const cuda::Status found = cuda::status();
  return py::make_tuple(found.runtime, found.driver, found.devices,
                        found.error ? py::object(py::str(found.error)) : py::object(py::none()));
}

}  // namespace

}  // namespace fk

PYBIND11_MODULE(FK_CUDA_MODULE, m) {
  m.doc() = "CUDA kernels on raw pointers. Private: call through frozen_kernels.backends.";
  m.def("status", &fk::status,
        "versions of runtime and driver, number of devices, CUDA's words where none can be used");
  m.def("product", &fk::product, py::arg("weight"), py::arg("sizes"), py::arg("wide"), py::arg("narrow"),
        py::arg("epilogue"), py::arg("transposed"), py::arg("device"), py::arg("stream"),
        "Launches a product; returns why not, if so. RuntimeError with CUDA's words where the launch fails");
}
