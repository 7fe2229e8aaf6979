// From the integers that Python passes to the Frozen that kernels take.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "frozen/weight.h"

namespace fk {

// header pointer, code, rows, cols, supermask pointer, supermask bytes, offsets pointer, keep pointer, draw pointer; of
// a stored weight also values pointer, how many, their dtype, row_scale pointer. Pointers to CPU memory, 0 where a
// residency has none.
using Pack = std::array<int64_t, 13>;

template <class T>
T* pointer(int64_t address) {
  return reinterpret_cast<T*>(static_cast<uintptr_t>(address));
}

// The seed, thresholds and scale of a header (int32[HEADER_WORDS]; the code is passed beside it) and the sizes; no
// buffers.
Frozen to_frozen(int64_t header, int code, int64_t rows, int64_t cols);
// Throws std::invalid_argument where the supermask's bytes or the number of values do not match the offsets.
Frozen to_frozen(const Pack& pack);
// Throws std::invalid_argument unless the weight is drawn: of what stored ones do not have.
void require_drawn(const Frozen& f);
// Throws std::invalid_argument unless a stored weight has what its products read.
void require_product(const Frozen& f);
// Free weights of a tensor that has offsets.
int64_t free_count(const Frozen& f);
// Throws std::invalid_argument naming both values.
void require_equal(const std::string& what, int64_t got, int64_t wanted);
DType to_dtype(int dtype);

}  // namespace fk
