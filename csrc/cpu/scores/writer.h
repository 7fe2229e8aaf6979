// The straight-through gradient of the scores of a tile, from a tile of dL/dW.
#pragma once
#include "cpu/words/row_block.h"

namespace fk::FK_ISA_NS {

// Element i of an array of `dtype`.
FK_INLINE float load_element(const void* data, DType dtype, int64_t i) {
  if (dtype == FLOAT32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return dtype == BFLOAT16 ? bf16_to_float(bits) : f16_to_float(bits);
}

FK_INLINE void store_element(void* data, DType dtype, int64_t i, float x) {
  if (dtype == FLOAT32) {
    static_cast<float*>(data)[i] = x;
  } else {
    static_cast<uint16_t*>(data)[i] = dtype == BFLOAT16 ? float_to_bf16(x) : float_to_f16(x);
  }
}

// As torch.sign: 0 at 0 and at NaN.
FK_INLINE float sign_of(float x) { return static_cast<float>((x > 0) - (x < 0)); }

// Gradients of the free weights in words [w0, w0 + nw) of a block of rows: out[i] = sign(scores[i]) * dW * code *
// scale, at the weights' places in the stream. dw[r * ld + (k - 32 * w0)] is dL/dW of row r of the block, column k.
class ScoreGradWriter {
 public:
  ScoreGradWriter(const Frozen& f, const void* scores, DType dtype, void* out)
      : f_(f), scores_(scores), out_(out), dtype_(dtype) {
    for (uint32_t b = 0; b < 256; ++b)
      table_[b] = static_cast<float>(code_value(f.code, f.code == SIGN_CODE ? b & 1 : b));
  }

  void write(RowBlock& block, int64_t w0, int64_t nw, const float* dw, int64_t ld) const {
    const int64_t R = block.stride(), draws = f_.code == SIGN_CODE ? 1 : f_.code == CONSTANT_CODE ? 0 : 8;
    std::vector<uint32_t> free(R), draw(R * 8 + 1);
    std::vector<int64_t> at(R);
    block.seek(w0);
    block.stream_positions(w0, at.data());
    for (int64_t i = 0; i < nw; ++i) {
      block.next_free(1, free.data());
      if (i % 4 == 0 && draws == 1) {
        // One generator call makes four sign words.
        block.next_draw(std::min<int64_t>(4, nw - i), draw.data());
      } else if (draws == 8) {
        block.next_draw(1, draw.data());
      }
      for (int64_t r = 0; r < block.nrows(); ++r) {
        const float* const row = dw + r * ld + 32 * i;
        const uint32_t sign_word = draws == 1 ? draw[(i % 4) * R + r] : 0;
        for (uint32_t mask = free[r]; mask; mask &= mask - 1) {
          const int bit = __builtin_ctz(mask), k = column_of_bit(bit);
          const uint32_t byte = draws == 8 ? draw[(k >> 2) * R + r] >> (8 * (k & 3)) & 255u : sign_word >> bit & 1u;
          const float score = load_element(scores_, dtype_, at[r]);
          store_element(out_, dtype_, at[r]++, sign_of(score) * row[k] * table_[byte] * f_.scale);
        }
      }
    }
  }

 private:
  Frozen f_;
  const void* scores_;
  void* out_;
  DType dtype_;
  float table_[256];
};

}  // namespace fk::FK_ISA_NS
