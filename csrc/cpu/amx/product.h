// The product of a task on tile registers, from the codes and pixels as tiles to the stored result.
#pragma once
#include "cpu/amx/codes.h"
#include "cpu/amx/sources.h"

namespace fk::FK_LEVEL_NS {

// The product of a task: rows [row0, row0 + rows), pixels [pixel0, pixel0 + pixels).
template <int PARTS, class Source>
class Product {
 public:
  Product(const TilePlan& plan, int64_t row0, int64_t rows, int64_t block, Source& source, TileCodes& codes,
          Scratch& scratch)
      : plan_(plan),
        row0_(row0),
        rows_(rows),
        ld_(sums_ld(rows)),
        source_(source),
        codes_(codes),
        panel_(scratch.take<char>(panel_bytes(plan, rows))),
        sums_(scratch.take<float>(round_up(block, TILE) * ld_)),
        totals_(chains(plan) ? scratch.take<float>(round_up(block, TILE) * ld_) : nullptr),
        turned_(scratch.take<float>(TURNED_ROWS * turned_ld(block))) {}

  static int64_t scratch_bytes(const TilePlan& plan, int64_t rows, int64_t block) {
    return panel_bytes(plan, rows) + 4 * (chains(plan) ? 2 : 1) * round_up(block, TILE) * sums_ld(rows) +
           4 * TURNED_ROWS * turned_ld(block) + 512;
  }

  // Decodes all codes; then pixels in blocks, whose inputs are staged together, and groups, whose sums stay in the
  // first-level cache.
  void run_resident(int64_t pixel0, int64_t pixels) {
    each_chunk(
        [&](int64_t word, int64_t words) { codes_.next(words, panel_ + word * codes_.row_tiles() * TILE_BYTES); });
    const TileScope scope(static_cast<int>(std::min<int64_t>(pixels, TILE)));
    for (int64_t done = 0; done < pixels; done += plan_.block) {
      const int64_t block = std::min(plan_.block, pixels - done);
      source_.enter(row0_ / plan_.layer.rows, pixel0 + done, block);
      for (int64_t first = 0; first < block; first += plan_.group) {
        const int64_t group = std::min(plan_.group, block - first);
        each_chunk([&](int64_t word, int64_t words) {
          source_.start(word, words);
          const char* const panel = panel_ + word * codes_.row_tiles() * TILE_BYTES;
          for (int64_t pixel = 0; pixel < group; pixel += 2 * TILE) {
            add_chunk(word, words, first + pixel, std::min<int64_t>(2 * TILE, group - pixel), panel, pixel);
          }
        });
        Run runs[MOST_GROUP];
        store(runs, find_runs(plan_.grid, pixel0 + done + first, group, runs), group);
      }
    }
  }

  // Decodes codes chunk by chunk, each for all pixels.
  void run_chunks(int64_t pixel0, int64_t pixels) {
    const TileScope scope(static_cast<int>(std::min<int64_t>(pixels, TILE)));
    source_.enter(row0_ / plan_.layer.rows, pixel0, pixels);
    each_chunk([&](int64_t word, int64_t words) {
      codes_.next(words, panel_);
      source_.start(word, words);
      for (int64_t pixel = 0; pixel < pixels; pixel += 2 * TILE) {
        add_chunk(word, words, pixel, std::min<int64_t>(2 * TILE, pixels - pixel), panel_, pixel);
      }
    });
    store(source_.runs(), source_.run_count(), pixels);
  }

 private:
  static constexpr int64_t TURNED_ROWS = 32;
  static int64_t turned_ld(int64_t pixels) { return round_up(pixels, TILE) + TILE; }
  // Rows of sums an odd number of cache lines apart.
  static int64_t sums_ld(int64_t rows) { return round_up(rows, TILE) + (round_up(rows, TILE) % 32 == 0 ? TILE : 0); }
  static bool chains(const TilePlan& plan) { return plan.words > chain_words(PARTS); }
  static int64_t panel_bytes(const TilePlan& plan, int64_t rows) {
    const int64_t words = plan.resident ? plan.words : chunk_words(PARTS);
    return round_up(rows, TILE) * words * WORD_BYTES;
  }

  template <class Fn>
  void each_chunk(const Fn& fn) const {
    for (int64_t word = 0; word < plan_.words; word += chunk_words(PARTS)) {
      fn(word, std::min(chunk_words(PARTS), plan_.words - word));
    }
  }

  // Adds the products of a chunk for one or two tiles of pixels from `pixel` of the block on, to sums from `at` on.
  void add_chunk(int64_t word, int64_t words, int64_t pixel, int64_t pixels, const char* panel, int64_t at) {
    PixelTile a[2];
    const int tiles = pixels > TILE ? 2 : 1;
    for (int i = 0; i < tiles; ++i) source_.find(pixel / TILE + i, a[i]);
    const int64_t in_chain = word % chain_words(PARTS);
    multiply_tiles<PARTS>(words, a, tiles, panel, codes_.row_tiles(), sums_ + at * ld_, ld_, in_chain == 0);
    const bool ends = in_chain + words == chain_words(PARTS) || word + words == plan_.words;
    if (totals_ && ends) join(at, at + tiles * TILE, word < chain_words(PARTS));
  }

  // totals += sums; the first time totals = sums.
  void join(int64_t pixel, int64_t end, bool first) {
    for (int64_t i = pixel * ld_; i < end * ld_; i += VL) {
      const vf32 x = vf32::load(sums_ + i);
      (first ? x : vf32::load(totals_ + i) + x).store(totals_ + i);
    }
  }

  void store(const Run* runs, int64_t run_count, int64_t pixels) {
    float* const sums = totals_ ? totals_ : sums_;
    const Activations& to = plan_.result.side;
    if (to.stride[CHANNEL] == 1 || to.stride[SPATIAL + 2] != 1) {
      plan_.result.store_channels(sums, ld_, row0_, rows_, runs, run_count);
      return;
    }
    const int64_t ld = turned_ld(pixels);
    for (int64_t r = 0; r < rows_; r += TURNED_ROWS) {
      const int64_t count = std::min(TURNED_ROWS, rows_ - r);
      transpose(sums + r, ld_, pixels, count, turned_, ld);
      plan_.result.store_lanes(turned_, ld, row0_ + r, count, runs, run_count);
    }
  }

  const TilePlan& plan_;
  const int64_t row0_, rows_, ld_;
  Source& source_;
  TileCodes& codes_;
  char* const panel_;
  float *const sums_, *const totals_, *const turned_;
};

}  // namespace fk::FK_LEVEL_NS
