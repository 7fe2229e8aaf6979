// One pixel by lookup: the 16 sums of each 4 inputs are a table in one register, and 4 weights of 16 rows, as bits, an
// index vector into it. Weights of +1 and of -1 are looked up apart, in the same table.
#pragma once
#include <immintrin.h>

#include "cpu/core/scratch.h"
#include "cpu/small_batch/input.h"
#include "cpu/words/row_block.h"

namespace fk::FK_ISA_NS {

namespace tables_detail {

constexpr int64_t WORD_TABLES = 8, TABLE_FLOATS = 16;
constexpr int64_t CHUNK_OF_WORDS = 16;
constexpr int64_t CHAIN_WORDS = 4;  // longest chain of additions: 16 table entries
constexpr int VECTORS = 4;
constexpr uint32_t LARGEST = (127 + 96) << 23;  // above it sums of table entries could overflow where products do not

}  // namespace tables_detail

// Tables of all inputs, [word][4 bits from bit 4 * i on][16 sums].
class TableInput {
 public:
  static bool serves(const VectorInput& input, const Frozen&) { return input.largest(0) < tables_detail::LARGEST; }

  TableInput(const VectorInput& input, const Frozen& f) : memory_(static_cast<size_t>(f.words * WORD_FLOATS + 16)) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.data());
    tables_ = memory_.data() + (64 - start % 64) / sizeof(float);
    for (int64_t word = 0; word < f.words; ++word) {
      for (int i = 0; i < tables_detail::WORD_TABLES; ++i) {
        const float* const x = input.of(0) + 32 * word;
        const auto at = [&](int bit) { return _mm512_set1_ps(x[column_of_bit(4 * i + bit)]); };
        __m512 sums = _mm512_maskz_mov_ps(0xAAAA, at(0));
        sums = _mm512_mask_add_ps(sums, 0xCCCC, sums, at(1));
        sums = _mm512_mask_add_ps(sums, 0xF0F0, sums, at(2));
        sums = _mm512_mask_add_ps(sums, 0xFF00, sums, at(3));
        _mm512_store_ps(tables_ + word * WORD_FLOATS + i * tables_detail::TABLE_FLOATS, sums);
      }
    }
  }

  int64_t pixels() const { return 1; }
  const float* word(int64_t w) const { return tables_ + w * WORD_FLOATS; }

 private:
  static constexpr int64_t WORD_FLOATS = tables_detail::WORD_TABLES * tables_detail::TABLE_FLOATS;
  std::vector<float> memory_;
  float* tables_;
};

// Sums of 64 rows at a time.
class TableSums {
 public:
  using Input = TableInput;
  static constexpr int64_t ROWS = tables_detail::VECTORS * VL, PIXELS = 1;
  static constexpr int64_t SCRATCH_BYTES = 2 * (tables_detail::CHUNK_OF_WORDS * ROWS * 4 + 64);

  static bool serves(const Frozen& f) { return f.code == SIGN_CODE || f.code == CONSTANT_CODE; }

  TableSums(const Frozen& f, const TableInput& input, Scratch& scratch)
      : f_(f),
        input_(input),
        plus_(scratch.take<uint32_t>(tables_detail::CHUNK_OF_WORDS * ROWS + 16)),
        minus_(scratch.take<uint32_t>(tables_detail::CHUNK_OF_WORDS * ROWS + 16)) {}

  // out[row], zero past `rows`.
  void operator()(int64_t row0, int64_t rows, float* out) {
    if (f_.code == SIGN_CODE) {
      run<true>(row0, rows, out);
    } else {
      run<false>(row0, rows, out);
    }
  }

 private:
  template <bool SIGNED>
  void run(int64_t row0, int64_t rows, float* out) {
    using namespace tables_detail;
    RowBlock block(f_, row0, rows, ROWS);
    __m512 total[VECTORS] = {};
    for (int64_t word = 0; word < f_.words; word += CHUNK_OF_WORDS) {
      const int64_t count = std::min(CHUNK_OF_WORDS, f_.words - word);
      block.prefetch_following(word, count);
      block.next(count, plus_, minus_);
      if constexpr (SIGNED) split(count);
      for (int64_t w = 0; w < count; w += CHAIN_WORDS)
        add_words<SIGNED>(word, w, std::min(w + CHAIN_WORDS, count), total);
    }
    for (int v = 0; v < VECTORS; ++v) _mm512_storeu_ps(out + v * VL, total[v]);
  }

  // From keep and sign bits to bits of weights +1 and of weights -1.
  void split(int64_t words) {
    for (int64_t i = 0; i < words * ROWS; i += VL) {
      const vu32 keep = vu32::load(plus_ + i), sign = vu32::load(minus_ + i);
      andnot(sign, keep).store(plus_ + i);
      (sign & keep).store(minus_ + i);
    }
  }

  template <bool SIGNED>
  FK_INLINE void add_words(int64_t word, int64_t from, int64_t to, __m512* total) const {
    using namespace tables_detail;
    // Two chains each, of the lower and the upper halves of bytes: after an outlier every addition costs accuracy.
    __m512 plus[VECTORS][2], minus[VECTORS][2];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) plus[v][0] = plus[v][1] = minus[v][0] = minus[v][1] = _mm512_setzero_ps();
    for (int64_t w = from; w < to; ++w) {
      const float* const tables = input_.word(word + w);
#pragma GCC unroll 4
      for (int byte = 0; byte < 4; ++byte) {
        const __m512 low = _mm512_load_ps(tables + 2 * byte * TABLE_FLOATS);
        const __m512 high = _mm512_load_ps(tables + (2 * byte + 1) * TABLE_FLOATS);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          // A lookup reads 4 bits of each lane: bytes are found by reading from an odd address, not by a shift.
          add_entries(plus_ + w * ROWS + v * VL, byte, low, high, plus[v]);
          if constexpr (SIGNED) add_entries(minus_ + w * ROWS + v * VL, byte, low, high, minus[v]);
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      const __m512 added = _mm512_add_ps(plus[v][0], plus[v][1]), taken = _mm512_add_ps(minus[v][0], minus[v][1]);
      total[v] = _mm512_add_ps(total[v], SIGNED ? _mm512_sub_ps(added, taken) : added);
    }
  }

  static FK_INLINE void add_entries(const uint32_t* bits, int byte, __m512 low, __m512 high, __m512 (&sum)[2]) {
    const __m512i index = _mm512_loadu_si512(reinterpret_cast<const char*>(bits) + byte);
    sum[0] = _mm512_add_ps(sum[0], _mm512_permutexvar_ps(index, low));
    sum[1] = _mm512_add_ps(sum[1], _mm512_permutexvar_ps(_mm512_srli_epi32(index, 4), high));
  }

  const Frozen& f_;
  const TableInput& input_;
  uint32_t *plus_, *minus_;
};

using VectorSums = TableSums;

}  // namespace fk::FK_ISA_NS
