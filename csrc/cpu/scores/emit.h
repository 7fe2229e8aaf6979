// Gradients of the scores of free weights, from rows of dL/dW: out = sign(score) * dL/dW * code * scale.
#pragma once
#include "cpu/conv/codes.h"
#include "cpu/scores/scores.h"
#include "cpu/words/compress.h"

namespace fk::FK_ISA_NS {

namespace score_detail {

FK_INLINE vf32 flip_where(uint32_t bits, vf32 x) {
  return as_float(as_bits(x) ^ keep_where(from_bits(bits), vu32::set(0x80000000u)));
}

// As torch.sign: 0 at 0 and at NaN.
FK_INLINE vf32 sign_of(vf32 x) {
  const vu32 magnitude = as_bits(x) & vu32::set(0x7FFFFFFFu);
  const vu32 one = (as_bits(x) & vu32::set(0x80000000u)) | vu32::set(0x3F800000u);
  const vu32 number = keep_where(greater(vu32::set(0x7F800001u), magnitude), one);
  return as_float(keep_where(test(magnitude, vu32::set(~0u)), number));
}

// 2 * VL values to those at even places and those at odd ones.
FK_INLINE void part(const float* from, vf32& even, vf32& odd) {
#if FK_HAS_AVX512
  const __m512i pairs = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512 a = _mm512_loadu_ps(from), b = _mm512_loadu_ps(from + VL);
  even = {_mm512_permutex2var_ps(a, pairs, b)};
  odd = {_mm512_permutex2var_ps(a, _mm512_add_epi32(pairs, _mm512_set1_epi32(1)), b)};
#elif FK_HAS_AVX2
  const __m256 a = _mm256_loadu_ps(from), b = _mm256_loadu_ps(from + VL);
  const auto in_order = [](__m256 x) { return _mm256_permute4x64_pd(_mm256_castps_pd(x), 0xD8); };
  even = {_mm256_castpd_ps(in_order(_mm256_shuffle_ps(a, b, 0x88)))};
  odd = {_mm256_castpd_ps(in_order(_mm256_shuffle_ps(a, b, 0xDD)))};
#else
  float parted[2 * VL];
  for (int i = 0; i < VL; ++i) parted[i] = from[2 * i], parted[VL + i] = from[2 * i + 1];
  even = vf32::load(parted);
  odd = vf32::load(parted + VL);
#endif
}

// 32 columns in the order of the bits, negated where a bit of `signs` is set.
FK_INLINE void order_by_bits(const float* from, uint32_t signs, float* to) {
  constexpr uint32_t LANES = (1u << VL) - 1u;
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += VL) {
    vf32 even, odd;
    part(from + 2 * i, even, odd);
    flip_where(signs >> i & LANES, even).store(to + i);
    flip_where(signs >> (16 + i) & LANES, odd).store(to + 16 + i);
  }
}

}  // namespace score_detail

// Takes the words of a block of at most DEPTH rows from left to right.
class ScoreEmitter {
 public:
  ScoreEmitter(const ScoreCall& call, Scratch& scratch)
      : call_(call),
        codes_(call.f, scratch),
        free_(scratch.take<uint32_t>(WORDS * DEPTH)),
        signs_(scratch.take<uint32_t>(WORDS * DEPTH)),
        panel_(scratch.take<float>(DEPTH * LD)),
        by_row_(scratch.take<float>(DEPTH * LD)),
        line_(scratch.take<float>(32 * WORDS)),
        values_(scratch.take<float>(32 * WORDS + LIST_SLACK)),
        scores_(scratch.take<float>(32 * WORDS + LIST_SLACK)) {}
  static constexpr int64_t SCRATCH_BYTES =
      4 * (Codes::SCRATCH_FLOATS + 2 * CHUNK_WORDS * DEPTH + 2 * DEPTH * LD + 3 * 32 * CHUNK_WORDS + 2 * LIST_SLACK) +
      1024;

  void start(int64_t row, int64_t rows, int64_t word) {
    codes_.start(row, rows);
    codes_.block().stream_positions(word, position_);
    codes_.block().seek(word);
    word_ = word;
  }

  // The next `words` words: dw[r * ld + k] is dL/dW of row r and column k of them, and is overwritten. Whole words are
  // read.
  void next(int64_t words, float* dw, int64_t ld) {
    if (call_.f.code != SIGN_CODE && call_.f.code != CONSTANT_CODE) multiply_codes(words, dw, ld);
    for (int64_t w = 0; w < words; w += WORDS) {
      const int64_t count = std::min(WORDS, words - w);
      codes_.block().next_free(count, free_);
      if (call_.f.code == SIGN_CODE) codes_.block().next_draw(count, signs_);
      with_dtype(call_.scores_dtype, [&](auto dtype) { store_rows<dtype>(count, dw + 32 * w, ld); });
    }
    word_ += words;
  }

 private:
  static constexpr int64_t WORDS = CHUNK_WORDS, CODE_WORDS = DEPTH / 32;

  void multiply_codes(int64_t words, float* dw, int64_t ld) {
    const int64_t rows = codes_.block().nrows();
    for (int64_t w = 0; w < words; w += CODE_WORDS) {
      const int64_t count = std::min(CODE_WORDS, words - w);
      codes_.decode_all(word_ + w, count, panel_);
      transpose(panel_, LD, 32 * count, codes_.lanes(), by_row_, LD);
      for (int64_t r = 0; r < rows; ++r) {
        float *const to = dw + r * ld + 32 * w, *const code = by_row_ + r * LD;
        for (int64_t k = 0; k < 32 * count; k += VL) (vf32::load(to + k) * vf32::load(code + k)).store(to + k);
      }
    }
  }

  template <int DTYPE>
  void store_rows(int64_t words, const float* dw, int64_t ld) {
    using Type = typename Element<DTYPE>::Type;
    const int64_t lanes = codes_.lanes();
    const bool signs = call_.f.code == SIGN_CODE;
    for (int64_t r = 0; r < codes_.block().nrows(); ++r) {
      uint32_t free[WORDS];
      for (int64_t w = 0; w < words; ++w) {
        free[w] = free_[w * lanes + r];
        score_detail::order_by_bits(dw + r * ld + 32 * w, signs ? signs_[w * lanes + r] : 0, line_ + 32 * w);
      }
      const int64_t found = compress(free, words, line_, values_);
      store<DTYPE>(static_cast<const Type*>(call_.scores) + position_[r], found,
                   static_cast<Type*>(call_.out) + position_[r]);
      position_[r] += found;
    }
  }

  template <int DTYPE>
  void store(const typename Element<DTYPE>::Type* scores, int64_t count, typename Element<DTYPE>::Type* out) {
    const vf32 scale = vf32::set(call_.f.scale);
    read<DTYPE>(scores, 1, count, scores_);
    for (int64_t i = 0; i < count; i += VL) {
      const vf32 x = vf32::load(values_ + i) * scale * score_detail::sign_of(vf32::load(scores_ + i));
      store_some<DTYPE>(out + i, x, count - i);
    }
  }

  const ScoreCall& call_;
  Codes codes_;
  uint32_t *const free_, *const signs_;
  float *const panel_, *const by_row_, *const line_, *const values_, *const scores_;
  int64_t position_[DEPTH];
  int64_t word_ = 0;
};

}  // namespace fk::FK_ISA_NS
