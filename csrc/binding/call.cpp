// A call of one layer in one state, prepared once: what Python would otherwise hand over at each call stays here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>

#include "binding/bind.h"
#include "binding/geometry.h"
#include "binding/pack.h"
#include "cpu/conv/kernels.h"

FK_KERNEL_TABLE(fk::ConvKernels, conv_kernels)

namespace py = pybind11;

namespace fk {

namespace {

constexpr int64_t SMALL =
    1 << 18;  // multiply-adds: a shorter call ends before another thread could use the interpreter
constexpr int MOST_DIMS = 5;

// Sizes or strides of a tensor, from the tuple that Python has of them.
struct Numbers {
  int count = 0;
  int64_t value[MOST_DIMS] = {};

  explicit Numbers(const py::tuple& given) {
    count = static_cast<int>(given.size());
    for (int i = 0; i < count && i < MOST_DIMS; ++i) value[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(given.ptr(), i));
  }
};

class Call {
 public:
  // taps, stride, padding, output padding and dilation by spatial dimension; bias and gain as in an Epilogue.
  using Spatial = std::array<int64_t, 3>;

  Call(const Pack& pack, int dtype, bool transposed, int spatial, int64_t groups, const std::array<Spatial, 5>& window,
       const std::array<int64_t, 3>& bias, const std::array<int64_t, 2>& gain, bool relu)
      : frozen_(to_frozen(pack)),
        header_(pointer<const uint32_t>(pack[0])),
        dtype_(to_dtype(dtype)),
        transposed_(transposed),
        spatial_(spatial),
        window_(window) {
    require_product(frozen_);
    geometry_.groups = groups;
    for (int d = 0; d < 3; ++d) {
      geometry_.taps[d] = window[0][d], geometry_.stride[d] = window[1][d], geometry_.padding[d] = window[2][d];
      geometry_.dilation[d] = window[4][d];
      if (window[0][d] < 1 || window[1][d] < 1 || window[2][d] < 0 || window[4][d] < 1) {
        throw std::invalid_argument("a kernel size, stride, padding or dilation is too small");
      }
    }
    require_equal("groups x rows of a group", frozen_.rows / groups * groups, frozen_.rows);
    const int64_t taps = geometry_.tap_count(), columns = frozen_.cols / taps;
    require_equal("taps x channels", taps * columns, frozen_.cols);
    channels_ = transposed ? frozen_.rows : columns * groups;
    results_ = transposed ? columns * groups : frozen_.rows;
    epilogue_ = {pointer<const void>(bias[0]),
                 to_dtype(static_cast<int>(bias[1])),
                 bias[2],
                 pointer<const float>(gain[0]),
                 gain[1],
                 relu};
    std::memcpy(words_, header_, sizeof words_);
  }

  // Whether nobody wrote into the header since.
  bool current() const { return std::memcmp(words_, header_, sizeof words_) == 0; }

  // The size of the result for an input [batch, channels, spatial...]; None where this layer does not take it.
  py::object size(const py::tuple& shape) const {
    const Numbers x(shape);
    if (x.count != spatial_ + 2 || x.value[1] != channels_ || x.value[0] < 1) return py::none();
    py::tuple found(x.count);
    found[0] = x.value[0], found[1] = results_;
    for (int i = 0; i < spatial_; ++i) {
      const int d = 3 - spatial_ + i;
      const __int128 reach = __int128{window_[4][d]} * (window_[0][d] - 1), in = x.value[2 + i];
      const __int128 out = transposed_
                               ? (in - 1) * window_[1][d] - 2 * __int128{window_[2][d]} + reach + window_[3][d] + 1
                               : (in + 2 * __int128{window_[2][d]} - reach - 1) / window_[1][d] + 1;
      if (in < 1 || out < 1 || (!transposed_ && in + 2 * __int128{window_[2][d]} < reach + 1)) return py::none();
      if (out > INT64_MAX) return py::none();
      found[2 + i] = static_cast<int64_t>(out);
    }
    return found;
  }

  // Results of `pixels` inputs of a linear layer, contiguous on both sides.
  bool rows(int64_t x, int64_t pixels, int64_t y, int threads) const {
    if (!current() || !x) return false;
    const Place place = line(pixels);
    run(false, place, line_side(x, pixels, frozen_.cols), line_side(y, pixels, frozen_.rows), epilogue_, threads);
    return true;
  }

  // The gradient of their inputs.
  void rows_back(int64_t grad, int64_t pixels, int64_t out, int threads) const {
    const Place place = line(pixels);
    run(true, place, line_side(grad, pixels, frozen_.rows), line_side(out, pixels, frozen_.cols), Epilogue{}, threads);
  }

  // out[i] of the score gradient, from inputs and gradients of results.
  void rows_scores(int64_t x, int64_t grad, int64_t pixels, int64_t scores, int64_t count, int scores_dtype,
                   int64_t out, int threads) const {
    const Place place = line(pixels);
    scores_of(place, line_side(x, pixels, frozen_.cols), line_side(grad, pixels, frozen_.rows), scores, count,
              scores_dtype, out, threads);
  }

  bool convolve(int64_t x, const py::tuple& x_shape, const py::tuple& x_stride, int64_t y, const py::tuple& y_shape,
                const py::tuple& y_stride, int threads) const {
    if (!current() || !x) return false;
    const Place place = window(Numbers(x_shape), Numbers(y_shape));
    run(transposed_, place, side(x, Numbers(x_stride)), side(y, Numbers(y_stride)), epilogue_, threads);
    return true;
  }

  void convolve_back(int64_t grad, const py::tuple& grad_shape, const py::tuple& grad_stride, int64_t out,
                     const py::tuple& out_shape, const py::tuple& out_stride, int threads) const {
    const Place place = window(Numbers(out_shape), Numbers(grad_shape));
    run(!transposed_, place, side(grad, Numbers(grad_stride)), side(out, Numbers(out_stride)), Epilogue{}, threads);
  }

  void convolve_scores(int64_t x, const py::tuple& x_shape, const py::tuple& x_stride, int64_t grad,
                       const py::tuple& grad_shape, const py::tuple& grad_stride, int64_t scores, int64_t count,
                       int scores_dtype, int64_t out, int threads) const {
    const Place place = window(Numbers(x_shape), Numbers(grad_shape));
    const Activations of_x = side(x, Numbers(x_stride)), of_grad = side(grad, Numbers(grad_stride));
    scores_of(place, transposed_ ? of_grad : of_x, transposed_ ? of_x : of_grad, scores, count, scores_dtype, out,
              threads);
  }

 private:
  struct Place {
    Geometry geometry;
    int64_t work;  // multiply-adds
  };

  Place line(int64_t pixels) const {
    Geometry g = geometry_;
    g.batch = g.wide[0] = g.wide[1] = g.narrow[0] = g.narrow[1] = 1;
    g.wide[2] = g.narrow[2] = pixels;
    return {g, pixels * frozen_.rows * frozen_.cols};
  }

  Place window(const Numbers& x, const Numbers& y) const {
    Geometry g = geometry_;
    g.batch = x.value[0];
    int64_t pixels = g.batch;
    for (int d = 0; d < 3; ++d) {
      const int i = d - (3 - spatial_);
      const int64_t in = i < 0 ? 1 : x.value[2 + i], out = i < 0 ? 1 : y.value[2 + i];
      g.wide[d] = transposed_ ? out : in, g.narrow[d] = transposed_ ? in : out;
      pixels *= g.narrow[d];
    }
    require_within_bounds(g);
    return {g, pixels * frozen_.rows * frozen_.cols};
  }

  Activations line_side(int64_t at, int64_t pixels, int64_t channels) const {
    return {pointer<void>(at), dtype_, {pixels * channels, 1, pixels * channels, pixels * channels, channels}};
  }

  Activations side(int64_t at, const Numbers& stride) const {
    Activations a{pointer<void>(at), dtype_, {stride.value[0], stride.value[1], 0, 0, 0}};
    for (int i = 0; i < spatial_; ++i) a.stride[SPATIAL + 3 - spatial_ + i] = stride.value[2 + i];
    return a;
  }

  // `to_wide`: from the narrow side to the wide one.
  void run(bool to_wide, const Place& place, const Activations& from, const Activations& to, const Epilogue& epilogue,
           int threads) const {
    const auto kernel = to_wide ? active_conv_kernels().convolve_transposed : active_conv_kernels().convolve;
    if (place.work <= SMALL) return kernel(frozen_, place.geometry, from, to, epilogue, threads);
    const py::gil_scoped_release unlocked;
    kernel(frozen_, place.geometry, from, to, epilogue, threads);
  }

  void scores_of(const Place& place, const Activations& wide, const Activations& narrow, int64_t scores, int64_t count,
                 int scores_dtype, int64_t out, int threads) const {
    require_drawn(frozen_);
    require_equal("scores", count, free_count(frozen_));
    const DType dtype = to_dtype(scores_dtype);
    const py::gil_scoped_release unlocked;
    active_conv_kernels().score_gradient(frozen_, place.geometry, wide, narrow, pointer<const void>(scores),
                                         pointer<void>(out), dtype, threads);
  }

  Frozen frozen_;
  const uint32_t* header_;
  uint32_t words_[HEADER_WORDS];
  DType dtype_;
  bool transposed_;
  int spatial_;
  std::array<Spatial, 5> window_;
  int64_t channels_, results_;
  Geometry geometry_{};
  Epilogue epilogue_;
};

}  // namespace

void bind_call(py::module_& m) {
  py::class_<Call>(m, "Call", "A layer's call with pointers and geometry; whoever holds it keeps the tensors alive")
      .def(py::init<const Pack&, int, bool, int, int64_t, const std::array<Call::Spatial, 5>&,
                    const std::array<int64_t, 3>&, const std::array<int64_t, 2>&, bool>(),
           py::arg("pack"), py::arg("dtype"), py::arg("transposed"), py::arg("spatial"), py::arg("groups"),
           py::arg("window"), py::arg("bias"), py::arg("gain"), py::arg("relu"))
      .def("current", &Call::current)
      .def("size", &Call::size)
      .def("rows", &Call::rows)
      .def("rows_back", &Call::rows_back)
      .def("rows_scores", &Call::rows_scores)
      .def("convolve", &Call::convolve)
      .def("convolve_back", &Call::convolve_back)
      .def("convolve_scores", &Call::convolve_scores);
}

}  // namespace fk
