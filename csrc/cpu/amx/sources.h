// Where the A tiles of a product come from: its plan, and the pixels under one tap or many.
#pragma once
#include <optional>

#include "cpu/conv/layer.h"
#include "cpu/amx/pixels.h"

namespace fk::FK_LEVEL_NS {

constexpr int64_t MOST_GROUP = 4 * TILE;

// What tasks share: the layer, and how it is cut. A transposed product is one of the narrow side with flipped taps, so
// it has the geometry of that product: the narrow side is its source, and channels of the layer are its rows.
struct TilePlan {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;  // rows of the result and channels of the source
  const bool transposed;
  const Activations& source;
  const Grid grid;
  const Result result;
  const int64_t words;  // of a row of the product
  int64_t rows;         // of a task
  int64_t pixels;       // of a task
  int64_t block;        // pixels whose inputs are staged together
  int64_t group;        // pixels that go through all chunks together, where resident: at most MOST_GROUP
  bool resident;        // all codes of a task's rows are decoded before its pixels, else chunk by chunk

  bool one_tap() const { return layer.taps == 1; }

  // Staged channels of a pixel: with zeros up to whole words where words hold one tap.
  int64_t width() const { return transposed ? round_up(layer.channels, 32) : layer.channels; }

  // Calls fn(tap, first channel, first column, columns) for each tap's part of a word. A word of a transposed product
  // is 32 rows of the weight under one tap.
  template <class Fn>
  void each_part(int64_t word, const Fn& fn) const {
    const int64_t channels = layer.channels;
    if (transposed) {
      const int64_t channel = 32 * (word / layer.taps), flipped = layer.taps - 1 - word % layer.taps;
      fn(flipped, channel, 0, std::min<int64_t>(32, channels - channel));
      return;
    }
    const int64_t begin = 32 * word, end = std::min(begin + 32, f.cols);
    for (int64_t k = begin; k < end;) {
      const int64_t count = std::min(channels - k % channels, end - k);
      fn(k / channels, k % channels, k - begin, count);
      k += count;
    }
  }
};

// Columns of a word that lie side by side in the staged region, for every pixel.
struct Piece {
  int64_t from;  // bytes after the pixel's at which the word would start if all of it lay like the piece
  __mmask32 columns;
};

// Source of A tiles where there is one tap: the columns of the pixels themselves, packed a chunk at a time.
template <int PARTS>
class OneTap {
 public:
  OneTap(const TilePlan& plan, int64_t most_pixels, Scratch& scratch)
      : plan_(plan),
        packed_(scratch.take<char>(packed_bytes(most_pixels))),
        runs_(scratch.take<Run>(most_pixels)),
        spans_(scratch.take<Span>(most_pixels)) {}
  static int64_t scratch_bytes(int64_t most_pixels) {
    return packed_bytes(most_pixels) + most_pixels * static_cast<int64_t>(sizeof(Run) + sizeof(Span)) + 256;
  }

  void enter(int64_t group, int64_t pixel0, int64_t pixels) {
    channel_ = group * plan_.layer.channels;
    padded_ = round_up(pixels, TILE);
    run_count_ = find_runs(plan_.grid, pixel0, pixels, runs_);
    span_count_ = find_spans(plan_.grid, plan_.source, narrow_shift(plan_.g, 0), runs_, run_count_, spans_);
    int64_t covered = 0;
    for (int64_t i = 0; i < span_count_; ++i) covered += spans_[i].count;
    full_ = covered == padded_;
  }

  void start(int64_t word, int64_t words) {
    words_ = words;
    if (!full_) memset(packed_, 0, static_cast<size_t>(padded_ * words * PARTS * WORD_BYTES));
    const Activations& side = plan_.source;
    const int64_t channels = std::min(32 * words, plan_.layer.channels - 32 * word);
    const int64_t step = plan_.grid.step[2] * side.stride[SPATIAL + 2], next = side.stride[CHANNEL];
    with_dtype(side.dtype, [&](auto dtype) {
      if constexpr (parts_of(dtype) == PARTS) {
        const auto* const from =
            static_cast<const typename Element<dtype>::Type*>(side.data) + (channel_ + 32 * word) * next;
        for (int64_t i = 0; i < span_count_; ++i) {
          const PackedPlace place{packed_, words, spans_[i].lane, PARTS * TILE_BYTES};
          split_line<dtype>(from + spans_[i].offset, step, next, spans_[i].count, channels, 32 * words, place);
        }
      }
    });
  }

  void find(int64_t tile, PixelTile& a) {
    a.stride = WORD_BYTES;
    a.part = TILE_BYTES;
    for (int64_t w = 0; w < words_; ++w) a.at[w] = packed_ + (tile * words_ + w) * PARTS * TILE_BYTES;
  }

  const Run* runs() const { return runs_; }
  int64_t run_count() const { return run_count_; }

 private:
  static int64_t packed_bytes(int64_t pixels) {
    return round_up(pixels, TILE) * chunk_words(PARTS) * PARTS * WORD_BYTES;
  }

  const TilePlan& plan_;
  char* const packed_;
  Run* const runs_;
  Span* const spans_;
  int64_t channel_ = 0, padded_ = 0, run_count_ = 0, span_count_ = 0, words_ = 0;
  bool full_ = false;
};

// Source of A tiles where there are many taps: the region under them is split once. A tile whose pixels lie evenly in
// it is read in place; others, and columns that are no whole words of a tap, are copied into a tile first.
template <int PARTS>
class ManyTaps {
 public:
  ManyTaps(const TilePlan& plan, int64_t most_pixels, Scratch& scratch)
      : plan_(plan),
        aligned_(plan.width() % 32 == 0),
        pixel_bytes_(pixel_bytes(plan.width())),
        copies_(scratch.take<char>(COPY_BYTES)),
        bases_(scratch.take<int64_t>(round_up(most_pixels, TILE))),
        runs_(scratch.take<Run>(most_pixels)),
        segments_(scratch.take<Region::Segment>(most_pixels)),
        staged_(scratch.take<char>(staged_bytes(plan.g, plan.width(), most_pixels))),
        line_(scratch.take<float>(Region::most_columns(plan.g) * plan.layer.channels)),
        offsets_(plan.words + 1) {}

  static int64_t scratch_bytes(const TilePlan& plan, int64_t most_pixels) {
    return COPY_BYTES + most_pixels * static_cast<int64_t>(8 + sizeof(Run) + sizeof(Region::Segment)) +
           staged_bytes(plan.g, plan.width(), most_pixels) + 4 * Region::most_columns(plan.g) * plan.layer.channels +
           1024;
  }
  // Of the split inputs of a block of pixels.
  static int64_t staged_bytes(const Geometry& g, int64_t width, int64_t most_pixels) {
    return PARTS * (Region::most_pixels(g, most_pixels) * pixel_bytes(width) + WORD_BYTES);
  }

  void enter(int64_t group, int64_t pixel0, int64_t pixels) {
    run_count_ = find_runs(plan_.grid, pixel0, pixels, runs_);
    region_.emplace(plan_.g, runs_, run_count_, segments_);
    part_ = region_->pixels() * pixel_bytes_ + WORD_BYTES;
    int64_t segment = -1, batch = -1, plane = -1, pixel = 0;
    for (int64_t i = 0; i < run_count_; ++i) {
      const Run& run = runs_[i];
      if (run.batch != batch || run.q.x[0] != plane) ++segment, batch = run.batch, plane = run.q.x[0];
      const int64_t base = region_->base(segment, run.q.x[1], run.q.x[2]);
      for (int64_t j = 0; j < run.count; ++j) bases_[pixel++] = (base + j * region_->step()) * pixel_bytes_;
    }
    for (const int64_t last = bases_[pixel - 1]; pixel < round_up(pixels, TILE);) bases_[pixel++] = last;
    const int64_t channels = plan_.layer.channels;
    region_->stage(plan_.source, group * channels, {channels, plan_.width(), pixel_bytes_}, staged_, part_, line_);
    find_columns();
  }

  void start(int64_t word, int64_t words) {
    words_ = words;
    word_ = word;
  }

  void find(int64_t tile, PixelTile& a) {
    const int64_t* const base = bases_ + tile * TILE;
    char* const copy = copies_ + (tile & 1) * (COPY_BYTES / 2);
    if (!aligned_) {
      copy_pieces(base, copy, a);
      return;
    }
    const int64_t stride = base[1] - base[0];
    bool even = true;
    for (int i = 2; i < TILE; ++i) even &= base[i] - base[i - 1] == stride;
    if (even) {
      a.stride = stride;
      a.part = part_;
      for (int64_t w = 0; w < words_; ++w) a.at[w] = staged_ + base[0] + offsets_[word_ + w];
    } else {
      copy_words(base, copy, a);
    }
  }

  const Run* runs() const { return runs_; }
  int64_t run_count() const { return run_count_; }

 private:
  static constexpr int64_t COPY_BYTES = 2 * chunk_words(PARTS) * PARTS * TILE_BYTES;  // two tiles of a chunk

  // Pixels an odd number of cache lines apart fall into different cache sets.
  static int64_t pixel_bytes(int64_t width) {
    return 2 * width + (width % 32 == 0 && width / 32 % 2 == 0 ? WORD_BYTES : 0);
  }

  // Where the columns of each word are, or its pieces.
  void find_columns() {
    pieces_.clear();
    for (int64_t w = 0; w < plan_.words; ++w) {
      const size_t first = pieces_.size();
      plan_.each_part(w, [&](int64_t tap, int64_t channel, int64_t column, int64_t count) {
        const int64_t pixel = region_->tap(tap_position(plan_.g, tap)) * pixel_bytes_;
        const int64_t from = pixel + 2 * (channel - column);
        const __mmask32 columns = lanes32(count) << column;
        if (pieces_.size() > first && from == pieces_.back().from) {
          pieces_.back().columns |= columns;
        } else {
          pieces_.push_back({from, columns});
        }
      });
      offsets_[w] = aligned_ ? pieces_.back().from : static_cast<int64_t>(first);
    }
    offsets_[plan_.words] = static_cast<int64_t>(pieces_.size());
  }

  __attribute__((noinline)) void copy_words(const int64_t* base, char* copy, PixelTile& a) const {
    a.stride = WORD_BYTES;
    a.part = TILE_BYTES;
    for (int64_t w = 0; w < words_; ++w) {
      a.at[w] = copy;
      for (int p = 0; p < PARTS; ++p, copy += TILE_BYTES) {
        const char* const from = staged_ + p * part_ + offsets_[word_ + w];
#pragma GCC unroll 16
        for (int i = 0; i < TILE; ++i) {
          _mm512_store_si512(copy + i * WORD_BYTES, _mm512_loadu_si512(from + base[i]));
        }
      }
    }
  }

  void copy_pieces(const int64_t* base, char* copy, PixelTile& a) const {
    a.stride = WORD_BYTES;
    a.part = TILE_BYTES;
    for (int64_t w = 0; w < words_; ++w) {
      a.at[w] = copy;
      const Piece* const pieces = pieces_.data();
      for (int p = 0; p < PARTS; ++p, copy += TILE_BYTES) {
        copy_word(pieces + offsets_[word_ + w], pieces + offsets_[word_ + w + 1], staged_ + p * part_, base, copy);
      }
    }
  }

  // One word of 16 pixels, in registers; apart from its callers, which would leave it too few for addresses.
  __attribute__((noinline)) static void copy_word(const Piece* piece, const Piece* end, const char* from,
                                                  const int64_t* base, char* copy) {
    __m512i word[TILE];
    for (__m512i& x : word) x = _mm512_setzero_si512();
    for (; piece != end; ++piece) {
      const char* const at = from + piece->from;
      const __mmask32 columns = piece->columns;
#pragma GCC unroll 16
      for (int i = 0; i < TILE; ++i) word[i] = _mm512_mask_loadu_epi16(word[i], columns, at + base[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < TILE; ++i) _mm512_store_si512(copy + i * WORD_BYTES, word[i]);
  }

  const TilePlan& plan_;
  const bool aligned_;
  const int64_t pixel_bytes_;
  char* const copies_;
  int64_t* const bases_;
  Run* const runs_;
  Region::Segment* const segments_;
  char* const staged_;
  float* const line_;
  std::optional<Region> region_;
  std::vector<int64_t> offsets_;  // by word: bytes to its columns, or its first piece
  std::vector<Piece> pieces_;
  int64_t part_ = 0, run_count_ = 0, word_ = 0, words_ = 0;
};

}  // namespace fk::FK_LEVEL_NS
