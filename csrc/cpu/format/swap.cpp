// One step of a search that keeps the number of kept weights: which enter the mask and which leave it.
#include <math.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "cpu/core/scratch.h"
#include "cpu/format/ops.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int32_t INFINITE = 0x7F800000, NAN_KEY = INFINITE + 1;
constexpr int32_t BELOW_ALL = -INFINITE - 1, ABOVE_ALL = NAN_KEY + 1;
constexpr int64_t SPAN = 1 << 16;       // scores of a task
constexpr int64_t SAMPLED = 8192;       // scores that bracket the threshold
constexpr int64_t SAMPLED_FROM = 1024;  // fewer scores are all looked at
constexpr int BIN_BITS = 11;
constexpr int64_t BINS = 1 << BIN_BITS;
constexpr uint32_t SPREAD = 2654435761u;  // an odd multiplier that spreads i over 32 bits

// Signed integers in the order of the scores: both zeros alike, all NaN alike and above infinity.
FK_INLINE vu32 keys_of(vu32 bits) {
  const vu32 magnitude = bits & vu32::set(0x7FFFFFFFu), negative = shr_signed<31>(bits);
  const vmask nan = greater(magnitude, vu32::set(INFINITE));
  return select(nan, vu32::set(NAN_KEY), (magnitude ^ negative) - negative);
}

FK_INLINE int32_t key_at(const ScoreSpan& scores, int64_t i) {
  uint32_t bits;
  if (scores.dtype == FLOAT32) {
    memcpy(&bits, static_cast<const float*>(scores.data) + i, 4);
  } else {
    bits = static_cast<uint32_t>(static_cast<const uint16_t*>(scores.data)[i]) << 16;
  }
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7FFFFFFFu);
  return magnitude > INFINITE ? NAN_KEY : bits >> 31 ? -magnitude : magnitude;
}

// The keys of 64 scores. Those past the end are 0 and do not count.
struct Keys {
  vu32 lanes[64 / VL];
  uint64_t valid;

  FK_INLINE uint64_t above(int32_t key) const {
    const vu32 limit = vu32::set(static_cast<uint32_t>(key));
    uint64_t bits = 0;
    for (int j = 0; j < 64 / VL; ++j) bits |= static_cast<uint64_t>(to_bits(greater(lanes[j], limit))) << (j * VL);
    return bits & valid;
  }

  FK_INLINE void store(int32_t* out) const {
    for (int j = 0; j < 64 / VL; ++j) lanes[j].store(out + j * VL);
  }

  // Appends the keys that `bits` name; writes up to 64.
  FK_INLINE int32_t* append(uint64_t bits, int32_t* out) const {
#if FK_HAS_AVX512
    // No branch: which groups hold a key is random.
    for (int j = 0; j < 64 / VL; ++j) {
      const __mmask16 some = static_cast<__mmask16>(bits >> (j * VL));
      _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(some, lanes[j].v));
      out += __builtin_popcount(some);
    }
#else
    if (!bits) return out;
    int32_t all[64];
    store(all);
    for (; bits; bits &= bits - 1) *out++ = all[__builtin_ctzll(bits)];
#endif
    return out;
  }
};

// fn(i, keys of the scores from i on) for [begin, end), 64 at a time.
template <class Fn>
FK_INLINE void each_keys(const ScoreSpan& scores, int64_t begin, int64_t end, const Fn& fn) {
  Keys keys;
  const auto take = [&](const void* data, DType dtype) {
    for (int j = 0; j < 64 / VL; ++j) {
      if (dtype == FLOAT32) {
        keys.lanes[j] = keys_of(vu32::load(static_cast<const float*>(data) + j * VL));
      } else {
        keys.lanes[j] = keys_of(as_bits(load_bf16(static_cast<const uint16_t*>(data) + j * VL)));
      }
    }
  };
  keys.valid = ~uint64_t{0};
  int64_t i = begin;
  if (scores.dtype == FLOAT32) {
    for (; i + 64 <= end; i += 64) take(static_cast<const float*>(scores.data) + i, FLOAT32), fn(i, keys);
  } else {
    for (; i + 64 <= end; i += 64) take(static_cast<const uint16_t*>(scores.data) + i, BFLOAT16), fn(i, keys);
  }
  if (i == end) return;
  const int64_t size = scores.dtype == FLOAT32 ? 4 : 2;
  float rest[64] = {};
  memcpy(rest, static_cast<const char*>(scores.data) + i * size, static_cast<size_t>((end - i) * size));
  take(rest, scores.dtype);
  keys.valid = (uint64_t{1} << (end - i)) - 1;
  fn(i, keys);
}

int64_t spans(int64_t count) { return divide_up(count, SPAN); }

// fn(span, begin, end) for all spans of the scores.
template <class Fn>
void each_span(const ScoreSpan& scores, int threads, const Fn& fn) {
  parallel_for(threads, spans(scores.count),
               [&](int64_t span) { fn(span, span * SPAN, std::min((span + 1) * SPAN, scores.count)); });
}

// The mask's bits of 64 scores from i on, a multiple of 8, of which `count` there are in all.
FK_INLINE uint64_t mask_bits(const uint8_t* mask, int64_t i, int64_t count) {
  uint64_t bits = 0;
  if (i + 64 <= count) {
    memcpy(&bits, mask + i / 8, 8);
    return bits;
  }
  memcpy(&bits, mask + i / 8, static_cast<size_t>((count - i + 7) / 8));
  return bits & ((uint64_t{1} << (count - i)) - 1);
}

int64_t count_kept(const uint8_t* mask, int64_t count, int threads) {
  const int64_t whole = count / 64 * 64;
  const int64_t rest = whole == count ? 0 : __builtin_popcountll(mask_bits(mask, whole, count));
  return popcount(mask, whole / 8, threads) + rest;
}

// Keys of scores taken at even distances, each moved within its part so that no period of the scores meets them.
std::vector<int32_t> sample_of(const ScoreSpan& scores) {
  if (scores.count < SAMPLED_FROM) return {};
  const int64_t step = std::max<int64_t>(16, scores.count / SAMPLED), taken = scores.count / step;
  std::vector<int32_t> keys(static_cast<size_t>(taken));
  for (int64_t i = 0; i < taken; ++i) {
    keys[i] = key_at(scores, i * step + (static_cast<uint32_t>(i) * SPREAD >> 8) % step);
  }
  return keys;
}

// The rank-th largest of the keys, rank from 0; `past` where there is none.
int32_t ranked(std::vector<int32_t> keys, int64_t rank, int32_t past) {
  if (rank < 0 || rank >= static_cast<int64_t>(keys.size())) return past;
  // Count by the leading bits in which the keys differ and go on with the keys of one bin, while there are many.
  while (keys.size() > static_cast<size_t>(BINS)) {
    const auto [least, most] = std::minmax_element(keys.begin(), keys.end());
    const uint32_t base = static_cast<uint32_t>(*least), range = static_cast<uint32_t>(*most) - base;
    if (range == 0) return *least;
    const int shift = std::max(0, 32 - __builtin_clz(range) - BIN_BITS);
    const auto bin_of = [&](int32_t key) { return (static_cast<uint32_t>(key) - base) >> shift; };
    int64_t counts[BINS] = {};
    for (const int32_t key : keys) ++counts[bin_of(key)];
    uint32_t bin = BINS - 1;
    for (; rank >= counts[bin]; --bin) rank -= counts[bin];
    keys.erase(std::remove_if(keys.begin(), keys.end(), [&](int32_t key) { return bin_of(key) != bin; }), keys.end());
  }
  std::nth_element(keys.begin(), keys.begin() + rank, keys.end(), std::greater<int32_t>());
  return keys[rank];
}

struct Counts {
  int64_t above_high = 0, from_high = 0, above_low = 0, from_low = 0;
};

// The kept-th largest key, kept in 1 .. count. A sample brackets it; one pass counts what is above and collects what is
// inside. Where it lies outside, the bracket grows up to everything.
int32_t threshold(const ScoreSpan& scores, int64_t kept, int threads) {
  const std::vector<int32_t> sample = sample_of(scores);
  const double share = static_cast<double>(kept) / static_cast<double>(scores.count);
  const double size = static_cast<double>(sample.size());
  for (double deviations = 3;; deviations *= 8) {
    const int64_t rank = static_cast<int64_t>(share * size);
    const int64_t width = static_cast<int64_t>(deviations * (1 + sqrt(size * share * (1 - share))));
    const int32_t high = ranked(sample, rank - width, ABOVE_ALL), low = ranked(sample, rank + width, BELOW_ALL);
    std::vector<Counts> counts(static_cast<size_t>(spans(scores.count)));
    std::vector<std::vector<int32_t>> inside(counts.size());
    each_span(scores, threads, [&](int64_t span, int64_t begin, int64_t end) {
      int32_t* const found = Scratch((SPAN + 64) * 4).take<int32_t>(SPAN + 64);
      int32_t* next = found;
      Counts some;
      each_keys(scores, begin, end, [&](int64_t, const Keys& keys) {
        const uint64_t from_high = keys.above(high - 1), above_low = keys.above(low);
        some.above_high += __builtin_popcountll(keys.above(high));
        some.from_high += __builtin_popcountll(from_high);
        some.above_low += __builtin_popcountll(above_low);
        some.from_low += __builtin_popcountll(keys.above(low - 1));
        next = keys.append(above_low & ~from_high, next);
      });
      counts[span] = some;
      inside[span].assign(found, next);
    });
    Counts all;
    for (const Counts& some : counts) {
      all.above_high += some.above_high, all.from_high += some.from_high;
      all.above_low += some.above_low, all.from_low += some.from_low;
    }
    if (kept <= all.above_high || kept > all.from_low) continue;
    if (kept <= all.from_high) return high;
    if (kept > all.above_low) return low;
    std::vector<int32_t> found;
    for (const std::vector<int32_t>& some : inside) found.insert(found.end(), some.begin(), some.end());
    return ranked(found, kept - all.from_high - 1, low);
  }
}

// Orders weights that are all kept or all dropped: the higher key, then the lower position.
FK_INLINE uint64_t merit(int32_t key, int64_t position) {
  const uint32_t ordered = static_cast<uint32_t>(key) ^ 0x80000000u;
  return static_cast<uint64_t>(ordered) << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(position));
}

int64_t position_of(uint64_t merit) { return 0xFFFFFFFFu - static_cast<uint32_t>(merit); }

// What one span of scores holds against the threshold.
struct Found {
  std::vector<uint64_t> entering, leaving;  // above and dropped, below and kept
  bool tied_dropped = false, tied_kept = false;
};

std::vector<Found> compare(const ScoreSpan& scores, const uint8_t* mask, int32_t key, int threads) {
  std::vector<Found> found(static_cast<size_t>(spans(scores.count)));
  each_span(scores, threads, [&](int64_t span, int64_t begin, int64_t end) {
    Scratch scratch(2 * (SPAN + 8) * 8);
    uint64_t *const entering = scratch.take<uint64_t>(SPAN + 8), *const leaving = scratch.take<uint64_t>(SPAN + 8);
    int64_t enter = 0, leave = 0;
    uint64_t tied_kept = 0, tied_dropped = 0;
    each_keys(scores, begin, end, [&](int64_t i, const Keys& keys) {
      const uint64_t above = keys.above(key), tied = keys.above(key - 1) & ~above;
      const uint64_t kept = mask_bits(mask, i, scores.count);
      tied_kept |= tied & kept;
      tied_dropped |= tied & ~kept;
      uint64_t wrong = (above ^ kept) & ~tied;
      if (!wrong) return;
      int32_t all[64];
      keys.store(all);
      for (; wrong; wrong &= wrong - 1) {
        // Both sides are written and one moves on: which it is nobody predicts.
        const int bit = __builtin_ctzll(wrong);
        const int64_t leaves = static_cast<int64_t>(kept >> bit & 1);
        entering[enter] = leaving[leave] = merit(all[bit], i + bit);
        leave += leaves;
        enter += 1 - leaves;
      }
    });
    found[span].entering.assign(entering, entering + enter);
    found[span].leaving.assign(leaving, leaving + leave);
    found[span].tied_kept = tied_kept != 0;
    found[span].tied_dropped = tied_dropped != 0;
  });
  return found;
}

// Appends `missing` of the weights at the threshold: the first that are dropped, or the last that are kept.
void add_tied(const ScoreSpan& scores, const uint8_t* mask, int32_t key, const std::vector<Found>& found, bool kept,
              size_t missing, std::vector<uint64_t>& out) {
  const int64_t count = static_cast<int64_t>(found.size());
  for (int64_t n = 0; n < count && missing; ++n) {
    const int64_t span = kept ? count - 1 - n : n;
    if (!(kept ? found[span].tied_kept : found[span].tied_dropped)) continue;
    std::vector<uint64_t> ties;
    const int64_t end = std::min((span + 1) * SPAN, scores.count);
    each_keys(scores, span * SPAN, end, [&](int64_t i, const Keys& keys) {
      const uint64_t bits = mask_bits(mask, i, scores.count);
      for (uint64_t tied = keys.above(key - 1) & ~keys.above(key) & (kept ? bits : ~bits); tied; tied &= tied - 1) {
        ties.push_back(merit(key, i + __builtin_ctzll(tied)));
      }
    });
    const size_t taken = std::min(missing, ties.size());
    if (kept) {
      out.insert(out.end(), ties.end() - taken, ties.end());
    } else {
      out.insert(out.end(), ties.begin(), ties.begin() + taken);
    }
    missing -= taken;
  }
}

// Writes the positions of the first `count` by the order.
template <class Order>
void put_first(std::vector<uint64_t>& merits, int64_t count, const Order& before, int64_t* out) {
  const auto end = merits.begin() + count;
  if (end != merits.end()) std::nth_element(merits.begin(), end, merits.end(), before);
  std::sort(merits.begin(), end, before);
  std::transform(merits.begin(), end, out, position_of);
}

}  // namespace

std::vector<int64_t> swap(const ScoreSpan& scores, const uint8_t* mask, int64_t kept, double rate, int threads) {
  const int64_t now = count_kept(mask, scores.count, threads);
  if (now != kept) {
    throw std::invalid_argument("supermask: " + std::to_string(now) + " weights kept, expected " +
                                std::to_string(kept));
  }
  if (kept == 0 || kept == scores.count) return {};
  const int32_t key = threshold(scores, kept, threads);
  const std::vector<Found> found = compare(scores, mask, key, threads);
  std::vector<uint64_t> entering, leaving;
  for (const Found& some : found) {
    entering.insert(entering.end(), some.entering.begin(), some.entering.end());
    leaving.insert(leaving.end(), some.leaving.begin(), some.leaving.end());
  }
  // As many enter as leave, so weights at the threshold are what the smaller side lacks; they are its least.
  const size_t pairs = std::max(entering.size(), leaving.size());
  const int64_t swaps =
      std::min(static_cast<int64_t>(ceil(static_cast<double>(pairs) * rate)), static_cast<int64_t>(pairs));
  const size_t needed = static_cast<size_t>(swaps);
  if (entering.size() < needed) add_tied(scores, mask, key, found, false, needed - entering.size(), entering);
  if (leaving.size() < needed) add_tied(scores, mask, key, found, true, needed - leaving.size(), leaving);
  std::vector<int64_t> out(2 * needed);
  put_first(entering, swaps, std::greater<uint64_t>(), out.data());
  put_first(leaving, swaps, std::less<uint64_t>(), out.data() + swaps);
  return out;
}

void flip(uint8_t* mask, int64_t bytes, const int64_t* positions, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t position = positions[i];
    if (position < 0 || position >= 8 * bytes) {
      throw std::out_of_range("positions: " + std::to_string(position) + ", expected 0 to " +
                              std::to_string(8 * bytes - 1));
    }
    mask[position >> 3] ^= static_cast<uint8_t>(1u << (position & 7));
  }
}

}  // namespace fk::FK_ISA_NS
