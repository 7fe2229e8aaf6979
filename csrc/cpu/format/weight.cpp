// The effective weight as a tensor, by matrix and by row, and the gradients of its scores.
#include <stdexcept>
#include <string>

#include "cpu/format/ops.h"
#include "cpu/scores/writer.h"

namespace fk::FK_ISA_NS {

namespace {

// Values of the words of a block, left to right: keep ? float32(code) * scale : 0.
class Values {
 public:
  explicit Values(const Frozen& f) : f_(f) {
    for (uint32_t b = 0; b < 256; ++b) table_[b] = static_cast<float>(code_value(f.code, b)) * f.scale;
  }

  struct Words {
    uint32_t keep[VL], draw[8][VL];
  };

  FK_INLINE void row(const Words& words, int64_t i, int64_t r, float* out) const {
    const uint32_t keep = natural_bits(words.keep[r]);
    if (f_.code == SIGN_CODE || f_.code == CONSTANT_CODE) {
      const uint32_t negative = f_.code == SIGN_CODE ? natural_bits(words.draw[i % 4][r]) : 0;
      const vf32 plus = vf32::set(f_.scale), minus = vf32::set(-f_.scale);
      for (int k = 0; k < 32; k += VL) {
        keep_where(from_bits(keep >> k), select(from_bits(negative >> k), minus, plus)).store(out + k);
      }
      return;
    }
    for (int q = 0; q < 8; ++q) {
      const uint32_t quad = words.draw[q][r];
      for (int j = 0; j < 4; ++j) out[4 * q + j] = table_[quad >> (8 * j) & 255u];
    }
    for (int k = 0; k < 32; k += VL) keep_where(from_bits(keep >> k), vf32::load(out + k)).store(out + k);
  }

  // fn(word, row of the block, values[32]) for words [w0, w0 + nw), w0 a multiple of 4.
  template <class Fn>
  void each(RowBlock& block, int64_t w0, int64_t nw, const Fn& fn) const {
    Words words;
    float values[32];
    block.seek(w0);
    for (int64_t i = 0; i < nw; ++i) {
      block.next_keep(1, words.keep);
      if (f_.code != SIGN_CODE) {
        block.next_draw(1, words.draw[0]);
      } else if (i % 4 == 0) {
        block.next_draw(std::min<int64_t>(4, nw - i), words.draw[0]);
      }
      for (int64_t r = 0; r < block.nrows(); ++r) {
        row(words, i, r, values);
        fn(w0 + i, r, values);
      }
    }
  }

 private:
  const Frozen& f_;
  float table_[256];
};

FK_INLINE void store_half(DType dtype, const float* values, uint16_t* out) {
  for (int k = 0; k < 32; k += VL) {
    const vf32 x = vf32::load(values + k);
    if (dtype == BFLOAT16) {
      store_bf16(out + k, x);
    } else {
      store_f16(out + k, x);
    }
  }
}

// Puts the first n values at element `at`, `step` elements apart.
template <class T>
FK_INLINE void put_values(T* out, int64_t at, int64_t step, int64_t n, const T* values) {
  if (step == 1) {
    if (n == 32) {
      memcpy(out + at, values, 32 * sizeof(T));
    } else {
      memcpy(out + at, values, static_cast<size_t>(n) * sizeof(T));
    }
  } else {
    for (int64_t i = 0; i < n; ++i) out[at + i * step] = values[i];
  }
}

// Columns [k, k + n) of a row in section 1 order, put at torch's place for (row, channel, tap).
template <class T>
FK_INLINE void put_word(T* row, int64_t k, int64_t n, int64_t channels, int64_t taps, const T* values) {
  if (taps == 1) return put_values(row, k, 1, n, values);
  int64_t tap = k / channels, c = k % channels;
  for (int64_t done = 0; done < n; ++tap, c = 0) {
    const int64_t run = std::min(n - done, channels - c);
    put_values(row, c * taps + tap, taps, run, values + done);
    done += run;
  }
}

FK_INLINE void put_word_as(void* out, DType dtype, int64_t start, int64_t k, int64_t n, int64_t channels, int64_t taps,
                           const float* values) {
  if (dtype == FLOAT32) return put_word(static_cast<float*>(out) + start, k, n, channels, taps, values);
  uint16_t half[32];
  store_half(dtype, values, half);
  put_word(static_cast<uint16_t*>(out) + start, k, n, channels, taps, half);
}

constexpr int64_t GRAD_WORDS = CHUNK_WORDS, GRAD_COLUMNS = 32 * GRAD_WORDS;

void check_index(int64_t index, int64_t rows) {
  if (index < 0 || index >= rows) {
    throw std::out_of_range("index is " + std::to_string(index) + ", expected 0 to " + std::to_string(rows - 1));
  }
}

}  // namespace

void weight(const Frozen& f, int64_t channels, int64_t taps, DType dtype, void* out, int threads) {
  const Values all(f);
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    all.each(block, w0, nw, [&](int64_t w, int64_t r, const float* values) {
      const int64_t n = std::min<int64_t>(32, f.cols - 32 * w);
      put_word_as(out, dtype, (r0 + r) * f.cols, 32 * w, n, channels, taps, values);
    });
  });
}

void weight_grad_scores(const Frozen& f, const void* grad, DType grad_dtype, const WeightStrides& strides,
                        const void* scores, DType score_dtype, void* out, int threads) {
  const ScoreGradWriter writer(f, scores, score_dtype, out);
  for_tiles(f.rows, 0, f.words, GRAD_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    std::vector<float> dw(VL * GRAD_COLUMNS);
    std::vector<int64_t> place(GRAD_COLUMNS);
    const int64_t n = std::min(32 * nw, f.cols - 32 * w0);
    int64_t tap = 32 * w0 / strides.channels, c = 32 * w0 % strides.channels;
    for (int64_t k = 0; k < n; ++k) {
      place[k] = c * strides.channel_stride + strides.tap_offsets[tap];
      if (++c == strides.channels) ++tap, c = 0;
    }
    for (int64_t r = 0; r < nrows; ++r) {
      const int64_t start = (r0 + r) * strides.row_stride;
      float* const row = dw.data() + r * GRAD_COLUMNS;
      if (grad_dtype == FLOAT32) {
        for (int64_t k = 0; k < n; ++k) row[k] = static_cast<const float*>(grad)[start + place[k]];
      } else {
        for (int64_t k = 0; k < n; ++k) row[k] = load_element(grad, grad_dtype, start + place[k]);
      }
    }
    writer.write(block, w0, nw, dw.data(), GRAD_COLUMNS);
  });
}

void embedding(const Frozen& f, const int64_t* indices, int64_t count, int64_t padding_idx, DType dtype, void* out,
               int threads) {
  for (int64_t i = 0; i < count; ++i) check_index(indices[i], f.rows);
  const Values all(f);
  for_tiles(count, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t i0, int64_t n, int64_t w0, int64_t nw) {
    RowBlock block(f, indices + i0, n, VL);
    const float zeros[32] = {};
    all.each(block, w0, nw, [&](int64_t w, int64_t r, const float* values) {
      const int64_t columns = std::min<int64_t>(32, f.cols - 32 * w);
      const float* const source = indices[i0 + r] == padding_idx ? zeros : values;
      put_word_as(out, dtype, (i0 + r) * f.cols, 32 * w, columns, f.cols, 1, source);
    });
  });
}

void embedding_grad_scores(const Frozen& f, const void* grad, DType grad_dtype, int64_t stride0, int64_t stride1,
                           const int64_t* indices, int64_t count, int64_t padding_idx, const void* scores,
                           DType score_dtype, void* out, int threads) {
  // Which lookups hit each row, in their own order: sums do not depend on the number of threads.
  std::vector<int64_t> start(static_cast<size_t>(f.rows) + 1), lookups(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    check_index(indices[i], f.rows);
    ++start[indices[i] + 1];
  }
  for (int64_t row = 0; row < f.rows; ++row) start[row + 1] += start[row];
  {
    std::vector<int64_t> at(start.begin(), start.end() - 1);
    for (int64_t i = 0; i < count; ++i) lookups[at[indices[i]]++] = i;
  }
  const ScoreGradWriter writer(f, scores, score_dtype, out);
  for_tiles(f.rows, 0, f.words, GRAD_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    std::vector<float> dw(VL * GRAD_COLUMNS);
    const int64_t n = std::min(32 * nw, f.cols - 32 * w0);
    for (int64_t r = 0; r < nrows; ++r) {
      if (r0 + r == padding_idx) continue;
      float* const row = dw.data() + r * GRAD_COLUMNS;
      for (int64_t i = start[r0 + r]; i < start[r0 + r + 1]; ++i) {
        const int64_t from = lookups[i] * stride0 + 32 * w0 * stride1;
        for (int64_t k = 0; k < n; ++k) row[k] += load_element(grad, grad_dtype, from + k * stride1);
      }
    }
    writer.write(block, w0, nw, dw.data(), GRAD_COLUMNS);
  });
}

}  // namespace fk::FK_ISA_NS
