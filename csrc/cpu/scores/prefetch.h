// Memory asked for a few cache lines at a time, between products: packing would wait for all of it.
#pragma once
#include "cpu/conv/pixels.h"

namespace fk::FK_ISA_NS {

class LinePrefetch {
 public:
  static constexpr int64_t MOST_RANGES = 512;
  explicit LinePrefetch(Scratch& scratch) : ranges_(scratch.take<Range>(MOST_RANGES)) {}
  static constexpr int64_t SCRATCH_BYTES = MOST_RANGES * 32 + 64;

  void clear() { count_ = at_ = row_ = byte_ = lines_ = 0; }
  int64_t lines() const { return lines_; }

  // Channels [channel, channel + channels) of the pixels of `spans`; what is past MOST_RANGES is left out.
  void add(const Activations& side, const Grid& grid, const Span* spans, int64_t count, int64_t channel,
           int64_t channels) {
    const int64_t size = side.dtype == FLOAT32 ? 4 : 2, step = grid.step[2] * side.stride[SPATIAL + 2];
    const bool by_channel = side.stride[CHANNEL] == 1;
    for (int64_t i = 0; i < count && count_ < MOST_RANGES; ++i) {
      const char* const data =
          static_cast<const char*>(side.data) + (channel * side.stride[CHANNEL] + spans[i].offset) * size;
      Range range = by_channel ? Range{data, size * channels, spans[i].count, size * step}
                               : Range{data, size * step * spans[i].count, channels, size * side.stride[CHANNEL]};
      if (range.stride == range.bytes) range.bytes *= range.rows, range.rows = 1;
      if (range.bytes <= 0) continue;
      lines_ += range.rows * divide_up(range.bytes, LINE);
      ranges_[count_++] = range;
    }
  }

  void ask(int64_t lines) {
    for (; lines > 0 && at_ < count_; --lines) {
      const Range& range = ranges_[at_];
      __builtin_prefetch(range.data + row_ * range.stride + byte_, 0, 2);
      byte_ += LINE;
      if (byte_ < range.bytes) continue;
      byte_ = 0;
      if (++row_ == range.rows) row_ = 0, ++at_;
    }
  }

 private:
  static constexpr int64_t LINE = 64;
  struct Range {
    const char* data;
    int64_t bytes, rows, stride;
  };
  Range* const ranges_;
  int64_t count_ = 0, at_ = 0, row_ = 0, byte_ = 0, lines_ = 0;
};

}  // namespace fk::FK_ISA_NS
