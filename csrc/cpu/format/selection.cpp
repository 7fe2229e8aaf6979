// The threshold of a search over scores, without sorting or copying them.
#include <stdexcept>
#include <string>

#include "cpu/format/ops.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr uint32_t NAN_KEY = 0x7F800001u;  // above infinity
constexpr int LOW_BITS = 15;
constexpr int64_t HIGH_BINS = (NAN_KEY >> LOW_BITS) + 1, LOW_BINS = int64_t{1} << LOW_BITS;
constexpr int64_t SPAN = 1 << 16;

FK_INLINE uint32_t key_of(uint32_t bits) { return std::min(bits & 0x7FFFFFFFu, NAN_KEY); }

FK_INLINE vu32 keys_of(vu32 bits) { return min(bits & vu32::set(0x7FFFFFFFu), vu32::set(NAN_KEY)); }

// fn(keys, lanes): VL keys at a time, of which `lanes` count.
template <class Fn>
FK_INLINE void each_key(const ScoreSpan& scores, int64_t begin, int64_t end, const Fn& fn) {
  int64_t i = begin;
  if (scores.dtype == FLOAT32) {
    const float* const data = static_cast<const float*>(scores.data);
    for (; i + VL <= end; i += VL) fn(keys_of(vu32::load(data + i)), VL);
  } else {
    const uint16_t* const data = static_cast<const uint16_t*>(scores.data);
    for (; i + VL <= end; i += VL) fn(keys_of(as_bits(load_bf16(data + i))), VL);
  }
  if (i == end) return;
  uint32_t rest[VL] = {};
  for (int64_t j = i; j < end; ++j) {
    uint32_t bits;
    if (scores.dtype == FLOAT32) {
      memcpy(&bits, static_cast<const float*>(scores.data) + j, 4);
    } else {
      bits = static_cast<uint32_t>(static_cast<const uint16_t*>(scores.data)[j]) << 16;
    }
    rest[j - i] = key_of(bits);
  }
  fn(vu32::load(rest), static_cast<int>(end - i));
}

struct Piece {
  const ScoreSpan* span;
  int64_t begin, end;
};

// One histogram per worker, added up; the order of integer sums does not matter.
template <class Count>
std::vector<int64_t> histogram_of(const std::vector<Piece>& pieces, int64_t bins, int threads, const Count& count) {
  const int64_t tasks = static_cast<int64_t>(pieces.size());
  const int workers = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(threads, tasks)));
  std::vector<std::vector<int64_t>> partial(workers);
  parallel_for(workers, tasks, [&](int64_t task, int worker) {
    if (partial[worker].empty()) partial[worker].resize(bins);
    count(pieces[task], partial[worker].data());
  });
  std::vector<int64_t> total(bins);
  for (const std::vector<int64_t>& some : partial) {
    for (size_t bin = 0; bin < some.size(); ++bin) total[bin] += some[bin];
  }
  return total;
}

// The bin that holds the rank-th element; rank becomes its rank within the bin.
int64_t find_bin(const std::vector<int64_t>& counts, int64_t& rank) {
  size_t bin = 0;
  for (; bin + 1 < counts.size() && rank > counts[bin]; ++bin) rank -= counts[bin];
  return static_cast<int64_t>(bin);
}

}  // namespace

uint32_t select(const ScoreSpan* spans, int64_t count, int64_t rank, int threads) {
  std::vector<Piece> pieces;
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) {
    total += spans[i].count;
    for (int64_t at = 0; at < spans[i].count; at += SPAN) {
      pieces.push_back({&spans[i], at, std::min(at + SPAN, spans[i].count)});
    }
  }
  if (rank < 1 || rank > total) {
    throw std::invalid_argument("rank is " + std::to_string(rank) + ", expected 1 to " + std::to_string(total));
  }
  const std::vector<int64_t> high = histogram_of(pieces, HIGH_BINS, threads, [](const Piece& piece, int64_t* bins) {
    each_key(*piece.span, piece.begin, piece.end, [&](vu32 keys, int lanes) {
      uint32_t bin[VL];
      shr<LOW_BITS>(keys).store(bin);
      if (lanes == VL) {
        for (int i = 0; i < VL; ++i) ++bins[bin[i]];
      } else {
        for (int i = 0; i < lanes; ++i) ++bins[bin[i]];
      }
    });
  });
  const uint32_t top = static_cast<uint32_t>(find_bin(high, rank));
  const std::vector<int64_t> low = histogram_of(pieces, LOW_BINS, threads, [&](const Piece& piece, int64_t* bins) {
    each_key(*piece.span, piece.begin, piece.end, [&](vu32 keys, int lanes) {
      uint32_t hits = to_bits(equal(shr<LOW_BITS>(keys), vu32::set(top))) & ((1u << lanes) - 1u);
      if (!hits) return;
      uint32_t key[VL];
      keys.store(key);
      for (; hits; hits &= hits - 1) ++bins[key[__builtin_ctz(hits)] & (LOW_BINS - 1)];
    });
  });
  return top << LOW_BITS | static_cast<uint32_t>(find_bin(low, rank));
}

void pack_above(const ScoreSpan& scores, uint32_t key, uint8_t* out, int threads) {
  parallel_for(threads, (scores.count + SPAN - 1) / SPAN, [&](int64_t task) {
    const int64_t begin = task * SPAN, end = std::min(begin + SPAN, scores.count);
    uint8_t* byte = out + begin / 8;
    uint64_t window = 0;
    int held = 0;
    each_key(scores, begin, end, [&](vu32 keys, int lanes) {
      const uint32_t above = to_bits(greater(keys, vu32::set(key))) & ((1u << lanes) - 1u);
      window |= static_cast<uint64_t>(above) << held;
      for (held += lanes; held >= 8; held -= 8, window >>= 8) *byte++ = static_cast<uint8_t>(window);
    });
    if (held) *byte = static_cast<uint8_t>(window);
  });
}

}  // namespace fk::FK_ISA_NS
