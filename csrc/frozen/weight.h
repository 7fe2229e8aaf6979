// What a kernel needs to know of one frozen weight tensor. Raw pointers, not owned.
#pragma once
#include "format.h"

namespace fk {

struct Frozen {
  int64_t rows, cols, words;  // words = ceil(cols / 32)
  int code;
  uint32_t key0, key1, stream, generation, tau_prune, tau_freeze;
  float scale;
  const uint32_t* keep;      // [rows, words], or null
  const uint32_t* sign;      // [rows, words], or null: signs are generated
  const uint8_t* bytes;      // [rows, cols], or null: bytes are generated
  const uint8_t* supermask;  // one bit per free weight
  int64_t supermask_bytes;
  const int64_t* offsets;  // [rows * chunks() + 1] stream position of each (row, chunk); of kept values where stored
  const void* values;      // of a stored weight: what is kept, in stream order
  int value_dtype;
  const float* row_scale;  // [rows], or null: beside INT8 values

  int64_t chunks() const { return (words + CHUNK_WORDS - 1) / CHUNK_WORDS; }
};

enum DType { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3 };  // the last of values alone

}  // namespace fk
