#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "binding/bind.h"
#include "binding/geometry.h"
#include "cpu/conv/kernels.h"

FK_KERNEL_TABLE(fk::ConvKernels, conv_kernels)

namespace py = pybind11;

namespace fk {

namespace {

void convolve(const Pack& pack, const Sizes& sizes, const Side& wide, const Side& narrow, const EpilogueArgs& epilogue,
              int threads) {
  const Frozen f = to_frozen(pack);
  require_product(f);
  const Geometry g = to_geometry(f, sizes);
  const py::gil_scoped_release unlocked;
  active_conv_kernels().convolve(f, g, to_activations(wide), to_activations(narrow), to_epilogue(epilogue), threads);
}

void convolve_transposed(const Pack& pack, const Sizes& sizes, const Side& narrow, const Side& wide,
                         const EpilogueArgs& epilogue, int threads) {
  const Frozen f = to_frozen(pack);
  require_product(f);
  const Geometry g = to_geometry(f, sizes);
  const py::gil_scoped_release unlocked;
  active_conv_kernels().convolve_transposed(f, g, to_activations(narrow), to_activations(wide), to_epilogue(epilogue),
                                            threads);
}

void score_gradient(const Pack& pack, const Sizes& sizes, const Side& wide, const Side& narrow, int64_t scores,
                    int64_t out, int64_t count, int dtype, int threads) {
  const Frozen f = to_frozen(pack);
  require_drawn(f);
  const Geometry g = to_geometry(f, sizes);
  require_equal("scores", count, free_count(f));
  const DType scores_dtype = to_dtype(dtype);
  const py::gil_scoped_release unlocked;
  active_conv_kernels().score_gradient(f, g, to_activations(wide), to_activations(narrow), pointer<const void>(scores),
                                       pointer<void>(out), scores_dtype, threads);
}

Operation to_operation(const std::string& name) {
  for (const Operation operation : {CONVOLVE, CONVOLVE_TRANSPOSED, SCORE_GRADIENT}) {
    if (name == OPERATION_NAMES[operation]) return operation;
  }
  throw std::invalid_argument("operation is " + name + ", expected convolve, convolve_transposed or score_gradient");
}

std::vector<std::tuple<std::string, std::string, std::string>> kernels() {
  std::vector<std::tuple<std::string, std::string, std::string>> all;
  for (const Operation operation : {CONVOLVE, CONVOLVE_TRANSPOSED, SCORE_GRADIENT}) {
    for (const KernelInfo& kernel : active_conv_kernels().list(operation)) {
      all.emplace_back(OPERATION_NAMES[operation], kernel.name, kernel.serves);
    }
  }
  return all;
}

std::string kernel_of(const std::string& operation, const Pack& pack, const Sizes& sizes, const Side& wide,
                      const Side& narrow) {
  const Frozen f = to_frozen(pack);
  if (to_operation(operation) == SCORE_GRADIENT) require_drawn(f);
  return active_conv_kernels().choose(to_operation(operation), f, to_geometry(f, sizes), to_activations(wide),
                                      to_activations(narrow));
}

}  // namespace

void bind_conv(py::module_& m) {
  m.def("convolve", &convolve, py::arg("pack"), py::arg("sizes"), py::arg("wide"), py::arg("narrow"),
        py::arg("epilogue"), py::arg("threads"), "narrow = relu(W wide * scale * gain + bias)");
  m.def("convolve_transposed", &convolve_transposed, py::arg("pack"), py::arg("sizes"), py::arg("narrow"),
        py::arg("wide"), py::arg("epilogue"), py::arg("threads"), "wide = relu(W^T narrow * scale * gain + bias)");
  m.def("score_gradient", &score_gradient, py::arg("pack"), py::arg("sizes"), py::arg("wide"), py::arg("narrow"),
        py::arg("scores"), py::arg("out"), py::arg("count"), py::arg("dtype"), py::arg("threads"),
        "out = sign(scores) * dL/dW * code * scale of the free weights, in stream order");
  m.def("kernels", &kernels,
        "(operation, kernel, what it serves) of the instruction set in use, in the order that kernels are asked");
  m.def("kernel_of", &kernel_of, py::arg("operation"), py::arg("pack"), py::arg("sizes"), py::arg("wide"),
        py::arg("narrow"), "The first kernel that serves a layer, before values of its inputs are looked at");
}

}  // namespace fk
