// The transpose of a weight of sign or constant codes, as planes that every kernel reads: its rows are the channels of
// the groups, its columns the rows of a group under each of some taps, in the order given.
#pragma once
#include <memory>
#include <vector>

#include "cpu/conv/layer.h"
#include "cpu/core/parallel.h"
#include "cpu/words/row_block.h"
#include "cpu/words/turn_bits.h"

namespace fk::FK_ISA_NS {

// Its sizes alone.
inline Frozen turned_shape(const Frozen& f, const Layer& layer, int64_t taps) {
  Frozen turned = f;
  turned.rows = layer.groups * layer.channels;
  turned.cols = taps * layer.rows;
  turned.words = divide_up(turned.cols, 32);
  return turned;
}

class TurnedWeight {
 public:
  TurnedWeight(const Frozen& f, const Layer& layer, const std::vector<int64_t>& taps, int threads)
      : f_(f),
        rows_(layer.rows),
        channels_(layer.channels),
        place_(layer.taps, -1),
        turned_(turned_shape(f, layer, static_cast<int64_t>(taps.size()))) {
    for (size_t i = 0; i < taps.size(); ++i) place_[taps[i]] = static_cast<int64_t>(i);
    const int64_t words = turned_.rows * turned_.words, planes = f.code == SIGN_CODE ? 2 : 1;
    planes_.reset(new uint32_t[static_cast<size_t>(planes * words)]);
    turned_.keep = planes_.get();
    turned_.sign = planes == 2 ? planes_.get() + words : nullptr;
    turned_.bytes = nullptr;
    if (rows_ % 32) memset(planes_.get(), 0, static_cast<size_t>(planes * words) * sizeof(uint32_t));
    const int64_t blocks = divide_up(rows_, 32);
    parallel_for(threads, layer.groups * blocks, [&](int64_t i) { turn(i / blocks, i % blocks * 32, planes); });
  }
  const Frozen& frozen() const { return turned_; }

 private:
  static constexpr int64_t STEP = 16;  // words read at once

  // Rows of a group are read once and from left to right, which a seed asks for.
  void turn(int64_t group, int64_t row, int64_t planes) const {
    const int64_t rows = std::min<int64_t>(32, rows_ - row);
    RowBlock block(f_, group * rows_ + row, rows, 32);
    uint32_t words[2][STEP * 32], columns[32];
    for (int64_t w = 0; w < f_.words; w += STEP) {
      const int64_t count = std::min(STEP, f_.words - w);
      block.next(count, words[0], words[1]);
      for (int64_t plane = 0; plane < planes; ++plane) {
        uint32_t* const out = planes_.get() + plane * turned_.rows * turned_.words;
        for (int64_t i = 0; i < count; ++i) {
          turn_bits(words[plane] + 32 * i, columns);
          put(columns, 32 * (w + i), group, row, rows, out);
        }
      }
    }
  }

  // The bits of up to 32 rows for the columns of a word.
  void put(const uint32_t* columns, int64_t column, int64_t group, int64_t row, int64_t rows, uint32_t* out) const {
    int64_t tap = column / channels_, channel = column % channels_;
    const int64_t count = std::min<int64_t>(32, f_.cols - column);
    for (int64_t k = 0; k < count; ++k, ++channel) {
      if (channel == channels_) channel = 0, ++tap;
      if (place_[tap] < 0) continue;
      const int64_t at = place_[tap] * rows_ + row;
      uint32_t* const to = out + (group * channels_ + channel) * turned_.words + at / 32;
      if (rows_ % 32 == 0) {
        *to = columns[k];
      } else {
        add(columns[k], at % 32, rows, to);
      }
    }
  }

  // Where taps end inside of words, two blocks of rows write to one.
  static void add(uint32_t bits, int64_t from, int64_t rows, uint32_t* to) {
    const uint64_t natural = static_cast<uint64_t>(to_natural_order(bits) & low_bits(rows)) << from;
    const uint32_t parts[2] = {static_cast<uint32_t>(natural), static_cast<uint32_t>(natural >> 32)};
    for (int i = 0; i < 2; ++i) {
      if (parts[i]) __atomic_fetch_or(to + i, to_format_order(parts[i]), __ATOMIC_RELAXED);
    }
  }
  static uint32_t low_bits(int64_t count) { return count >= 32 ? ~0u : (1u << count) - 1u; }

  const Frozen& f_;
  const int64_t rows_, channels_;
  std::vector<int64_t> place_;  // of a tap among those taken, or -1
  Frozen turned_;
  std::unique_ptr<uint32_t[]> planes_;
};

}  // namespace fk::FK_ISA_NS
