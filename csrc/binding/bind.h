// One function per file of bindings.
#pragma once
#include <pybind11/pybind11.h>

namespace fk {

void bind_format(pybind11::module_& m);
void bind_call(pybind11::module_& m);
void bind_conv(pybind11::module_& m);
void bind_memory(pybind11::module_& m);

}  // namespace fk
