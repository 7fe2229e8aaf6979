// One pixel by lookup: the sums of a few inputs are a table in one register, and as many weights of VL rows, as bits,
// an index vector into it. AVX-512 has tables of 16 sums of 4 inputs, AVX2 of 8 sums of 3. Weights of +1 and of -1 are
// looked up apart, in the same table.
#pragma once
#include <immintrin.h>

#include "cpu/core/scratch.h"
#include "cpu/small_batch/input.h"
#include "cpu/words/row_block.h"

namespace fk::FK_LEVEL_NS {

namespace tables_detail {

constexpr int TABLE_BITS = FK_HAS_AVX512 ? 4 : 3;
constexpr int WORD_TABLES = (32 + TABLE_BITS - 1) / TABLE_BITS;  // AVX2's last one is of 2 inputs
constexpr int64_t TABLE_FLOATS = VL;
constexpr int64_t CHUNK_OF_WORDS = 16;
constexpr int CHAINS = 4;
constexpr int64_t CHAIN_WORDS = FK_HAS_AVX512 ? 4 : 2;  // longest chain of additions: 8 tables, or 6
constexpr int VECTORS = FK_HAS_AVX512 ? 4 : 2;
constexpr uint32_t LARGEST = (127 + 96) << 23;  // above it sums of table entries could overflow where products do not

}  // namespace tables_detail

// Tables of all inputs, [word][TABLE_BITS bits from bit TABLE_BITS * i on][sums].
class TableInput {
 public:
  static bool serves(const VectorInput& input, const Frozen&) { return input.largest(0) < tables_detail::LARGEST; }

  TableInput(const VectorInput& input, const Frozen& f) : memory_(static_cast<size_t>(f.words * WORD_FLOATS + 16)) {
    const uintptr_t start = reinterpret_cast<uintptr_t>(memory_.data());
    tables_ = memory_.data() + (64 - start % 64) / sizeof(float);
    for (int64_t word = 0; word < f.words; ++word) {
      const float* const x = input.of(0) + 32 * word;
      for (int i = 0; i < tables_detail::WORD_TABLES; ++i) {
        sums_of(x, tables_detail::TABLE_BITS * i).store(tables_ + word * WORD_FLOATS + i * tables_detail::TABLE_FLOATS);
      }
    }
  }

  int64_t pixels() const { return 1; }
  const float* word(int64_t w) const { return tables_ + w * WORD_FLOATS; }

 private:
  // Lane k: the sum of the inputs of the bits from `first` on that are set in k.
  static vf32 sums_of(const float* x, int first) {
#if FK_HAS_AVX512
    const auto at = [&](int bit) { return _mm512_set1_ps(x[column_of_bit(first + bit)]); };
    __m512 sums = _mm512_maskz_mov_ps(0xAAAA, at(0));
    sums = _mm512_mask_add_ps(sums, 0xCCCC, sums, at(1));
    sums = _mm512_mask_add_ps(sums, 0xF0F0, sums, at(2));
    return {_mm512_mask_add_ps(sums, 0xFF00, sums, at(3))};
#else
    vf32 sums = vf32::zero();
    for (int bit = 0; bit < tables_detail::TABLE_BITS && first + bit < 32; ++bit) {
      const vmask has = equal(vu32::iota() & vu32::set(1u << bit), vu32::set(1u << bit));
      sums = select(has, sums + vf32::set(x[column_of_bit(first + bit)]), sums);
    }
    return sums;
#endif
  }

  static constexpr int64_t WORD_FLOATS = tables_detail::WORD_TABLES * tables_detail::TABLE_FLOATS;
  std::vector<float> memory_;
  float* tables_;
};

// Sums of 64 rows at a time.
class TableSums {
 public:
  using Input = TableInput;
  static constexpr int64_t ROWS = tables_detail::VECTORS * VL, PIXELS = 1;

  static bool serves(const Frozen& f) { return f.code == SIGN_CODE || f.code == CONSTANT_CODE; }
  static int64_t scratch_bytes(const Frozen&) { return 2 * (tables_detail::CHUNK_OF_WORDS * ROWS * 4 + 64); }

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
    vf32 total[VECTORS];
    for (vf32& sum : total) sum = vf32::zero();
    for (int64_t word = 0; word < f_.words; word += CHUNK_OF_WORDS) {
      const int64_t count = std::min(CHUNK_OF_WORDS, f_.words - word);
      block.prefetch_following(word, count);
      block.next(count, plus_, minus_);
      if constexpr (SIGNED) split(count);
      for (int64_t w = 0; w < count; w += CHAIN_WORDS)
        add_words<SIGNED>(word, w, std::min(w + CHAIN_WORDS, count), total);
    }
    for (int v = 0; v < VECTORS; ++v) total[v].store(out + v * VL);
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
  FK_INLINE void add_words(int64_t word, int64_t from, int64_t to, vf32* total) const {
    using namespace tables_detail;
    // What is added and what is taken meet before they join a chain: apart they would grow where products of both signs
    // cancel. Four chains, since after an outlier every addition costs accuracy.
    vf32 chain[VECTORS][CHAINS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
#pragma GCC unroll 4
      for (int c = 0; c < CHAINS; ++c) chain[v][c] = vf32::zero();
    }
    for (int64_t w = from; w < to; ++w) {
      const float* const tables = input_.word(word + w);
#pragma GCC unroll 11
      for (int i = 0; i < WORD_TABLES; ++i) {
        const vf32 table = vf32::load(tables + i * TABLE_FLOATS);
#pragma GCC unroll 4
        for (int v = 0; v < VECTORS; ++v) {
          vf32 term = entries(plus_ + w * ROWS + v * VL, i, table);
          if constexpr (SIGNED) term = term - entries(minus_ + w * ROWS + v * VL, i, table);
          chain[v][i % CHAINS] = chain[v][i % CHAINS] + term;
        }
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      total[v] = total[v] + ((chain[v][0] + chain[v][1]) + (chain[v][2] + chain[v][3]));
    }
  }

  // What the bits of table i say of VL rows. A lookup reads TABLE_BITS bits of each lane.
  static FK_INLINE vf32 entries(const uint32_t* bits, int i, vf32 table) {
#if FK_HAS_AVX512
    // Whole bytes are found by reading from an odd address, not by a shift.
    const __m512i index = _mm512_loadu_si512(reinterpret_cast<const char*>(bits) + i / 2);
    return {_mm512_permutexvar_ps(i % 2 ? _mm512_srli_epi32(index, 4) : index, table.v)};
#else
    const __m256i index = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bits));
    return {_mm256_permutevar8x32_ps(table.v, _mm256_srli_epi32(index, tables_detail::TABLE_BITS * i))};
#endif
  }

  const Frozen& f_;
  const TableInput& input_;
  uint32_t *plus_, *minus_;
};

using TernarySums = TableSums;

}  // namespace fk::FK_LEVEL_NS
