#include <pybind11/pybind11.h>
#include <stdlib.h>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "binding/bind.h"
#include "binding/pack.h"

namespace py = pybind11;

namespace fk {

namespace {

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

// Hands freed blocks back to the system: glibc keeps them, since the first large block freed raises its mmap threshold.
bool release_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
  return true;
#else
  return false;
#endif
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("prefer_huge_pages", &prefer_huge_pages, py::arg("address"), py::arg("bytes"),
        "A hint for memory about to be written; does nothing where the system has no such pages");
  m.def("release_memory", &release_memory, py::call_guard<py::gil_scoped_release>(),
        "Hands freed memory back to the system; False where the C library has no call for it");
}

}  // namespace fk
