// Words of a block of rows, from whatever the layer keeps in memory. The one place that knows residencies.
#pragma once
#include <algorithm>
#include <vector>

#include "frozen/weight.h"
#include "cpu/words/generate.h"
#include "cpu/simd/simd.h"
#include "cpu/simd/transpose_tile.h"

namespace fk::FK_ISA_NS {

// 32 bits of a byte stream from bit `position` on; bits past its end are 0.
FK_INLINE uint32_t stream_bits(const uint8_t* stream, int64_t bytes, int64_t position) {
  const int64_t at = position >> 3;
  uint64_t window = 0;
  if (at + 8 <= bytes) {
    memcpy(&window, stream + at, 8);
  } else if (at < bytes) {
    memcpy(&window, stream + at, static_cast<size_t>(bytes - at));
  }
  return static_cast<uint32_t>(window >> (position & 7));
}

// Rows row0 .. row0 + nrows, or any list of rows, read left to right. Buffers are [word][row] with a row stride of R, a
// multiple of VL with nrows <= R; lanes past nrows are 0 in keep and free words and undefined in draws. Keep, draw and
// free words have a cursor each.
class RowBlock {
 public:
  RowBlock(const Frozen& f, int64_t row0, int64_t nrows, int64_t R) : RowBlock(f, nrows, R) {
    for (int64_t r = 0; r < R; ++r) rows_[r] = static_cast<uint32_t>(row0 + r);
    in_order_ = true;
  }
  RowBlock(const Frozen& f, const int64_t* rows, int64_t nrows, int64_t R) : RowBlock(f, nrows, R) {
    for (int64_t r = 0; r < nrows; ++r) rows_[r] = static_cast<uint32_t>(rows[r]);
  }
  RowBlock(const RowBlock&) = delete;
  RowBlock& operator=(const RowBlock&) = delete;

  // Puts all cursors at word w0.
  void seek(int64_t w0) {
    keep_at_ = draw_at_ = free_at_ = w0;
    positioned_ = false;
  }

  // Words [w, w + nw): keep [nw][R]; draw [nw][R] sign words, or [nw * 8][R] quads (bytes of columns 4i .. 4i + 3) for
  // uniform and normal codes; a constant code leaves draw alone.
  void next(int64_t nw, uint32_t* keep, uint32_t* draw) {
    next_keep(nw, keep);
    next_draw(nw, draw);
  }

  void next_keep(int64_t nw, uint32_t* keep) {
    if (f_.keep) {
      copy_plane(f_.keep, keep_at_, nw, keep);
      for (int64_t i = 0; i < nw; ++i) mask_tail(keep_at_ + i, keep + i * R_);
    } else {
      if (!positioned_) {
        stream_at_.resize(R_);
        stream_positions(keep_at_, stream_at_.data());
        positioned_ = true;
      }
      for (int64_t i = 0; i < nw; ++i) seed_keep(keep_at_ + i, keep + i * R_);
    }
    keep_at_ += nw;
  }

  void next_draw(int64_t nw, uint32_t* draw) {
    if (f_.code == SIGN_CODE) {
      if (f_.sign) {
        copy_plane(f_.sign, draw_at_, nw, draw);
      } else {
        draw_signs(draw_at_, nw, draw);
      }
    } else if (f_.code != CONSTANT_CODE) {
      if (f_.bytes) {
        copy_bytes(draw_at_, nw, draw);
      } else {
        draw_bytes(draw_at_, nw, draw);
      }
    }
    draw_at_ += nw;
  }

  // Asks for the stored planes of words [w, w + nw) of the rows that follow the block's, where the plane goes on.
  void prefetch_following(int64_t w, int64_t nw) const {
    const int64_t rows = std::min(nrows_, f_.rows - rows_[0] - nrows_);
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t row = rows_[0] + nrows_ + r;
      for (int64_t i = 0; i < nw; i += 16) {
        if (f_.keep) __builtin_prefetch(f_.keep + row * f_.words + w + i);
        if (f_.sign) __builtin_prefetch(f_.sign + row * f_.words + w + i);
      }
      for (int64_t i = 0; f_.bytes && i < 32 * nw; i += 64) __builtin_prefetch(f_.bytes + row * f_.cols + 32 * w + i);
    }
  }

  // Free-mask words: needs the seed and thresholds alone.
  void next_free(int64_t nw, uint32_t* free) { next_partition(nw, free, nullptr); }

  // Free-mask words and, unless null, locked-mask words.
  void next_partition(int64_t nw, uint32_t* free, uint32_t* locked) {
    for (int64_t i = 0; i < nw; ++i) partition_word(free_at_ + i, free + i * R_, locked ? locked + i * R_ : nullptr);
    free_at_ += nw;
  }

  // Stream position of the first free bit of word w of each row. Needs `offsets`; moves no cursor.
  void stream_positions(int64_t w, int64_t* positions) const {
    const int64_t chunks = f_.chunks(),
                  chunk = std::clamp<int64_t>(w / CHUNK_WORDS, 0, std::max<int64_t>(chunks - 1, 0));
    for (int64_t r = 0; r < nrows_; ++r) positions[r] = f_.offsets[rows_[r] * chunks + chunk];
    for (int64_t past = chunk * CHUNK_WORDS; past < w; ++past) {
      partition_word(past, scratch_.data(), nullptr);
      for (int64_t r = 0; r < nrows_; ++r) positions[r] += __builtin_popcount(scratch_[r]);
    }
  }

  int64_t nrows() const { return nrows_; }
  int64_t stride() const { return R_; }

 private:
  RowBlock(const Frozen& f, int64_t nrows, int64_t R)
      : f_(f),
        generator_(f),
        partition_(generator_, f.tau_prune, f.tau_freeze),
        nrows_(nrows),
        R_(R),
        rows_(R),
        scratch_(R) {}

  // Bits of word w that are columns.
  uint32_t columns(int64_t w) const {
    return column_mask(static_cast<int>(std::clamp<int64_t>(f_.cols - 32 * w, 0, 32)));
  }

  void mask_tail(int64_t w, uint32_t* words) const {
    if (f_.cols - 32 * w >= 32) return;
    for (int64_t r = 0; r < nrows_; ++r) words[r] &= columns(w);
  }

  FK_INLINE void partition_word(int64_t w, uint32_t* free, uint32_t* locked) const {
    const vu32 valid = vu32::set(columns(w));
    for (int64_t r = 0; r < R_; r += VL) {
      vu32 prune, freeze;
      partition_.below(w, vu32::load(rows_.data() + r), prune, freeze);
      andnot(freeze, valid).store(free + r);
      if (locked) (andnot(prune, freeze) & valid).store(locked + r);
    }
    for (int64_t r = nrows_; r < R_; ++r) free[r] = 0;
    for (int64_t r = nrows_; locked && r < R_; ++r) locked[r] = 0;
  }

  void seed_keep(int64_t w, uint32_t* keep) {
    uint32_t* const free = scratch_.data();
    partition_word(w, free, keep);
    for (int64_t r = 0; r < nrows_; ++r) {
      const uint32_t mask = free[r];
      keep[r] |= deposit(stream_bits(f_.supermask, f_.supermask_bytes, stream_at_[r]), mask);
      stream_at_[r] += __builtin_popcount(mask);
    }
  }

  // out[i][r] = dword i of the row that starts at `base` + rows_[r] * stride bytes; `end` bytes of a row exist.
  void copy_dwords(const char* base, int64_t stride, int64_t end, int64_t count, uint32_t* out) const {
    int64_t r = 0;
    for (; in_order_ && r + VL <= nrows_; r += VL) {
      int64_t i = 0;
      for (; i + VL <= count && 4 * (i + VL) <= end; i += VL) {
        transpose_tile(base + rows_[r] * stride + 4 * i, stride, out + i * R_ + r, 4 * R_);
      }
      for (int64_t j = r; j < r + VL; ++j) copy_row(base + rows_[j] * stride, end, i, count, out + j);
    }
    for (; r < nrows_; ++r) copy_row(base + rows_[r] * stride, end, 0, count, out + r);
    for (; r < R_; ++r) copy_row(base, 0, 0, count, out + r);
  }

  void copy_row(const char* row, int64_t end, int64_t from, int64_t to, uint32_t* out) const {
    for (int64_t i = from; i < to; ++i) {
      uint32_t dword = 0;
      if (4 * i + 4 <= end) {
        memcpy(&dword, row + 4 * i, 4);
      } else if (4 * i < end) {
        memcpy(&dword, row + 4 * i, static_cast<size_t>(end - 4 * i));
      }
      out[i * R_] = dword;
    }
  }

  void copy_plane(const uint32_t* plane, int64_t w0, int64_t nw, uint32_t* out) const {
    copy_dwords(reinterpret_cast<const char*>(plane + w0), 4 * f_.words, 4 * (f_.words - w0), nw, out);
  }

  void copy_bytes(int64_t w0, int64_t nw, uint32_t* out) const {
    copy_dwords(reinterpret_cast<const char*>(f_.bytes) + 32 * w0, f_.cols, f_.cols - 32 * w0, 8 * nw, out);
  }

  void draw_signs(int64_t w0, int64_t nw, uint32_t* out) const {
    const uint32_t c2 = SIGN_PURPOSE | f_.generation << 8;
    for (int64_t call = w0 >> 2; 4 * call < w0 + nw; ++call) {
      for (int64_t r = 0; r < R_; r += VL) {
        const Four four = generator_(static_cast<uint32_t>(call), vu32::load(rows_.data() + r), c2);
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t at = 4 * call + i - w0;
          if (at >= 0 && at < nw) four.x[i].store(out + at * R_ + r);
        }
      }
    }
  }

  void draw_bytes(int64_t w0, int64_t nw, uint32_t* out) const {
    const uint32_t c2 = BYTE_PURPOSE | f_.generation << 8;
    for (int64_t first = 0; first < 2 * nw; first += VL) {
      const Generator::ManyColumns columns = generator_.begin_many_columns(static_cast<uint32_t>(2 * w0 + first), c2);
      for (int64_t r = 0; r < R_; r += VL) {
        const Generator::Rows rows = generator_.begin_rows(vu32::load(rows_.data() + r), c2);
        for (int64_t call = first; call < std::min(first + VL, 2 * nw); ++call) {
          const Four four = generator_(columns[call - first], rows);
          for (int64_t i = 0; i < 4; ++i) four.x[i].store(out + (4 * call + i) * R_ + r);
        }
      }
    }
  }

  Frozen f_;
  Generator generator_;
  Partition partition_;
  int64_t nrows_, R_, keep_at_ = 0, draw_at_ = 0, free_at_ = 0;
  bool positioned_ = false, in_order_ = false;
  std::vector<uint32_t> rows_;
  mutable std::vector<uint32_t> scratch_;
  std::vector<int64_t> stream_at_;
};

}  // namespace fk::FK_ISA_NS
