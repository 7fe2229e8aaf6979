// Bit streams and planes: offsets, packing, unpacking, stored planes.
#include "cpu/format/ops.h"

namespace fk::FK_ISA_NS {

void partition_counts(const Frozen& f, int64_t* counts, int threads) {
  std::atomic<int64_t> total_free{0}, total_locked{0};
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    uint32_t free[VL], locked[VL];
    int64_t some_free = 0, some_locked = 0;
    for (int64_t i = 0; i < nw; ++i) {
      block.next_partition(1, free, locked);
      for (int64_t r = 0; r < nrows; ++r) {
        some_free += __builtin_popcount(free[r]);
        some_locked += __builtin_popcount(locked[r]);
      }
    }
    total_free += some_free;
    total_locked += some_locked;
  });
  counts[0] = f.rows * f.cols - total_free - total_locked;
  counts[1] = total_locked;
  counts[2] = total_free;
}

void offsets(const Frozen& f, int64_t* out, int threads) {
  const int64_t chunks = f.chunks(), entries = f.rows * chunks;
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    uint32_t free[VL];
    for (int64_t w = w0; w < w0 + nw; w += CHUNK_WORDS) {
      int64_t count[VL] = {};
      for (int64_t i = w; i < std::min(w + CHUNK_WORDS, w0 + nw); ++i) {
        block.next_free(1, free);
        for (int64_t r = 0; r < nrows; ++r) count[r] += __builtin_popcount(free[r]);
      }
      for (int64_t r = 0; r < nrows; ++r) out[(r0 + r) * chunks + w / CHUNK_WORDS] = count[r];
    }
  });
  sum_before(out, entries);
}

void keep_plane(const Frozen& f, uint32_t* out, int threads) {
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    uint32_t keep[VL];
    for (int64_t w = w0; w < w0 + nw; ++w) {
      block.next_keep(1, keep);
      for (int64_t r = 0; r < nrows; ++r) out[(r0 + r) * f.words + w] = keep[r];
    }
  });
}

void sign_plane(const Frozen& f, uint32_t* out, int threads) {
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    uint32_t sign[4][VL];
    for (int64_t w = w0; w < w0 + nw; w += 4) {
      block.next_draw(4, sign[0]);
      for (int64_t i = 0; i < std::min<int64_t>(4, w0 + nw - w); ++i) {
        const uint32_t valid = column_mask(static_cast<int>(std::min<int64_t>(32, f.cols - 32 * (w + i))));
        for (int64_t r = 0; r < nrows; ++r) out[(r0 + r) * f.words + w + i] = sign[i][r] & valid;
      }
    }
  });
}

void byte_plane(const Frozen& f, uint8_t* out, int threads) {
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    uint32_t quads[8][VL];
    for (int64_t w = w0; w < w0 + nw; ++w) {
      block.next_draw(1, quads[0]);
      for (int64_t r = 0; r < nrows; ++r) {
        put_columns(out + (r0 + r) * f.cols, 32 * w, 0, std::min<int64_t>(32, f.cols - 32 * w), [&](uint8_t* target) {
          for (int i = 0; i < 8; ++i) memcpy(target + 4 * i, &quads[i][r], 4);
        });
      }
    }
  });
}

namespace {

// Bit k = byte k of `count` (up to 32) bytes is not zero; `past` beyond them.
FK_INLINE uint32_t row_bits(const void* bytes, int64_t count, bool past) {
  if (count >= 32) return nonzero_bytes(static_cast<const uint8_t*>(bytes));
  uint8_t padded[32];
  memset(padded, past, sizeof(padded));
  memcpy(padded, bytes, static_cast<size_t>(count));
  return nonzero_bytes(padded);
}

// Runs of consecutive words of a [rows, cols] byte matrix, about 64 Ki elements each, in stream order.
struct Runs {
  int64_t rows, cols, words, per_run, count;

  Runs(int64_t rows, int64_t cols) : rows(rows), cols(cols), words((cols + 31) / 32) {
    per_run = 2048;
    count = (rows * words + per_run - 1) / per_run;
  }
  // fn(element, columns) for each word: the index of its first element and how many columns it has.
  template <class Fn>
  FK_INLINE void each(int64_t run, const Fn& fn) const {
    const int64_t end = std::min((run + 1) * per_run, rows * words);
    int64_t row = run * per_run / words, w = run * per_run % words;
    for (int64_t i = run * per_run; i < end; ++i) {
      fn(row * cols + 32 * w, std::min<int64_t>(32, cols - 32 * w));
      if (++w == words) ++row, w = 0;
    }
  }
};

// Stream position of the first free weight of each run, and the total.
std::vector<int64_t> run_starts(const Runs& runs, const int8_t* partition, int threads) {
  std::vector<int64_t> starts(static_cast<size_t>(runs.count) + 1);
  parallel_for(threads, runs.count, [&](int64_t run) {
    int64_t free = 0;
    runs.each(run, [&](int64_t at, int64_t n) { free += __builtin_popcount(~row_bits(partition + at, n, true)); });
    starts[run + 1] = free;
  });
  for (int64_t run = 0; run < runs.count; ++run) starts[run + 1] += starts[run];
  return starts;
}

// Appends bits from any bit position on. The first and last byte may belong to another writer too.
class BitWriter {
 public:
  BitWriter(uint8_t* stream, int64_t position)
      : byte_(stream + (position >> 3)), held_(position & 7), shared_(held_ != 0) {}

  FK_INLINE void put(uint32_t bits, int count) {
    window_ |= static_cast<uint64_t>(bits) << held_;
    held_ += count;
    while (held_ >= 8) flush();
  }
  void finish() {
    shared_ = true;
    if (held_) flush();
  }

 private:
  FK_INLINE void flush() {
    if (shared_) {
      __atomic_fetch_or(byte_, static_cast<uint8_t>(window_), __ATOMIC_RELAXED);
    } else {
      *byte_ = static_cast<uint8_t>(window_);
    }
    shared_ = false;
    ++byte_;
    window_ >>= 8;
    held_ -= 8;
  }
  uint8_t* byte_;
  uint64_t window_ = 0;
  int held_;
  bool shared_;
};

}  // namespace

void pack_plane(const Frozen& f, uint8_t* stream, int64_t bytes, int threads) {
  std::fill(stream, stream + bytes, uint8_t{0});
  for_tiles(f.rows, 0, f.words, SEGMENT_WORDS, threads, [&](int64_t r0, int64_t nrows, int64_t w0, int64_t nw) {
    RowBlock block(f, r0, nrows, VL);
    block.seek(w0);
    int64_t at[VL];
    block.stream_positions(w0, at);
    // A row's part of the tile is one run of the stream, and the tile's rows are written side by side.
    std::vector<BitWriter> writers;
    for (int64_t r = 0; r < nrows; ++r) writers.emplace_back(stream, at[r]);
    uint32_t free[VL], keep[VL];
    for (int64_t i = 0; i < nw; ++i) {
      block.next_free(1, free);
      block.next_keep(1, keep);
      for (int64_t r = 0; r < nrows; ++r) writers[r].put(extract(keep[r], free[r]), __builtin_popcount(free[r]));
    }
    for (BitWriter& writer : writers) writer.finish();
  });
}

int64_t count_free(const int8_t* partition, int64_t n, int threads) {
  return n ? run_starts(Runs(1, n), partition, threads).back() : 0;
}

void pack(const uint8_t* keep, const int8_t* partition, int64_t rows, int64_t cols, uint8_t* stream, int64_t bytes,
          int threads) {
  if (rows == 0 || cols == 0) return;
  const Runs runs(rows, cols);
  const std::vector<int64_t> starts = run_starts(runs, partition, threads);
  std::fill(stream, stream + bytes, uint8_t{0});
  parallel_for(threads, runs.count, [&](int64_t run) {
    BitWriter writer(stream, starts[run]);
    runs.each(run, [&](int64_t at, int64_t n) {
      const uint32_t free = format_bits(~row_bits(partition + at, n, true));
      writer.put(extract(format_bits(row_bits(keep + at, n, false)), free), __builtin_popcount(free));
    });
    writer.finish();
  });
}

void unpack(const uint8_t* stream, int64_t bytes, const int8_t* partition, int64_t rows, int64_t cols, uint8_t* keep,
            int threads) {
  if (rows == 0 || cols == 0) return;
  const Runs runs(rows, cols);
  const std::vector<int64_t> starts = run_starts(runs, partition, threads);
  parallel_for(threads, runs.count, [&](int64_t run) {
    int64_t position = starts[run];
    runs.each(run, [&](int64_t at, int64_t n) {
      const uint32_t free = format_bits(~row_bits(partition + at, n, true));
      const uint32_t kept = natural_bits(deposit(stream_bits(stream, bytes, position), free));
      position += __builtin_popcount(free);
      put_columns(keep, at, 0, n, [&](uint8_t* target) {
        expand_bytes(kept, 1, 0, target);
        for (int64_t k = 0; k < n; ++k) target[k] |= static_cast<uint8_t>(partition[at + k] > 0);
      });
    });
  });
}

void planes(const uint8_t* keep, int64_t rows, int64_t cols, uint32_t* out, int threads) {
  if (rows == 0 || cols == 0) return;
  const Runs runs(rows, cols);
  parallel_for(threads, runs.count, [&](int64_t run) {
    uint32_t* word = out + run * runs.per_run;
    runs.each(run, [&](int64_t at, int64_t n) { *word++ = format_bits(row_bits(keep + at, n, false)); });
  });
}

int64_t popcount(const uint8_t* data, int64_t bytes, int threads) {
  constexpr int64_t SPAN = 1 << 18;
  std::atomic<int64_t> total{0};
  parallel_for(threads, (bytes + SPAN - 1) / SPAN, [&](int64_t task) {
    const int64_t end = std::min(bytes, (task + 1) * SPAN);
    int64_t count = 0;
    for (int64_t at = task * SPAN; at < end; at += 8) {
      uint64_t word = 0;
      memcpy(&word, data + at, static_cast<size_t>(std::min<int64_t>(8, end - at)));
      count += __builtin_popcountll(word);
    }
    total += count;
  });
  return total;
}

}  // namespace fk::FK_ISA_NS
