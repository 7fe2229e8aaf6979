#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../cpu/isa.h"
#include "../frozen/philox.h"
#include "bind.h"

namespace py = pybind11;

namespace {

std::string build_info() {
  std::string info = std::string("C++ ") + __VERSION__ + "; variants:";
#ifdef FK_X86_VARIANTS
  info += " portable avx2 avx512";
#else
  info += " portable";
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "CPU kernels on raw pointers. Private: call through frozen_kernels.backends.";
  m.def("build_info", &build_info);
  m.def("isa_available", &fk::available_isas);
  m.def("isa", [] { return fk::ISA_NAMES[fk::active_isa()]; });
  m.def("set_isa", &fk::set_isa, py::arg("name"));
  m.def("philox", [](const std::array<uint32_t, 4>& c, const std::array<uint32_t, 2>& key) {
    const fk::Words4 words = fk::philox(c[0], c[1], c[2], c[3], key[0], key[1]);
    return py::make_tuple(words.x[0], words.x[1], words.x[2], words.x[3]);
  });
  fk::bind_format(m);
  fk::bind_gemm(m);
}
