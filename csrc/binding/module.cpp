#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/core/isa.h"
#include "frozen/format.h"
#include "binding/bind.h"

namespace py = pybind11;

namespace {

// One weight by the normative header: code, partition draw u, partition and score draw.
py::tuple position(int64_t row, int64_t col, uint64_t seed, uint32_t stream, uint32_t generation, int code,
                   const std::pair<uint32_t, uint32_t>& tau) {
  const uint32_t r = static_cast<uint32_t>(row), key0 = static_cast<uint32_t>(seed);
  const uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  const uint32_t draw = code == fk::SIGN_CODE
                            ? fk::sign_word(col >> 5, r, stream, generation, key0, key1) >> fk::beta(col) & 1u
                            : fk::draw_byte(col, r, stream, generation, key0, key1);
  const uint32_t u = fk::partition_draw(col, r, stream, key0, key1);
  return py::make_tuple(fk::code_value(code, draw), u, fk::partition_of(u, tau.first, tau.second),
                        fk::score_draw(col, r, stream, key0, key1));
}

std::string build_info() {
  std::string info = std::string("C++ ") + __VERSION__ + "; variants:";
  for (const char* const name : fk::ISA_NAMES) info += std::string(" ") + name;
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
  m.def("position", &position, py::arg("row"), py::arg("col"), py::arg("seed"), py::arg("stream"),
        py::arg("generation"), py::arg("code"), py::arg("tau"));
  fk::bind_format(m);
  fk::bind_call(m);
  fk::bind_conv(m);
  fk::bind_memory(m);
}
