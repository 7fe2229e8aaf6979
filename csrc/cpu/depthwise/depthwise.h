// Convolutions and their input gradients where every result reads one source channel: sums straight from the source,
// one chain over the taps in a fixed order, however the pixels and channels are cut.
#pragma once
#include "cpu/conv/codes.h"
#include "cpu/conv/layer.h"
#include "cpu/conv/window.h"
#include "cpu/core/scratch.h"

namespace fk::FK_ISA_NS {

// Taps of one dimension that a result reads, by ascending source position.
struct Axis {
  int64_t count, tap, tap_step, shift, shift_step;

  int64_t reach() const {
    return count ? (count - 1) * shift_step + 1 : 1;
  }  // source pixels from the first tap to the last
};

// Result pixel q of channel c is the sum over taps of code[c][tap] * source[c / multiplier][q * step + shift].
struct Slide {
  const Frozen& f;
  const Activations& source;
  int64_t multiplier;
  Grid grid;
  Axis axis[3];
  int64_t taps[3];  // of the whole kernel
  Result result;

  int64_t lines() const { return grid.batch * grid.size[0] * grid.size[1]; }
  int64_t column(int64_t k0, int64_t k1, int64_t k2) const {
    const int64_t k[3] = {k0, k1, k2};
    int64_t column = 0;
    for (int d = 0; d < 3; ++d) column = column * taps[d] + axis[d].tap + k[d] * axis[d].tap_step;
    return column;
  }
  // First pixel of line `i` of the result.
  Run line(int64_t i) const {
    const int64_t rest = i / grid.size[1];
    return {0, 0, rest / grid.size[0], {{rest % grid.size[0], i % grid.size[1], 0}}};
  }
};

// A task's part of the result: lines [line, line + lines), pixels [x, x + count) of each.
struct Patch {
  int64_t channel, channels, line, lines, x, count;
};

// The codes of the channels of a patch: [tap][channel] with row stride LD.
inline int64_t slide_code_floats(const Frozen& f) { return round_up(f.cols, 32) * LD; }
inline float* slide_codes(const Frozen& f, const Patch& p, Scratch& scratch) {
  Codes codes(f, scratch);
  float* const panel = scratch.take<float>(slide_code_floats(f));
  codes.start(p.channel, p.channels);
  for (int64_t word = 0; word < f.words; word += WINDOW_WORDS) {
    codes.decode(word, std::min(WINDOW_WORDS, f.words - word), panel + 32 * word * LD);
  }
  return panel;
}

// Vectors over channels, or over the pixels of a line.
void slide_channels(const Slide& s, const Patch& p);
void slide_pixels(const Slide& s, const Patch& p);

constexpr int64_t LINE_PIXELS = 512;               // longest part of a line in a patch
constexpr int64_t MOST_WINDOW = int64_t{1} << 20;  // source values under the lowest patch; larger ones are padding

// narrow = W wide
inline bool depthwise_serves(const Call& c) {
  const int64_t columns = std::min(c.g.narrow[2], LINE_PIXELS) * c.g.stride[2];
  return c.layer.channels == 1 && c.layer.groups > 1 && window_fits(c.g, c.g.stride[1], columns, MOST_WINDOW);
}
void depthwise(const Call& call);

// wide = W^T narrow
inline bool depthwise_transposed_serves(const Call& c) {
  return c.layer.channels == 1 && c.layer.rows == 1 && c.layer.groups > 1 &&
         window_fits(c.g, 1, std::min(c.g.wide[2], LINE_PIXELS), MOST_WINDOW);
}
void depthwise_transposed(const Call& call);

}  // namespace fk::FK_ISA_NS
