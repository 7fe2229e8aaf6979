// narrow = W wide on tile registers: linear layers and convolutions of more than one pixel.
// Every result is a sum, in order, over chains of words of its row; in a chain one sum takes words in order and the
// parts of the inputs inside a word.
#include "gemm_block.h"

#if FK_ISA_LEVEL >= 3

#include <optional>

#include "tile_codes.h"
#include "tile_pixels.h"

namespace fk::FK_ISA_NS {

namespace {

// Working memory of a task: the second-level cache, 2 MB wherever there are tiles, should hold it. Where a layer is
// large enough for memory to matter, all threads together take an eighth of its dense weight at most.
constexpr int64_t WORK_BYTES = 2 << 20, LEAST_WORK_BYTES = 1 << 19, LARGE_LAYER_BYTES = 8 << 20;
constexpr int64_t MOST_ROWS = 512, MOST_PIXELS = 512, FEW_PIXELS = 128, LEAST_ROWS = 8;
constexpr int64_t MOST_GROUP = 4 * TILE;

// Columns of a word that lie side by side in the staged region, for every pixel.
struct Piece {
  int64_t from;  // bytes after the pixel's at which the word would start if all of it lay like the piece
  __mmask32 columns;
};

// What tasks share: the layer, and how it is cut.
struct Plan {
  const Frozen& f;
  const Geometry& g;
  const Layer layer;
  const Activations& wide;
  const Grid grid;
  const Result result;
  int64_t rows;    // of a task
  int64_t pixels;  // of a task
  int64_t block;   // pixels whose inputs are staged together
  int64_t group;   // pixels that go through all chunks together, where resident
  bool resident;   // all codes of a task's rows are decoded before its pixels, else chunk by chunk

  bool one_tap() const { return layer.taps == 1; }
};

// Source of A tiles where there is one tap: the columns of the pixels themselves, packed a chunk at a time.
template <int PARTS>
class OneTap {
 public:
  OneTap(const Plan& plan, int64_t most_pixels, Scratch& scratch)
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
    span_count_ = find_spans(plan_.grid, plan_.wide, narrow_shift(plan_.g, 0), runs_, run_count_, spans_);
    int64_t covered = 0;
    for (int64_t i = 0; i < span_count_; ++i) covered += spans_[i].count;
    full_ = covered == padded_;
  }

  void start(int64_t word, int64_t words) {
    words_ = words;
    if (!full_) memset(packed_, 0, static_cast<size_t>(padded_ * words * PARTS * WORD_BYTES));
    const Activations& wide = plan_.wide;
    const int64_t channels = std::min(32 * words, plan_.f.cols - 32 * word);
    const int64_t step = plan_.grid.step[2] * wide.stride[SPATIAL + 2], next = wide.stride[CHANNEL];
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

  const Run* runs() const { return runs_; }
  int64_t run_count() const { return run_count_; }

 private:
  static int64_t packed_bytes(int64_t pixels) {
    return round_up(pixels, TILE) * chunk_words(PARTS) * PARTS * WORD_BYTES;
  }

  const Plan& plan_;
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
  ManyTaps(const Plan& plan, int64_t most_pixels, Scratch& scratch)
      : plan_(plan),
        aligned_(plan.layer.channels % 32 == 0),
        pixel_bytes_(pixel_bytes(plan.layer.channels)),
        copies_(scratch.take<char>(COPY_BYTES)),
        bases_(scratch.take<int64_t>(round_up(most_pixels, TILE))),
        runs_(scratch.take<Run>(most_pixels)),
        segments_(scratch.take<Region::Segment>(most_pixels)),
        staged_(scratch.take<char>(staged_bytes(plan.g, plan.layer.channels, most_pixels))),
        line_(scratch.take<float>(Region::most_columns(plan.g) * plan.layer.channels)),
        offsets_(plan.f.words + 1) {}

  static int64_t scratch_bytes(const Plan& plan, int64_t most_pixels) {
    return COPY_BYTES + most_pixels * static_cast<int64_t>(8 + sizeof(Run) + sizeof(Region::Segment)) +
           staged_bytes(plan.g, plan.layer.channels, most_pixels) +
           4 * Region::most_columns(plan.g) * plan.layer.channels + 1024;
  }
  // Of the split inputs of a block of pixels.
  static int64_t staged_bytes(const Geometry& g, int64_t channels, int64_t most_pixels) {
    return PARTS * (Region::most_pixels(g, most_pixels) * pixel_bytes(channels) + WORD_BYTES);
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
    region_->stage(plan_.wide, group * channels, channels, pixel_bytes_, staged_, part_, line_);
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
  static int64_t pixel_bytes(int64_t channels) {
    return 2 * channels + (channels % 32 == 0 && channels / 32 % 2 == 0 ? WORD_BYTES : 0);
  }

  // Bytes from a pixel under the first tap to the value of column k.
  int64_t offset(int64_t k) const {
    const Position p = tap_position(plan_.g, k / plan_.layer.channels);
    return region_->tap(p) * pixel_bytes_ + k % plan_.layer.channels * 2;
  }

  // Where the columns of each word are, or its pieces.
  void find_columns() {
    if (aligned_) {
      for (int64_t w = 0; w < plan_.f.words; ++w) offsets_[w] = offset(32 * w);
      return;
    }
    pieces_.clear();
    for (int64_t w = 0; w < plan_.f.words; ++w) {
      offsets_[w] = static_cast<int64_t>(pieces_.size());
      const int64_t begin = 32 * w, end = std::min(begin + 32, plan_.f.cols), channels = plan_.layer.channels;
      for (int64_t k = begin; k < end;) {
        const int64_t count = std::min(channels - k % channels, end - k), from = offset(k) - 2 * (k - begin);
        const __mmask32 columns = lanes32(count) << (k - begin);
        if (k > begin && from == pieces_.back().from) {
          pieces_.back().columns |= columns;
        } else {
          pieces_.push_back({from, columns});
        }
        k += count;
      }
    }
    offsets_[plan_.f.words] = static_cast<int64_t>(pieces_.size());
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

  const Plan& plan_;
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

// The product of a task: rows [row0, row0 + rows), pixels [pixel0, pixel0 + pixels).
template <int PARTS, class Source>
class Product {
 public:
  Product(const Plan& plan, int64_t row0, int64_t rows, int64_t block, Source& source, Scratch& scratch)
      : plan_(plan),
        row0_(row0),
        rows_(rows),
        ld_(sums_ld(rows)),
        source_(source),
        codes_(plan.f, row0, rows, scratch),
        panel_(scratch.take<char>(panel_bytes(plan, rows))),
        sums_(scratch.take<float>(round_up(block, TILE) * ld_)),
        totals_(chains(plan) ? scratch.take<float>(round_up(block, TILE) * ld_) : nullptr),
        turned_(scratch.take<float>(TURNED_ROWS * turned_ld(block))) {}

  static int64_t scratch_bytes(const Plan& plan, int64_t rows, int64_t block) {
    return TileCodes::scratch_bytes(plan.f, rows) + panel_bytes(plan, rows) +
           4 * (chains(plan) ? 2 : 1) * round_up(block, TILE) * sums_ld(rows) + 4 * TURNED_ROWS * turned_ld(block) +
           512;
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
  static bool chains(const Plan& plan) { return plan.f.words > chain_words(PARTS); }
  static int64_t panel_bytes(const Plan& plan, int64_t rows) {
    const int64_t words = plan.resident ? plan.f.words : chunk_words(PARTS);
    return round_up(rows, TILE) * words * WORD_BYTES;
  }

  template <class Fn>
  void each_chunk(const Fn& fn) const {
    for (int64_t word = 0; word < plan_.f.words; word += chunk_words(PARTS)) {
      fn(word, std::min(chunk_words(PARTS), plan_.f.words - word));
    }
  }

  // Adds the products of a chunk for one or two tiles of pixels from `pixel` of the block on, to sums from `at` on.
  void add_chunk(int64_t word, int64_t words, int64_t pixel, int64_t pixels, const char* panel, int64_t at) {
    PixelTile a[2];
    const int tiles = pixels > TILE ? 2 : 1;
    for (int i = 0; i < tiles; ++i) source_.find(pixel / TILE + i, a[i]);
    const int64_t in_chain = word % chain_words(PARTS);
    multiply_tiles<PARTS>(words, a, tiles, panel, codes_.row_tiles(), sums_ + at * ld_, ld_, in_chain == 0);
    const bool ends = in_chain + words == chain_words(PARTS) || word + words == plan_.f.words;
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

  const Plan& plan_;
  const int64_t row0_, rows_, ld_;
  Source& source_;
  TileCodes codes_;
  char* const panel_;
  float *const sums_, *const totals_, *const turned_;
};

template <int PARTS, class Source>
void run_task(const Plan& plan, int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels, int64_t source_bytes) {
  const int64_t staged = std::min(plan.block, pixels), block = plan.resident ? plan.group : pixels;
  Scratch scratch(source_bytes + Product<PARTS, Source>::scratch_bytes(plan, rows, block));
  Source source(plan, staged, scratch);
  Product<PARTS, Source> product(plan, row0, rows, block, source, scratch);
  if (plan.resident) {
    product.run_resident(pixel0, pixels);
  } else {
    product.run_chunks(pixel0, pixels);
  }
}

template <int PARTS>
void run(const Plan& plan, int64_t row0, int64_t rows, int64_t pixel0, int64_t pixels) {
  const int64_t staged = std::min(plan.block, pixels);
  if (plan.one_tap()) {
    run_task<PARTS, OneTap<PARTS>>(plan, row0, rows, pixel0, pixels, OneTap<PARTS>::scratch_bytes(staged));
  } else {
    run_task<PARTS, ManyTaps<PARTS>>(plan, row0, rows, pixel0, pixels, ManyTaps<PARTS>::scratch_bytes(plan, staged));
  }
}

int64_t divide_up(int64_t n, int64_t by) { return (n + by - 1) / by; }
// Even parts of n, none above `limit`, in steps of two tiles.
int64_t even_parts(int64_t n, int64_t limit) {
  return std::min(round_up(divide_up(n, divide_up(n, limit)), 2 * TILE), round_up(n, TILE));
}

int64_t work_bytes(const Frozen& f, int threads) {
  const int64_t dense = 4 * f.rows * f.cols;
  return dense < LARGE_LAYER_BYTES ? WORK_BYTES : std::clamp(dense / 8 / threads, LEAST_WORK_BYTES, WORK_BYTES);
}

// Largest divisor of n that is at most `limit` and for which ok(divisor), else 1.
template <class Ok>
int64_t divisor(int64_t n, int64_t limit, const Ok& ok) {
  int64_t d = std::clamp<int64_t>(limit, 1, n);
  while (d > 1 && (n % d || !ok(d))) --d;
  return d;
}

// Pixels whose inputs are staged together: whole images or an even part of the lines of one, so that little is staged
// twice and little of it is beside the point; part of a line where lines are long.
int64_t staged_block(const Plan& plan, int64_t pixels, int64_t bytes, int parts, int threads) {
  const Geometry& g = plan.g;
  const int64_t line = g.narrow[2], lines = g.narrow[1], plane = line * lines, image = plane * g.narrow[0];
  const auto fits = [&](int64_t n) {
    return ManyTaps<1>::staged_bytes(g, plan.layer.channels, n) * parts <= bytes && n <= MOST_PIXELS;
  };
  const auto shared = [&](int64_t blocks) { return blocks % threads == 0 || blocks >= 4 * threads; };
  if (fits(image)) {
    return image * divisor(g.batch, g.batch, [&](int64_t n) { return fits(n * image) && shared(g.batch / n); });
  }
  if (!fits(line)) {
    int64_t part = std::min(line, MOST_PIXELS);
    while (part > 2 * TILE && !fits(part)) part -= 2 * TILE;
    return part;
  }
  const int64_t planes = pixels / plane;
  return line * divisor(lines, lines, [&](int64_t n) { return fits(n * line) && shared(planes * (lines / n)); });
}

// Sets rows, pixels, block and resident. A task decodes its codes once and splits its inputs once, so few large ones
// are best, but a few for each thread.
void cut(Plan& plan, int64_t pixels, int parts, int threads) {
  const Layer& layer = plan.layer;
  const int64_t work = work_bytes(plan.f, threads);
  const int64_t fitting = work * 5 / 8 / (plan.f.words * WORD_BYTES) / TILE * TILE;
  // Fewer rows than this, and splitting the inputs again for each block of rows costs more than what residence saves.
  plan.resident = fitting >= std::min(round_up(layer.rows, TILE), std::max<int64_t>(64, MOST_ROWS / layer.taps));
  plan.rows = even_parts(layer.rows, std::min(plan.resident ? fitting : work / 3072, MOST_ROWS));
  if (plan.one_tap()) {
    // Tile loads wait for the stores of what they read: with few words a group is larger, so that most stores are done.
    plan.group = 2 * TILE * std::clamp<int64_t>(chunk_words(parts) / plan.f.words, 1, MOST_GROUP / (2 * TILE));
    // Chunk by chunk, a quarter of the memory is for sums and one for their totals.
    plan.block = plan.resident
                     ? plan.group
                     : even_parts(pixels, std::min(work / (parts == 3 ? 16 : 8) / plan.rows / 32 * 32, MOST_PIXELS));
  } else {
    plan.block = staged_block(plan, pixels, plan.resident ? work * 3 / 8 : work / 2, parts, threads);
  }
  plan.pixels = plan.resident ? round_up(pixels, plan.block) : plan.block;
  const auto tasks = [&] { return layer.groups * divide_up(layer.rows, plan.rows) * divide_up(pixels, plan.pixels); };
  const int64_t wanted = threads == 1 ? 1 : 4 * threads, blocks = divide_up(pixels, plan.block);
  const int64_t least = divide_up(FEW_PIXELS, plan.block);  // blocks of a task
  for (int64_t n = 2; plan.resident && plan.pixels > least * plan.block && tasks() < wanted; ++n) {
    plan.pixels = std::max(divide_up(blocks, n), least) * plan.block;
  }
  while (plan.rows > 2 * TILE && tasks() < threads) plan.rows = round_up(plan.rows / 2, 2 * TILE);
  plan.block = std::min(plan.block, pixels);
  plan.pixels = std::min(plan.pixels, pixels);
}

}  // namespace

bool tiles_serve(const Layer& layer, int64_t pixels) { return layer.rows >= LEAST_ROWS && pixels > 1; }

void convolve_tiles(const Frozen& f, const Geometry& g, const Activations& wide, const Result& result, const Grid& grid,
                    int threads) {
  Plan plan{f, g, Layer(f, g), wide, grid, result, 0, 0, 0, 2 * TILE, false};
  const int parts = parts_of(wide.dtype);
  const int64_t pixels = grid.pixels();
  cut(plan, pixels, parts, threads);
  const int64_t per_group = divide_up(plan.layer.rows, plan.rows), blocks = divide_up(pixels, plan.pixels);
  parallel_for(threads, plan.layer.groups * per_group * blocks, [&](int64_t i) {
    const int64_t start = i / blocks % per_group * plan.rows, pixel0 = i % blocks * plan.pixels;
    const int64_t row0 = i / blocks / per_group * plan.layer.rows + start;
    const int64_t rows = std::min(plan.rows, plan.layer.rows - start), count = std::min(plan.pixels, pixels - pixel0);
    if (parts == 3) return run<3>(plan, row0, rows, pixel0, count);
    if (parts == 2) return run<2>(plan, row0, rows, pixel0, count);
    run<1>(plan, row0, rows, pixel0, count);
  });
}

}  // namespace fk::FK_ISA_NS

#endif
