#include <pybind11/pybind11.h>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <memory>
#include <new>

#include "binding/bind.h"
#include "binding/pack.h"
#include "binding/results.h"

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

// The structures of DLPack, whose layout is its interface: torch takes memory by it without a header of torch's.
struct DlTensor {
  void* data;
  int32_t device, device_index, dimensions;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct DlManaged {
  DlTensor tensor;
  void* context;
  void (*deleter)(DlManaged*);
};
constexpr const char* FRESH = "dltensor";  // DLPack's name of a capsule that nobody took

// What a capsule holds: this, then the elements.
struct Block {
  DlManaged managed;
  int64_t count;
};

py::object block(int64_t count, int dtype) {
  constexpr int32_t CPU = 1;
  constexpr uint8_t FLOAT = 2, BFLOAT = 4;
  constexpr size_t LINE = 64, HEAD = (sizeof(Block) + LINE - 1) / LINE * LINE;
  if (count < 0 || dtype < FLOAT32 || dtype > FLOAT16) throw py::value_error("block: count or dtype");
  const size_t size = dtype == FLOAT32 ? 4 : 2;
  std::unique_ptr<void, decltype(&free_result)> memory(take_result(HEAD + static_cast<size_t>(count) * size),
                                                       free_result);
  if (!memory) throw std::bad_alloc();
  Block* const made = new (memory.get()) Block{};
  made->count = count;
  DlTensor& tensor = made->managed.tensor;
  tensor.data = static_cast<char*>(memory.get()) + HEAD;
  tensor.device = CPU, tensor.dimensions = 1, tensor.lanes = 1, tensor.shape = &made->count;
  tensor.code = dtype == BFLOAT16 ? BFLOAT : FLOAT, tensor.bits = static_cast<uint8_t>(8 * size);
  made->managed.deleter = [](DlManaged* managed) { free_result(managed); };
  PyObject* const capsule = PyCapsule_New(&made->managed, FRESH, [](PyObject* left) {
    if (PyCapsule_IsValid(left, FRESH)) free_result(PyCapsule_GetPointer(left, FRESH));
  });
  if (!capsule) throw py::error_already_set();
  memory.release();
  return py::reinterpret_steal<py::object>(capsule);
}

}  // namespace

void bind_memory(py::module_& m) {
  m.def("prefer_huge_pages", &prefer_huge_pages, py::arg("address"), py::arg("bytes"),
        "A hint for memory about to be written; does nothing where the system has no such pages");
  m.def("block", &block, py::arg("count"), py::arg("dtype"), "Elements that are not set, as a capsule of DLPack");
  m.def("release_results", &release_results, py::call_guard<py::gil_scoped_release>(),
        "Gives the memory of freed results that is kept for the next ones back to the system");
}

}  // namespace fk
