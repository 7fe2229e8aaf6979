// Draws as matrices: codes, partition, partition draws, initial scores, and their counts.
#include "cpu/format/ops.h"

namespace fk::FK_ISA_NS {

namespace {

// `f` describes the shard; generation needs the columns before it too.
Frozen whole_rows(const Frozen& f, int64_t col0) {
  Frozen wide = f;
  wide.cols = col0 + f.cols;
  wide.words = (wide.cols + 31) / 32;
  return wide;
}

// Tiles of a shard: make(block, word) draws one word of VL rows, fill(row, out) writes the 32 values of one row.
template <class T, class Make, class Fill>
void fill_matrix(const Frozen& f, int64_t row0, int64_t col0, T* out, int threads, const Make& make, const Fill& fill) {
  const Frozen wide = whole_rows(f, col0);
  if (f.rows == 0 || f.cols == 0) return;
  const int64_t first = (col0 / 32) & ~int64_t{3};
  for_tiles(f.rows, first, wide.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(wide, row0 + r0, nrows, VL);
    const vu32 rows = vu32::set(static_cast<uint32_t>(row0 + r0)) + vu32::iota();
    block.seek(w0);
    auto state = make(block, rows);
    for (int64_t w = w0; w < w0 + nw; ++w) {
      state.next(w, w - w0);
      const int64_t k = 32 * w - col0, lo = std::max<int64_t>(0, -k), hi = std::min<int64_t>(32, f.cols - k);
      for (int64_t r = 0; r < nrows; ++r) {
        put_columns(out + (r0 + r) * f.cols, k, lo, hi, [&](T* target) { fill(state, r, target); });
      }
    }
  });
}

struct SignState {
  RowBlock& block;
  uint32_t words[4][VL];
  const uint32_t* now;
  void next(int64_t, int64_t i) {
    if (i % 4 == 0) block.next_draw(4, words[0]);
    now = words[i % 4];
  }
};

struct ByteState {
  RowBlock& block;
  uint32_t quads[8][VL];
  void next(int64_t, int64_t) { block.next_draw(1, quads[0]); }
  FK_INLINE void bytes(int64_t row, uint8_t* out) const {
    for (int i = 0; i < 8; ++i) memcpy(out + 4 * i, &quads[i][row], 4);
  }
};

struct PartitionState {
  RowBlock& block;
  uint32_t free[VL], locked[VL];
  void next(int64_t, int64_t) { block.next_partition(1, free, locked); }
};

// pair[j][row]: u of column 2j in the low half, of column 2j + 1 in the high half.
struct DrawState {
  const Generator& generator;
  vu32 rows;
  uint32_t pair[16][VL];

  void next(int64_t w, int64_t) {
    vu32 plane[16];  // plane[i] is bit i of u
    for (uint32_t q = 0; q < 4; ++q) {
      const Four four = generator(static_cast<uint32_t>(w), rows, PARTITION_PURPOSE + q);
      for (int i = 0; i < 4; ++i) plane[15 - (4 * q + i)] = four.x[i];
    }
    transpose<8>(plane, 0x00FF00FFu);
    transpose<4>(plane, 0x0F0F0F0Fu);
    transpose<2>(plane, 0x33333333u);
    transpose<1>(plane, 0x55555555u);
    for (int j = 0; j < 16; ++j) plane[j].store(pair[j]);
  }

  // One step of a 16 x 16 bit transpose in each half of the lanes.
  template <int S>
  static FK_INLINE void transpose(vu32* a, uint32_t mask) {
    for (int i = 0; i < 16; ++i) {
      if (i & S) continue;
      const vu32 t = (shr<S>(a[i]) ^ a[i + S]) & vu32::set(mask);
      a[i + S] ^= t;
      a[i] ^= shl<S>(t);
    }
  }
};

// score[k][row] of the 32 columns of a word.
struct ScoreState {
  const Generator& generator;
  vu32 rows;
  vu32 score[32];
  uint32_t c2 = SCORE_PURPOSE;
  void next(int64_t w, int64_t) {
    for (int64_t call = 0; call < 8; ++call) {
      const Four four = generator(static_cast<uint32_t>(8 * w + call), rows, c2);
      for (int i = 0; i < 4; ++i) score[4 * call + i] = four.x[i];
    }
  }
};

struct UniformState : ScoreState {
  float bound;
  float value[32][VL];
  void next(int64_t w, int64_t i) {
    ScoreState::next(w, i);
    for (int k = 0; k < 32; ++k) {
      (to_float(shr_signed<8>(score[k])) * vf32::set(0x1p-23f) * vf32::set(bound)).store(value[k]);
    }
  }
};

}  // namespace

void codes(const Frozen& f, int64_t row0, int64_t col0, int16_t* out, int threads) {
  if (f.code == SIGN_CODE) {
    fill_matrix(
        f, row0, col0, out, threads, [](RowBlock& block, vu32) { return SignState{block, {}, nullptr}; },
        [](const SignState& s, int64_t r, int16_t* o) { expand_int16(natural_bits(s.now[r]), -1, 1, o); });
  } else if (f.code == CONSTANT_CODE) {
    constexpr int64_t SPAN = 1 << 16;
    const int64_t n = f.rows * f.cols;
    parallel_for(threads, (n + SPAN - 1) / SPAN,
                 [&](int64_t task) { std::fill(out + task * SPAN, out + std::min(n, (task + 1) * SPAN), int16_t{1}); });
  } else {
    int16_t table[256];
    for (int b = 0; b < 256; ++b) table[b] = static_cast<int16_t>(code_value(f.code, static_cast<uint32_t>(b)));
    fill_matrix(
        f, row0, col0, out, threads, [](RowBlock& block, vu32) { return ByteState{block, {}}; },
        [&](const ByteState& s, int64_t r, int16_t* o) {
          uint8_t bytes[32];
          s.bytes(r, bytes);
          if (f.code == UNIFORM_CODE) {
            for (int k = 0; k < 32; ++k) o[k] = static_cast<int16_t>(2 * bytes[k] - 255);
          } else {
            for (int k = 0; k < 32; ++k) o[k] = table[bytes[k]];
          }
        });
  }
}

void partition(const Frozen& f, int64_t row0, int64_t col0, int8_t* out, int threads) {
  fill_matrix(
      f, row0, col0, out, threads, [](RowBlock& block, vu32) { return PartitionState{block, {}, {}}; },
      [](const PartitionState& s, int64_t r, int8_t* o) {
        uint8_t pruned[32], locked[32];
        expand_bytes(natural_bits(s.free[r] | s.locked[r]), 0, 0xFF, pruned);
        expand_bytes(natural_bits(s.locked[r]), 1, 0, locked);
        for (int k = 0; k < 32; ++k) o[k] = static_cast<int8_t>(pruned[k] | locked[k]);
      });
}

void draws(const Frozen& f, int64_t row0, int64_t col0, int32_t* out, int threads) {
  const Generator generator(f);
  fill_matrix(
      f, row0, col0, out, threads, [&](RowBlock&, vu32 rows) { return DrawState{generator, rows, {}}; },
      [](const DrawState& s, int64_t r, int32_t* o) {
        for (int j = 0; j < 16; ++j) {
          o[2 * j] = static_cast<int32_t>(s.pair[j][r] & 0xFFFFu);
          o[2 * j + 1] = static_cast<int32_t>(s.pair[j][r] >> 16);
        }
      });
}

void uniform_scores(const Frozen& f, int64_t row0, int64_t col0, float bound, float* out, int threads) {
  const Generator generator(f);
  fill_matrix(
      f, row0, col0, out, threads, [&](RowBlock&, vu32 rows) { return UniformState{{generator, rows, {}}, bound, {}}; },
      [](const UniformState& s, int64_t r, float* o) {
        for (int k = 0; k < 32; ++k) o[k] = s.value[k][r];
      });
}

void histogram(const Frozen& f, int64_t* counts, int threads) {
  const Generator generator(f);
  std::fill(counts, counts + FULL_THRESHOLD, 0);
  const int64_t tiles = (f.rows + VL - 1) / VL * ((f.words + SEGMENT_WORDS - 1) / SEGMENT_WORDS);
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tiles)));
  std::vector<int64_t> partial(static_cast<size_t>(workers) * FULL_THRESHOLD);
  // One strided pass per worker, so that each has a histogram of its own.
  const int64_t across = (f.words + SEGMENT_WORDS - 1) / SEGMENT_WORDS;
  std::atomic<int64_t> next{0};
  parallel_for(workers, workers, [&](int64_t worker) {
    int64_t* const bins = partial.data() + worker * FULL_THRESHOLD;
    for (int64_t tile; (tile = next.fetch_add(1)) < tiles;) {
      const int64_t r0 = tile / across * VL, nrows = std::min<int64_t>(VL, f.rows - r0);
      const int64_t w0 = tile % across * SEGMENT_WORDS, w1 = std::min(w0 + SEGMENT_WORDS, f.words);
      DrawState state{generator, vu32::set(static_cast<uint32_t>(r0)) + vu32::iota(), {}};
      for (int64_t w = w0; w < w1; ++w) {
        state.next(w, 0);
        const int64_t left = std::min<int64_t>(32, f.cols - 32 * w);
        for (int64_t j = 0; 2 * j < left; ++j) {
          const bool both = 2 * j + 1 < left;
          for (int64_t r = 0; r < nrows; ++r) {
            ++bins[state.pair[j][r] & 0xFFFFu];
            if (both) ++bins[state.pair[j][r] >> 16];
          }
        }
      }
    }
  });
  for (int worker = 0; worker < workers; ++worker) {
    for (uint32_t u = 0; u < FULL_THRESHOLD; ++u) counts[u] += partial[worker * size_t{FULL_THRESHOLD} + u];
  }
}

void free_draws(const Frozen& f, uint32_t purpose, int32_t* out, int threads) {
  const Generator generator(f);
  const uint32_t c2 = purpose == SEARCH_PURPOSE ? purpose | f.generation << 8 : purpose;
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    int64_t at[VL];
    block.stream_positions(w0, at);
    ScoreState state{generator, vu32::set(static_cast<uint32_t>(r0)) + vu32::iota(), {}, c2};
    uint32_t free[VL], score[32][VL];
    for (int64_t w = w0; w < w0 + nw; ++w) {
      block.next_free(1, free);
      state.next(w, 0);
      for (int k = 0; k < 32; ++k) state.score[k].store(score[k]);
      for (int64_t r = 0; r < nrows; ++r) {
        for (uint32_t mask = free[r]; mask; mask &= mask - 1) {
          out[at[r]++] = static_cast<int32_t>(score[column_of_bit(__builtin_ctz(mask))][r]);
        }
      }
    }
  });
}

}  // namespace fk::FK_ISA_NS
