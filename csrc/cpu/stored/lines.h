// Pixels of a layer in one line, in which a tap is a constant distance: dimensions are padded, so that what lies
// between two lines of an image is zeros or results that nobody wants.
#pragma once
#include "cpu/conv/layer.h"

namespace fk::FK_ISA_NS {

constexpr int64_t TILE = (VL == 16 ? 4 : 8) * VL;  // most pixels whose sums lie in registers

struct Lines {
  Grid grid;        // of positions, to source pixels
  int64_t size[3];  // of results
  int64_t reach;    // largest distance of a tap
  // Segments hold results in their first `used` positions: images, or all of them where taps reach nowhere.
  int64_t segments, segment, used;

  // `size`: of results; `extra`: how far taps reach beyond them; `step` and `limit`: of the source.
  Lines(int64_t batch, const int64_t* size, const int64_t* extra, const int64_t* step, const int64_t* limit);

  int64_t distance(const int64_t* by) const { return (by[0] * grid.size[1] + by[1]) * grid.size[2] + by[2]; }
  int64_t tiles_of_segment() const { return divide_up(used, TILE); }
  int64_t tiles() const { return segments * tiles_of_segment(); }

  // A tile is some positions of a segment.
  struct Tile {
    int64_t first, count;
  };
  Tile tile(int64_t i) const {
    const int64_t segment_at = i / tiles_of_segment(), at = i % tiles_of_segment() * TILE;
    return {segment_at * segment + at, std::min(TILE, used - at)};
  }
  // Positions under the taps of tiles [tile0, tile1), and a vector more.
  int64_t region(int64_t tile0, int64_t tile1) const {
    const Tile last = tile(tile1 - 1);
    return round_up(last.first + last.count + reach - tile(tile0).first, VL) + VL;
  }
  // Of all blocks of so many tiles.
  int64_t widest_region(int64_t block) const {
    int64_t widest = 0;
    for (int64_t i = 0; i < tiles(); i += block) widest = std::max(widest, region(i, std::min(i + block, tiles())));
    return widest;
  }
  int64_t most_runs(int64_t positions) const { return positions / grid.size[2] + 2; }

  // out[channel][position] of `count` positions from `first` on, and zeros up to `ld`; a source pixel is
  // position * step + shift. LD floats of `stage` for each position, and `runs` and `spans` for most_runs(count).
  void pack(const Activations& source, const Position& shift, int64_t first, int64_t count, int64_t channel,
            int64_t channels, float* out, int64_t ld, float* stage, Run* runs, Span* spans) const;

  // Runs of the results of a tile, of which there are `size` in each dimension.
  int64_t result_runs(const Tile& tile, const int64_t* size, Run* runs) const;
};

// Sums [channel][pixel] to a result, by whichever order lies together there. `turned`: VL * round_up(pixels, VL)
// floats.
void store_sums(const Result& result, const float* sums, int64_t ld, int64_t channel, int64_t channels, int64_t pixels,
                const Run* runs, int64_t run_count, float* turned);

}  // namespace fk::FK_ISA_NS
