// All words of some rows, each row's in order in memory: for kernels whose vectors run along rows. Those of long rows
// are drawn along the row, those of short ones by RowBlock.
#pragma once
#include "cpu/core/scratch.h"
#include "cpu/words/compress.h"
#include "cpu/words/row_block.h"
#include "cpu/words/row_generator.h"

#if FK_HAS_AVX2
namespace fk::FK_ISA_NS {

// Of sign and constant codes. Bits past the last column are anything.
class WholeRows {
 public:
  static int64_t scratch_bytes(const Frozen& f, int64_t rows) {
    const int64_t words = stride(f), drawn = (f.keep ? 0 : rows) + (draws_signs(f) ? rows : 0);
    const int64_t calls = sign_blocks(f) + (f.keep ? 0 : PLANES / 4 * blocks(f));
    return 4 * words * (drawn + VL) + calls * static_cast<int64_t>(sizeof(CallStart)) +
           blocks(f) * static_cast<int64_t>(sizeof(Bounds)) + 4 * 4 * (words + VL) + 512;
  }

  // `rows` is a multiple of VL.
  WholeRows(const Frozen& f, int64_t rows, Scratch& scratch)
      : f_(f), generator_(f), planes_(f), stride_(stride(f)), blocks_(blocks(f)) {
    if (draws_signs(f)) sign_ = scratch.take<uint32_t>(rows * stride_);
    if (!f.keep) keep_ = scratch.take<uint32_t>(rows * stride_);
    if (!long_rows(f)) {
      lanes_ = scratch.take<uint32_t>(VL * stride_);
      return;
    }
    if (sign_) start_signs(scratch);
    if (keep_) start_partition(scratch);
  }

  void start(int64_t row0, int64_t rows) {
    row0_ = row0;
    if (!long_rows(f_)) return turn_lanes(rows);
    if (sign_) draw_signs(rows);
    for (int64_t r = 0; keep_ && r < rows; ++r) draw_keep(row(r), keep_ + r * stride_);
  }

  const uint32_t* keep(int64_t r) const { return keep_ ? keep_ + r * stride_ : f_.keep + (row0_ + r) * f_.words; }
  const uint32_t* sign(int64_t r) const { return sign_ ? sign_ + r * stride_ : f_.sign + (row0_ + r) * f_.words; }

 private:
  // What the first planes say of VL words: where a draw is below a threshold for certain, and where it may be.
  struct Bounds {
    vu32 prune[2], freeze[2];
    uint32_t open;  // bits of words in which they differ
  };
  static constexpr int SURE_CALLS = 2;  // 8 planes leave one word in five open, 4 nearly all

  static int64_t stride(const Frozen& f) { return round_up(f.words, 4 * VL); }
  static int64_t blocks(const Frozen& f) { return divide_up(f.words, VL); }
  static int64_t sign_blocks(const Frozen& f) { return divide_up(f.words, 4 * VL); }
  // Lanes of a call along a shorter row would be idle.
  static bool long_rows(const Frozen& f) { return f.words >= 3 * VL; }
  static bool draws_signs(const Frozen& f) { return f.code == SIGN_CODE && !f.sign; }
  static vu32 words_of(int64_t block) { return vu32::iota() + vu32::set(static_cast<uint32_t>(VL * block)); }
  static uint32_t purpose(int q) { return PARTITION_PURPOSE + static_cast<uint32_t>(q); }
  uint32_t sign_purpose() const { return SIGN_PURPOSE | f_.generation << 8; }
  uint32_t row(int64_t r) const { return static_cast<uint32_t>(row0_ + r); }

  void start_signs(Scratch& scratch) {
    sign_starts_ = scratch.take<CallStart>(sign_blocks(f_));
    // Lane 4 q + k has call VL / 4 * k + q of VL, so that unpacking within 16 bytes of a vector puts words in order.
    uint32_t order[VL];
    for (int lane = 0; lane < VL; ++lane) order[lane] = static_cast<uint32_t>(lane % 4 * (VL / 4) + lane / 4);
    for (int64_t i = 0; i < sign_blocks(f_); ++i) {
      sign_starts_[i] = generator_.start(vu32::load(order) + vu32::set(static_cast<uint32_t>(VL * i)), sign_purpose());
    }
  }

  void start_partition(Scratch& scratch) {
    free_ = scratch.take<uint32_t>(stride_);
    starts_ = scratch.take<CallStart>(planes_.calls() * blocks_);
    for (int q = 0; q < planes_.calls(); ++q) {
      for (int64_t i = 0; i < blocks_; ++i) starts_[q * blocks_ + i] = generator_.start(words_of(i), purpose(q));
    }
    bounds_ = scratch.take<Bounds>(blocks_);
    list_ = scratch.take<uint32_t>(stride_ + VL);
    list_prune_ = scratch.take<uint32_t>(stride_ + VL);
    list_freeze_ = scratch.take<uint32_t>(stride_ + VL);
  }

  // Words with a row in each lane, turned.
  void turn_lanes(int64_t rows) {
    const auto turn = [&](uint32_t* out) {
      for (int64_t w = 0; w < f_.words; w += VL) transpose_tile(lanes_ + w * VL, 4 * VL, out + w, 4 * stride_);
    };
    for (int64_t r = 0; (keep_ || sign_) && r < rows; r += VL) {
      RowBlock block(f_, row0_ + r, std::min<int64_t>(VL, rows - r), VL);
      if (keep_) {
        block.next_keep(f_.words, lanes_);
        turn(keep_ + r * stride_);
      }
      if (sign_) {
        block.next_draw(f_.words, lanes_);
        turn(sign_ + r * stride_);
      }
    }
  }

  // As many calls at a time as registers hold, of one row or of two.
  void draw_signs(int64_t rows) const {
    constexpr int N = FK_HAS_AVX512 ? 2 : 1;
    const int64_t count = sign_blocks(f_);
    int64_t r = 0, block = 0;
    for (int64_t left = rows * count; left > 0; left -= N) {
      const CallStart* starts[N];
      uint32_t of[N], *out[N];
      for (int k = 0; k < N; ++k) {
        starts[k] = sign_starts_ + block;
        of[k] = row(r);
        out[k] = sign_ + r * stride_ + block * 4 * VL;
        if (k + 1 == left) continue;  // the last one again
        if (++block == count) block = 0, ++r;
      }
      Four four[N];
      generator_.draw(starts, of, sign_purpose(), four);
      for (int k = 0; k < N; ++k) put_signs(four[k], out[k]);
    }
  }

  static FK_INLINE void put_signs(const Four& four, uint32_t* out) {
    const vu32 low0 = low_lanes(four.x[0], four.x[1]), low1 = low_lanes(four.x[2], four.x[3]);
    const vu32 high0 = high_lanes(four.x[0], four.x[1]), high1 = high_lanes(four.x[2], four.x[3]);
    low_pairs(low0, low1).store(out);
    high_pairs(low0, low1).store(out + VL);
    low_pairs(high0, high1).store(out + 2 * VL);
    high_pairs(high0, high1).store(out + 3 * VL);
  }

  void draw_keep(uint32_t row, uint32_t* keep) {
    if (planes_.calls() > SURE_CALLS) {
      find_bounds(row);
      decide(row, list_open());
      close_bounds(keep);
    } else {
      partition(row, keep);
    }
    deposit_kept(f_.offsets[row * f_.chunks()], keep);
  }

  // Free and locked words, from all planes of all words.
  void partition(uint32_t row, uint32_t* locked) {
    for (int64_t i = 0; i < blocks_; i += 2) {
      const int64_t next = std::min(i + 1, blocks_ - 1);
      vu32 prune[2] = {planes_.prune_start(), planes_.prune_start()};
      vu32 freeze[2] = {planes_.freeze_start(), planes_.freeze_start()};
      for (int q = planes_.calls() - 1; q >= 0; --q) {
        Four four[2];
        generator_.draw({starts_ + q * blocks_ + i, starts_ + q * blocks_ + next}, {row, row}, purpose(q), four);
        for (int k = 0; k < 2; ++k) planes_.add(q, four[k], prune[k], freeze[k]);
      }
      put_partition(i, prune[0], freeze[0], locked);
      put_partition(next, prune[1], freeze[1], locked);
    }
  }

  // The same in three steps: what the first planes say of all words,
  void find_bounds(uint32_t row) {
    for (int64_t i = 0; i < blocks_; i += 2) {
      const int64_t block[2] = {i, std::min(i + 1, blocks_ - 1)};
      Bounds b[2];
      for (Bounds& x : b) {
        x.prune[0] = planes_.prune_start(), x.freeze[0] = planes_.freeze_start();
        x.prune[1] = x.freeze[1] = vu32::set(~0u);
      }
      for (int q = SURE_CALLS - 1; q >= 0; --q) {
        Four four[2];
        generator_.draw({starts_ + q * blocks_ + block[0], starts_ + q * blocks_ + block[1]}, {row, row}, purpose(q),
                        four);
        for (int k = 0; k < 2; ++k) {
          planes_.add(q, four[k], b[k].prune[0], b[k].freeze[0]);
          planes_.add(q, four[k], b[k].prune[1], b[k].freeze[1]);
        }
      }
      for (int k = 0; k < 2; ++k) {
        const vu32 differ = (b[k].prune[0] ^ b[k].prune[1]) | (b[k].freeze[0] ^ b[k].freeze[1]);
        b[k].open = to_bits(test(differ, differ));
        bounds_[block[k]] = b[k];
      }
    }
  }

  // the open words,
  int64_t list_open() {
    int64_t listed = 0;
    for (int64_t i = 0; i < blocks_; ++i) {
      to_front(words_of(i), bounds_[i].open).store(list_ + listed);
      listed += __builtin_popcount(bounds_[i].open);
    }
    return listed;
  }

  // and what the other planes say of these.
  void decide(uint32_t row, int64_t listed) {
    for (int64_t at = 0; at < listed; at += VL) {
      vu32 prune = planes_.prune_start(), freeze = planes_.freeze_start();
      for (int q = planes_.calls() - 1; q >= SURE_CALLS; --q) {
        const CallStart start = generator_.start(vu32::load(list_ + at), purpose(q));
        Four four[1];
        generator_.draw({&start}, {row}, purpose(q), four);
        planes_.add(q, four[0], prune, freeze);
      }
      prune.store(list_prune_ + at);
      freeze.store(list_freeze_ + at);
    }
  }

  void close_bounds(uint32_t* locked) {
    int64_t at = 0;
    for (int64_t i = 0; i < blocks_; ++i) {
      const Bounds& b = bounds_[i];
      const vu32 prune = from_front(vu32::load(list_prune_ + at), b.open);
      const vu32 freeze = from_front(vu32::load(list_freeze_ + at), b.open);
      put_partition(i, b.prune[0] | (b.prune[1] & prune), b.freeze[0] | (b.freeze[1] & freeze), locked);
      at += __builtin_popcount(b.open);
    }
  }

  FK_INLINE void put_partition(int64_t block, vu32 prune, vu32 freeze, uint32_t* locked) {
    const vu32 valid = columns(block);
    andnot(freeze, valid).store(free_ + block * VL);
    (andnot(prune, freeze) & valid).store(locked + block * VL);
  }

  // Bits of VL words that are columns.
  vu32 columns(int64_t block) const {
    if (32 * VL * (block + 1) <= f_.cols) return vu32::set(~0u);
    alignas(64) uint32_t bits[VL];
    for (int64_t k = 0; k < VL; ++k) {
      bits[k] = column_mask(static_cast<int>(std::clamp<int64_t>(f_.cols - 32 * (block * VL + k), 0, 32)));
    }
    return vu32::load(bits);
  }

  // From locked words to kept ones: bits of the supermask, from `position` on, at the free columns.
  void deposit_kept(int64_t position, uint32_t* keep) const {
    int64_t w = 0;
    if ((position >> 3) + 4 * f_.words + 16 <= f_.supermask_bytes) {
      for (; w + 2 <= f_.words; w += 2) {
        const uint8_t* const from = f_.supermask + (position >> 3);
        uint64_t mask, kept, bits, next;
        memcpy(&mask, free_ + w, 8);
        memcpy(&kept, keep + w, 8);
        memcpy(&bits, from, 8);
        bits >>= position & 7;
        const int count = __builtin_popcountll(mask);
        if (__builtin_expect(count > 56, 0)) {
          memcpy(&next, from + 8, 8);
          bits |= next << 1 << (63 - (position & 7));
        }
        kept |= _pdep_u64(bits, mask);
        memcpy(keep + w, &kept, 8);
        position += count;
      }
    }
    for (; w < f_.words; ++w) {
      keep[w] |= deposit(stream_bits(f_.supermask, f_.supermask_bytes, position), free_[w]);
      position += __builtin_popcount(free_[w]);
    }
  }

  const Frozen& f_;
  const RowGenerator generator_;
  const PlaneCompare planes_;
  const int64_t stride_, blocks_;
  int64_t row0_ = 0;
  uint32_t *sign_ = nullptr, *keep_ = nullptr, *lanes_ = nullptr, *free_ = nullptr;
  CallStart *sign_starts_ = nullptr, *starts_ = nullptr;  // [call][block] of the partition
  Bounds* bounds_ = nullptr;
  uint32_t *list_ = nullptr, *list_prune_ = nullptr, *list_freeze_ = nullptr;
};

}  // namespace fk::FK_ISA_NS
#endif
