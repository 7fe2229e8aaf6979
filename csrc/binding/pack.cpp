#include "binding/pack.h"

#include <cstring>
#include <stdexcept>

namespace fk {

void require_equal(const std::string& what, int64_t got, int64_t wanted) {
  if (got == wanted) return;
  throw std::invalid_argument(what + " is " + std::to_string(got) + ", expected " + std::to_string(wanted));
}

DType to_dtype(int dtype) {
  if (dtype < FLOAT32 || dtype > FLOAT16) {
    throw std::invalid_argument("dtype id is " + std::to_string(dtype) + ", expected 0, 1 or 2");
  }
  return static_cast<DType>(dtype);
}

Frozen to_frozen(int64_t header, int code, int64_t rows, int64_t cols) {
  const uint32_t* const words = pointer<const uint32_t>(header);
  if (code < SIGN_CODE || code > STORED_CODE) {
    throw std::invalid_argument("code id is " + std::to_string(code) + ", expected 0 to 4");
  }
  if (rows < 0 || cols < 0 || rows > int64_t{1} << 32 || cols > int64_t{1} << 34) {
    throw std::invalid_argument("rows and cols are " + std::to_string(rows) + " and " + std::to_string(cols) +
                                ", expected 0 to 2^32 and 0 to 2^34");
  }
  Frozen f{};
  f.rows = rows;
  f.cols = cols;
  f.words = (cols + 31) / 32;
  f.code = code;
  f.key0 = words[SEED_LO];
  f.key1 = words[SEED_HI];
  f.stream = words[STREAM];
  f.generation = words[GENERATION];
  f.tau_prune = words[TAU_PRUNE];
  f.tau_freeze = words[TAU_FREEZE];
  std::memcpy(&f.scale, &words[SCALE], sizeof(f.scale));
  if (f.tau_prune > f.tau_freeze || f.tau_freeze > FULL_THRESHOLD) {
    throw std::invalid_argument("tau_prune and tau_freeze are " + std::to_string(f.tau_prune) + " and " +
                                std::to_string(f.tau_freeze) + ", expected 0 <= tau_prune <= tau_freeze <= 65536");
  }
  return f;
}

namespace {

// What a stored weight keeps.
void set_values(Frozen& f, int64_t values, int64_t count, int64_t dtype, int64_t row_scale) {
  if (dtype < FLOAT32 || dtype > INT8) {
    throw std::invalid_argument("dtype id of values is " + std::to_string(dtype) + ", expected 0 to 3");
  }
  if ((dtype == INT8) != (row_scale != 0)) {
    throw std::invalid_argument("row_scale is " + std::string(row_scale ? "given" : "missing") +
                                ", dtype id of values " + std::to_string(dtype) + ": it comes with int8 values alone");
  }
  f.values = pointer<const void>(values);
  f.value_dtype = static_cast<int>(dtype);
  f.row_scale = pointer<const float>(row_scale);
  if (f.offsets) require_equal("values", count, free_count(f));
}

}  // namespace

Frozen to_frozen(const Pack& pack) {
  const auto& [header, code, rows, cols, supermask, supermask_bytes, offsets, keep, draw, values, count, dtype,
               scales] = pack;
  Frozen f = to_frozen(header, static_cast<int>(code), rows, cols);
  f.supermask = pointer<const uint8_t>(supermask);
  f.supermask_bytes = supermask_bytes;
  f.offsets = pointer<const int64_t>(offsets);
  f.keep = pointer<const uint32_t>(keep);
  if (f.code == SIGN_CODE) f.sign = pointer<const uint32_t>(draw);
  if (f.code == UNIFORM_CODE || f.code == NORMAL_CODE) f.bytes = pointer<const uint8_t>(draw);
  if (f.code == STORED_CODE) {
    set_values(f, values, count, dtype, scales);
    return f;
  }
  if (!f.keep) {
    if (!f.offsets) throw std::invalid_argument("a tensor without a keep plane needs supermask and offsets");
    require_equal("supermask bytes", f.supermask_bytes, (free_count(f) + 7) / 8);
  }
  return f;
}

void require_drawn(const Frozen& f) {
  if (f.code == STORED_CODE) throw std::invalid_argument("code id is 4, a stored weight, expected 0 to 3");
}

void require_product(const Frozen& f) {
  if (f.code != STORED_CODE || (f.keep && f.offsets && f.values)) return;
  throw std::invalid_argument("a stored weight needs keep, offsets and values");
}

int64_t free_count(const Frozen& f) {
  if (!f.offsets) throw std::invalid_argument("offsets are missing");
  return f.offsets[f.rows * f.chunks()];
}

}  // namespace fk
