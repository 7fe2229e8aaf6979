// Words of 32 rows, each row's in order in memory: for kernels whose vectors run along a row.
#pragma once
#include <optional>

#include "cpu/core/scratch.h"
#include "cpu/words/row_block.h"

namespace fk::FK_ISA_NS {

// Row r starts at data + r * stride (bytes).
struct RowView {
  const char* data;
  int64_t stride;
  const char* row(int64_t r) const { return data + r * stride; }
};

// Chunks of CHUNK words, from the first on. Past the last row or column a view holds anything but is readable.
class RowWords {
 public:
  static constexpr int64_t ROWS = 2 * VL, CHUNK = VL;
  static constexpr int64_t SCRATCH_BYTES = 4 * (2 + 2 * 8) * CHUNK * ROWS + 4 * CHUNK * ROWS;

  RowWords(const Frozen& f, Scratch& scratch)
      : f_(f),
        lanes_(scratch.take<uint32_t>(8 * CHUNK * ROWS)),
        keep_(scratch.take<uint32_t>(CHUNK * ROWS)),
        draw_(scratch.take<uint32_t>(8 * CHUNK * ROWS)) {}

  void start(int64_t row0, int64_t rows) {
    row0_ = row0;
    rows_ = rows;
    block_.reset();
  }

  RowView keep(int64_t chunk) {
    if (const RowView stored = in_place(f_.keep, 4 * f_.words, chunk * CHUNK * 4, CHUNK * 4); stored.data)
      return stored;
    if (f_.keep) block().seek(chunk * CHUNK);
    block().next_keep(count(chunk), lanes_);
    return by_rows(count(chunk), keep_, 4 * CHUNK);
  }

  // Sign words, or bytes.
  RowView draw(int64_t chunk) {
    const bool signs = f_.code == SIGN_CODE;
    const void* const plane = signs ? static_cast<const void*>(f_.sign) : f_.bytes;
    const int64_t row_bytes = signs ? 4 * f_.words : f_.cols, chunk_bytes = CHUNK * (signs ? 4 : 32);
    if (const RowView stored = in_place(plane, row_bytes, chunk * chunk_bytes, chunk_bytes); stored.data) return stored;
    if (plane) block().seek(chunk * CHUNK);
    block().next_draw(count(chunk), lanes_);
    return by_rows(count(chunk) * (signs ? 1 : 8), draw_, chunk_bytes);
  }

 private:
  int64_t count(int64_t chunk) const { return std::min(CHUNK, f_.words - chunk * CHUNK); }

  RowBlock& block() {
    if (!block_) block_.emplace(f_, row0_, rows_, ROWS);
    return *block_;
  }

  // A chunk where it is stored, if all that is read of it is inside the plane; the block's cursor then stays behind.
  RowView in_place(const void* plane, int64_t row_bytes, int64_t from, int64_t bytes) const {
    if (!plane || (row0_ + ROWS - 1) * row_bytes + from + bytes > f_.rows * row_bytes) return {nullptr, 0};
    return {static_cast<const char*>(plane) + row0_ * row_bytes + from, row_bytes};
  }

  RowView by_rows(int64_t dwords, uint32_t* out, int64_t stride) const {
    for (int64_t r = 0; r < ROWS; r += VL) {
      for (int64_t i = 0; i < dwords; i += VL) {
        transpose_tile(lanes_ + i * ROWS + r, 4 * ROWS, reinterpret_cast<char*>(out) + r * stride + 4 * i, stride);
      }
    }
    return {reinterpret_cast<const char*>(out), stride};
  }

  const Frozen& f_;
  uint32_t *lanes_, *keep_, *draw_;
  std::optional<RowBlock> block_;
  int64_t row0_ = 0, rows_ = 0;
};

}  // namespace fk::FK_ISA_NS
