#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "cpu/conv/kernels.h"
#include "binding/bind.h"
#include "binding/pack.h"

namespace py = pybind11;

namespace fk {

namespace {

// pointer, dtype, strides of batch, channel and three spatial dimensions in elements
using Side = std::array<int64_t, 7>;
// bias: pointer, dtype, stride; gain, float32: pointer, stride; relu. A pointer is 0 for none.
using EpilogueArgs = std::array<int64_t, 6>;
// batch, groups, then by spatial dimension: wide size, narrow size, taps, stride, padding, dilation
using Sizes = std::array<int64_t, 20>;

Activations to_activations(const Side& side) {
  Activations a{pointer<void>(side[0]), to_dtype(static_cast<int>(side[1])), {}};
  for (int d = 0; d < 5; ++d) a.stride[d] = side[2 + d];
  return a;
}

Epilogue to_epilogue(const EpilogueArgs& a) {
  return {
      pointer<const void>(a[0]), to_dtype(static_cast<int>(a[1])), a[2], pointer<const float>(a[3]), a[4], a[5] != 0};
}

void require_at_least(const char* what, int64_t got, int64_t least) {
  if (got >= least) return;
  throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected at least " +
                              std::to_string(least));
}

void require_divides(const char* what, int64_t part, const char* of, int64_t whole) {
  if (whole % part == 0) return;
  throw std::invalid_argument(std::string(what) + " = " + std::to_string(part) + " does not divide " + of + " = " +
                              std::to_string(whole));
}

Geometry to_geometry(const Frozen& f, const Sizes& sizes) {
  Geometry g{};
  g.batch = sizes[0];
  g.groups = sizes[1];
  require_at_least("batch", g.batch, 0);
  require_at_least("groups", g.groups, 1);
  for (int d = 0; d < 3; ++d) {
    const int64_t* const s = sizes.data() + 2 + 6 * d;
    g.wide[d] = s[0], g.narrow[d] = s[1], g.taps[d] = s[2], g.stride[d] = s[3], g.padding[d] = s[4];
    g.dilation[d] = s[5];
    require_at_least("spatial size", std::min(g.wide[d], g.narrow[d]), 0);
    require_at_least("kernel size", g.taps[d], 1);
    require_at_least("stride", g.stride[d], 1);
    require_at_least("dilation", g.dilation[d], 1);
  }
  require_divides("groups", g.groups, "rows", f.rows);
  require_divides("taps", g.tap_count(), "columns", f.cols);
  return g;
}

void convolve(const Pack& pack, const Sizes& sizes, const Side& wide, const Side& narrow, const EpilogueArgs& epilogue,
              int threads) {
  const Frozen f = to_frozen(pack);
  const Geometry g = to_geometry(f, sizes);
  const py::gil_scoped_release unlocked;
  active_gemm_kernels().convolve(f, g, to_activations(wide), to_activations(narrow), to_epilogue(epilogue), threads);
}

void convolve_transposed(const Pack& pack, const Sizes& sizes, const Side& narrow, const Side& wide,
                         const EpilogueArgs& epilogue, int threads) {
  const Frozen f = to_frozen(pack);
  const Geometry g = to_geometry(f, sizes);
  const py::gil_scoped_release unlocked;
  active_gemm_kernels().convolve_transposed(f, g, to_activations(narrow), to_activations(wide), to_epilogue(epilogue),
                                            threads);
}

void score_gradient(const Pack& pack, const Sizes& sizes, const Side& wide, const Side& narrow, int64_t scores,
                    int64_t out, int64_t count, int dtype, int threads) {
  const Frozen f = to_frozen(pack);
  const Geometry g = to_geometry(f, sizes);
  require_equal("scores", count, free_count(f));
  const DType scores_dtype = to_dtype(dtype);
  const py::gil_scoped_release unlocked;
  active_gemm_kernels().score_gradient(f, g, to_activations(wide), to_activations(narrow), pointer<const void>(scores),
                                       pointer<void>(out), scores_dtype, threads);
}

// Asks for huge pages under memory about to be written: a fresh large result costs a page fault per 2 MB, not per 4 KB.
void prefer_huge_pages(int64_t address, int64_t bytes) {
#ifdef __linux__
  constexpr uintptr_t PAGE = 1 << 21;
  const uintptr_t begin = (static_cast<uintptr_t>(address) + PAGE - 1) / PAGE * PAGE;
  const uintptr_t end = static_cast<uintptr_t>(address + bytes) / PAGE * PAGE;
  if (begin < end) madvise(pointer<void>(static_cast<int64_t>(begin)), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace

void bind_gemm(py::module_& m) {
  m.def("prefer_huge_pages", &prefer_huge_pages, py::arg("address"), py::arg("bytes"),
        "A hint for memory about to be written; does nothing where the system has no such pages");
  m.def("convolve", &convolve, py::arg("pack"), py::arg("sizes"), py::arg("wide"), py::arg("narrow"),
        py::arg("epilogue"), py::arg("threads"), "narrow = relu(W wide * scale * gain + bias)");
  m.def("convolve_transposed", &convolve_transposed, py::arg("pack"), py::arg("sizes"), py::arg("narrow"),
        py::arg("wide"), py::arg("epilogue"), py::arg("threads"), "wide = relu(W^T narrow * scale * gain + bias)");
  m.def("score_gradient", &score_gradient, py::arg("pack"), py::arg("sizes"), py::arg("wide"), py::arg("narrow"),
        py::arg("scores"), py::arg("out"), py::arg("count"), py::arg("dtype"), py::arg("threads"),
        "out = sign(scores) * dL/dW * code * scale of the free weights, in stream order");
}

}  // namespace fk
