// narrow = W wide on tile registers: linear layers and convolutions of more than one pixel.
// Every result is a sum, in order, over chains of words of its row; in a chain one sum takes words in order and the
// parts of the inputs inside a word.
#include "gemm_block.h"

#if FK_ISA_LEVEL >= 3

#include "tile_codes.h"
#include "tile_pixels.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t SUMS = 1 << 17;          // sums held by a task: half a megabyte
constexpr int64_t REGION_BYTES = 3 << 18;  // split inputs held by a task
constexpr int64_t MOST_PIXELS = 512, FEW_PIXELS = 128;
constexpr int64_t LEAST_ROWS = 8;

// A run of columns that lie side by side in the staged region, for every pixel.
struct Piece {
  int64_t from, column, count;  // first element after the pixel's, first column of the chunk
};

struct Task {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;
  const Activations& wide;
  const Grid grid;
  const Result result;

  template <int PARTS>
  void run(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const;

 private:
  void store(float* sums, int64_t ld, int64_t row0, int64_t rows, int64_t pixels, const Run* runs,
             int64_t run_count) const;
};

// Source of A tiles where there is one tap: the pixels' own columns, a chunk at a time.
template <int PARTS>
class OneTap {
 public:
  static int64_t scratch_bytes(int64_t pixels) {
    return round_up(pixels, TILE) * chunk_words(PARTS) * PARTS * WORD_BYTES + 64 +
           pixels * static_cast<int64_t>(sizeof(Span));
  }

  OneTap(const Task& task, int64_t group, int64_t pixels, const Run* runs, int64_t run_count, Scratch& scratch)
      : task_(task),
        channel_(group * task.layer.channels),
        pixels_(round_up(pixels, TILE)),
        packed_(scratch.take<char>(pixels_ * chunk_words(PARTS) * PARTS * WORD_BYTES)),
        spans_(scratch.take<Span>(pixels)) {
    span_count_ = find_spans(task.grid, task.wide, narrow_shift(task.g, 0), runs, run_count, spans_);
    int64_t covered = 0;
    for (int64_t i = 0; i < span_count_; ++i) covered += spans_[i].count;
    full_ = covered == pixels_;
  }

  void start(int64_t word, int64_t words) {
    words_ = words;
    if (!full_) memset(packed_, 0, static_cast<size_t>(pixels_ * words * PARTS * WORD_BYTES));
    const Activations& wide = task_.wide;
    const int64_t channels = std::min(32 * words, task_.f.cols - 32 * word);
    const int64_t step = task_.grid.step[2] * wide.stride[SPATIAL + 2], next = wide.stride[CHANNEL];
    with_dtype(wide.dtype, [&](auto dtype) {
      if constexpr (parts_of(dtype) == PARTS) {
        const auto* const from =
            static_cast<const typename Element<dtype>::Type*>(wide.data) + (channel_ + 32 * word) * next;
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

 private:
  const Task& task_;
  const int64_t channel_, pixels_;
  char* const packed_;
  Span* const spans_;
  int64_t span_count_, words_ = 0;
  bool full_;
};

// Source of A tiles where there are many taps: the region under them is split once. A tile whose pixels lie evenly in
// it is read in place; others, and columns that are no whole words of a tap, are copied into a tile first.
template <int PARTS>
class ManyTaps {
 public:
  // Inputs of a block of `pixels` pixels, roughly: as many lines as they fill, and the halo.
  static int64_t region_bytes(const Geometry& g, int64_t channels, int64_t pixels) {
    const int64_t lines = (pixels + g.narrow[2] - 1) / g.narrow[2] + 1;
    const int64_t images = lines / std::max<int64_t>(g.narrow[1], 1) + 1;
    const int64_t rows = lines * g.stride[1] + images * (g.taps[1] - 1) * g.dilation[1];
    return g.taps[0] * rows * (g.wide[2] + 2 * g.padding[2]) * channels * 2 * PARTS;
  }

  ManyTaps(const Task& task, int64_t group, int64_t pixels, const Run* runs, int64_t run_count, char* copies,
           int64_t* bases, Region& region, char* staged, float* line)
      : task_(task),
        region_(region),
        staged_(staged),
        copies_(copies),
        bases_(bases),
        aligned_(task.layer.channels % 32 == 0),
        pixel_bytes_(pixel_bytes(task.layer.channels)),
        part_(region.pixels() * pixel_bytes_ + WORD_BYTES) {
    int64_t segment = -1, batch = -1, plane = -1, pixel = 0;
    for (int64_t i = 0; i < run_count; ++i) {
      const Run& run = runs[i];
      if (run.batch != batch || run.q.x[0] != plane) ++segment, batch = run.batch, plane = run.q.x[0];
      const int64_t base = region.base(segment, run.q.x[1], run.q.x[2]);
      for (int64_t j = 0; j < run.count; ++j) bases[pixel++] = (base + j * region.step()) * pixel_bytes_;
    }
    for (const int64_t last = bases[pixel - 1]; pixel < round_up(pixels, TILE);) bases[pixel++] = last;
    const int64_t channels = task.layer.channels;
    region.stage(task.wide, group * channels, channels, channels, pixel_bytes_, staged, part_, line);
  }
  // Pixels an odd number of cache lines apart fall into different cache sets.
  static int64_t pixel_bytes(int64_t channels) {
    return 2 * channels + (channels % 32 == 0 && channels / 32 % 2 == 0 ? WORD_BYTES : 0);
  }

  void start(int64_t word, int64_t words) {
    words_ = words;
    const int64_t channels = task_.layer.channels;
    if (aligned_) {
      for (int64_t w = 0; w < words; ++w) offset_[w] = offset(32 * (word + w));
      return;
    }
    // Columns of the chunk whose staged values are neighbours make one piece, cut where a copy's vector ends.
    piece_count_ = 0;
    const int64_t end = std::min(32 * (word + words), task_.f.cols);
    for (int64_t k = 32 * word; k < end;) {
      const int64_t count = std::min(channels - k % channels, end - k), from = offset(k);
      Piece* const last = piece_count_ ? &pieces_[piece_count_ - 1] : nullptr;
      if (last && from == last->from + 2 * last->count) {
        last->count += count;
      } else {
        pieces_[piece_count_++] = {from, k - 32 * word, count};
      }
      k += count;
    }
  }

  void find(int64_t tile, PixelTile& a) {
    const int64_t* const base = bases_ + tile * TILE;
    if (aligned_) {
      const int64_t stride = base[1] - base[0];
      bool even = true;
      for (int i = 2; i < TILE; ++i) even &= base[i] - base[i - 1] == stride;
      if (even) {
        a.stride = stride;
        a.part = part_;
        for (int64_t w = 0; w < words_; ++w) a.at[w] = staged_ + base[0] + offset_[w];
        return;
      }
    }
    char* const copy = copies_ + (tile & 1) * words_ * PARTS * TILE_BYTES;
    if (aligned_) {
      copy_words(base, copy);
    } else {
      copy_pieces(base, copy);
    }
    a.stride = WORD_BYTES;
    a.part = TILE_BYTES;
    for (int64_t w = 0; w < words_; ++w) a.at[w] = copy + w * PARTS * TILE_BYTES;
  }

 private:
  // Bytes from a pixel under the first tap to the value of column k.
  int64_t offset(int64_t k) const {
    const Position p = tap_position(task_.g, k / task_.layer.channels);
    return region_.tap(p) * pixel_bytes_ + k % task_.layer.channels * 2;
  }

  void copy_words(const int64_t* base, char* copy) const {
    for (int64_t w = 0; w < words_; ++w) {
      for (int p = 0; p < PARTS; ++p, copy += TILE_BYTES) {
        const char* const from = staged_ + p * part_ + offset_[w];
        for (int i = 0; i < TILE; ++i) {
          _mm512_store_si512(copy + i * WORD_BYTES, _mm512_loadu_si512(from + base[i]));
        }
      }
    }
  }

  // [word][part][pixel] from rows of the whole chunk, which pieces fill in order: what a piece writes past its end is
  // overwritten by the next, and zeros follow the last.
  void copy_pieces(const int64_t* base, char* copy) const {
    alignas(64) uint16_t row[32 * MAX_CHUNK_WORDS + 64];
    for (int p = 0; p < PARTS; ++p) {
      const char* const from = staged_ + p * part_;
      for (int i = 0; i < TILE; ++i) {
        for (int64_t n = 0; n < piece_count_; ++n) {
          const Piece& piece = pieces_[n];
          for (int64_t j = 0; j < piece.count; j += 32) {
            _mm512_storeu_si512(row + piece.column + j, _mm512_maskz_loadu_epi16(lanes32(piece.count - j),
                                                                                 from + base[i] + piece.from + 2 * j));
          }
        }
        const Piece& last = pieces_[piece_count_ - 1];
        for (int64_t k = last.column + last.count; k < 32 * words_; k += 32) {
          _mm512_storeu_si512(row + k, _mm512_setzero_si512());
        }
        for (int64_t w = 0; w < words_; ++w) {
          _mm512_store_si512(copy + (w * PARTS + p) * TILE_BYTES + i * WORD_BYTES, _mm512_load_si512(row + 32 * w));
        }
      }
    }
  }

  const Task& task_;
  const Region& region_;
  char *const staged_, *const copies_;
  int64_t* const bases_;
  const bool aligned_;
  const int64_t pixel_bytes_, part_;
  int64_t words_ = 0, piece_count_ = 0;
  int64_t offset_[MAX_CHUNK_WORDS];
  Piece pieces_[32 * MAX_CHUNK_WORDS];
};

// totals += sums for pixels [pixel, end); the first time totals = sums.
void join(const float* sums, float* totals, int64_t pixel, int64_t end, int64_t ld, bool first) {
  for (int64_t i = pixel * ld; i < end * ld; i += VL) {
    const vf32 x = vf32::load(sums + i);
    (first ? x : vf32::load(totals + i) + x).store(totals + i);
  }
}

// Sums of all words, [pixel][row]: in `totals`, or in `sums` where one chain is enough.
template <int PARTS, class Source>
void multiply_all(TileCodes& codes, Source& source, int64_t words, int64_t pixels, char* panel, float* sums,
                  float* totals, int64_t ld) {
  const TileScope scope(static_cast<int>(std::min<int64_t>(pixels, TILE)));
  const int64_t padded = round_up(pixels, TILE);
  for (int64_t word = 0; word < words; word += chunk_words(PARTS)) {
    const int64_t count = std::min(chunk_words(PARTS), words - word), in_chain = word % chain_words(PARTS);
    const bool ends = in_chain + count == chain_words(PARTS) || word + count == words;
    codes.next(count, panel);
    source.start(word, count);
    for (int64_t pixel = 0; pixel < pixels; pixel += 2 * TILE) {
      PixelTile a[2];
      const int tiles = pixels - pixel > TILE ? 2 : 1;
      for (int i = 0; i < tiles; ++i) source.find(pixel / TILE + i, a[i]);
      multiply_tiles<PARTS>(count, a, tiles, panel, codes.row_tiles(), sums + pixel * ld, ld, in_chain == 0);
      if (totals && ends) {
        join(sums, totals, pixel, std::min(pixel + 2 * TILE, padded), ld, word < chain_words(PARTS));
      }
    }
  }
}

template <int PARTS>
void Task::run(int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) const {
  const int64_t group = row0 / layer.rows, lanes = round_up(rows, TILE), padded = round_up(pixels, TILE);
  const int64_t ld = lanes + (lanes % 32 == 0 ? TILE : 0);  // rows an odd number of cache lines apart
  std::vector<Run> runs(pixels);
  const int64_t run_count = find_runs(grid, pixel0, pixels, runs.data());
  std::vector<Region::Segment> segments(run_count);
  std::optional<Region> region;
  const bool chains = f.words > chain_words(PARTS);
  int64_t bytes =
      TileCodes::scratch_bytes(rows) + lanes * chunk_words(PARTS) * WORD_BYTES + (chains ? 8 : 4) * padded * ld + 1024;
  if (layer.taps == 1) {
    bytes += OneTap<PARTS>::scratch_bytes(pixels);
  } else {
    region.emplace(g, runs.data(), run_count, segments.data());
    bytes += PARTS * (region->pixels() * ManyTaps<PARTS>::pixel_bytes(layer.channels) + WORD_BYTES) + 8 * padded +
             2 * MAX_CHUNK_WORDS * TILE_BYTES + 4 * region->columns() * layer.channels + 512;
  }
  Scratch scratch(bytes);
  TileCodes codes(f, row0, rows, scratch);
  char* const panel = scratch.take<char>(lanes * chunk_words(PARTS) * WORD_BYTES);
  float* const sums = scratch.take<float>(padded * ld);
  float* const totals = chains ? scratch.take<float>(padded * ld) : nullptr;
  if (layer.taps == 1) {
    OneTap<PARTS> source(*this, group, pixels, runs.data(), run_count, scratch);
    multiply_all<PARTS>(codes, source, f.words, pixels, panel, sums, totals, ld);
  } else {
    char* const copies = scratch.take<char>(2 * MAX_CHUNK_WORDS * TILE_BYTES);
    int64_t* const bases = scratch.take<int64_t>(padded);
    char* const staged =
        scratch.take<char>(PARTS * (region->pixels() * ManyTaps<PARTS>::pixel_bytes(layer.channels) + WORD_BYTES));
    float* const line = scratch.take<float>(region->columns() * layer.channels);
    ManyTaps<PARTS> source(*this, group, pixels, runs.data(), run_count, copies, bases, *region, staged, line);
    multiply_all<PARTS>(codes, source, f.words, pixels, panel, sums, totals, ld);
  }
  store(totals ? totals : sums, ld, row0, rows, pixels, runs.data(), run_count);
}

void Task::store(float* sums, int64_t ld, int64_t row0, int64_t rows, int64_t pixels, const Run* runs,
                 int64_t run_count) const {
  const Activations& to = result.side;
  if (to.stride[CHANNEL] == 1 || to.stride[SPATIAL + 2] != 1) {
    result.store_channels(sums, ld, row0, rows, runs, run_count);
    return;
  }
  constexpr int64_t ROWS = 32;
  const int64_t turned_ld = round_up(pixels, TILE) + TILE;
  std::vector<float> turned(ROWS * turned_ld);
  for (int64_t r = 0; r < rows; r += ROWS) {
    const int64_t count = std::min(ROWS, rows - r);
    transpose(sums + r, ld, pixels, count, turned.data(), turned_ld);
    result.store_lanes(turned.data(), turned_ld, row0 + r, count, runs, run_count);
  }
}

struct Cut {
  int64_t rows, pixels;
};

// Rows and pixels of a task: whole in both where threads have enough, then fewer pixels, then fewer rows.
Cut cut(const Geometry& g, const Layer& layer, int64_t pixels, int parts, int threads) {
  int64_t blocks = (layer.rows + TILE_BLOCK_ROWS - 1) / TILE_BLOCK_ROWS;
  int64_t rows = round_up((layer.rows + blocks - 1) / blocks, 2 * TILE);
  int64_t most = std::clamp<int64_t>(SUMS / rows / 32 * 32, 64, MOST_PIXELS);
  if (layer.taps > 1) {
    const auto bytes = [&](int64_t n) {
      return parts == 3 ? ManyTaps<3>::region_bytes(g, layer.channels, n)
                        : ManyTaps<2>::region_bytes(g, layer.channels, n) * parts / 2;
    };
    while (most > 32 && bytes(most) > REGION_BYTES) most -= 32;
  }
  const auto even = [&](int64_t limit) {
    const int64_t n = (pixels + limit - 1) / limit;
    return std::min(round_up((pixels + n - 1) / n, 2 * TILE), round_up(pixels, TILE));
  };
  const auto tasks = [&](int64_t n) {
    return layer.groups * ((layer.rows + rows - 1) / rows) * ((pixels + n - 1) / n);
  };
  const int64_t wanted = threads == 1 ? 1 : 2 * threads;
  while (most > FEW_PIXELS && tasks(even(most)) < wanted) most -= 32;
  while (rows > 2 * TILE && tasks(even(most)) < wanted) rows = round_up(rows / 2, 2 * TILE);
  return {rows, even(most)};
}

}  // namespace

bool tiles_serve(const Layer& layer, int64_t pixels) { return layer.rows >= LEAST_ROWS && pixels > 1; }

void convolve_tiles(const Frozen& f, const Geometry& g, const Activations& wide, const Result& result, const Grid& grid,
                    int threads) {
  const Layer layer(f, g);
  const Task task{f, g, layer, wide, grid, result};
  const int parts = parts_of(wide.dtype);
  const int64_t pixels = grid.pixels();
  const Cut size = cut(g, layer, pixels, parts, threads);
  const int64_t per_group = (layer.rows + size.rows - 1) / size.rows, blocks = (pixels + size.pixels - 1) / size.pixels;
  parallel_for(threads, layer.groups * per_group * blocks, [&](int64_t i) {
    const int64_t start = i / blocks % per_group * size.rows, pixel0 = i % blocks * size.pixels;
    const int64_t row0 = i / blocks / per_group * layer.rows + start;
    const int64_t rows = std::min(size.rows, layer.rows - start), count = std::min(size.pixels, pixels - pixel0);
    if (parts == 3) return task.run<3>(row0, rows, pixel0, count);
    if (parts == 2) return task.run<2>(row0, rows, pixel0, count);
    task.run<1>(row0, rows, pixel0, count);
  });
}

}  // namespace fk::FK_ISA_NS

#endif
