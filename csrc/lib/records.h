// What a ticket says of its frozen tensors: docs/format.md, sections 7 and 8.
#pragma once
#include "frozen/weight.h"
#include "lib/container.h"

namespace fk::lib {

struct Record {
  std::string name;
  std::vector<int64_t> shape;
  int64_t rows, cols;
  uint64_t seed;
  int64_t stream, generation, tau_prune, tau_freeze;
  int code;  // a Code; SIGNS_CODE too
  float scale;
  int64_t pruned, locked, free, kept;
  std::string keep_sha256;
  int value_dtype;  // a DType; of a stored weight
  int64_t coats;    // 1 where it has no coats
  std::vector<int64_t> coat_kept;
  int64_t generations;  // 1 where all weights are of one
  bool has_gain;

  bool drawn() const { return code != STORED_CODE && code != SIGNS_CODE; }
};

const char* code_name(int code);

// The records of a ticket whose metadata, digest and tensors hold together. Error FROZEN_TICKET where they do not,
// FROZEN_UNSUPPORTED for a version or a feature that this library lacks.
std::vector<Record> read_records(const Container& container);

// How many bits of a stream are set.
int64_t count_bits(const uint8_t* data, int64_t bytes);

}  // namespace fk::lib
