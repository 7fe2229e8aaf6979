// Products on tile registers: linear layers and convolutions of more than one pixel, narrow = W wide, and those that
// are transposed, wide = W^T narrow, where every stride is 1.
// Every result is a sum, in order, over chains of words of its row; in a chain one sum takes words in order and the
// parts of the inputs inside a word.
#include "cpu/amx/amx.h"

#if FK_HAS_TILES

#include "cpu/amx/columns.h"
#include "cpu/amx/product.h"
#include "cpu/conv/window.h"
#include "cpu/core/parallel.h"

namespace fk::FK_LEVEL_NS {

namespace {

// Working memory of a task: the second-level cache, 2 MB wherever there are tiles, should hold it. Where a layer is
// large enough for memory to matter, codes and sums of all threads together take an eighth of its dense weight.
constexpr int64_t WORK_BYTES = 2 << 20, LEAST_WORK_BYTES = 1 << 19, LARGE_LAYER_BYTES = 8 << 20;
// Of split inputs, where codes are decoded chunk by chunk: a block of few pixels would decode them too often.
constexpr int64_t LEAST_REGION_BYTES = 3 << 18;
constexpr int64_t MOST_ROWS = 512, MOST_PIXELS = 512, FEW_PIXELS = 128, LEAST_ROWS = 8;
// Rows times channels of a group under many taps: with fewer, tiles of a transposed product are mostly padding.
constexpr int64_t LEAST_CODES = 128;
constexpr int64_t MOST_STAGED = 1 << 18;  // input pixels under the smallest block

// A task: rows [start, start + rows) of a group, pixels [pixel0, pixel0 + pixels).
struct TileTask {
  int64_t group, start, rows, pixel0, pixels;
};

template <int PARTS, class Source>
void multiply_task(const TilePlan& plan, const TileTask& t, int64_t block, Source& source, TileCodes& codes,
                   Scratch& scratch) {
  Product<PARTS, Source> product(plan, t.group * plan.layer.rows + t.start, t.rows, block, source, codes, scratch);
  if (plan.resident) {
    product.run_resident(t.pixel0, t.pixels);
  } else {
    product.run_chunks(t.pixel0, t.pixels);
  }
}

template <int PARTS, class Source>
void run_task(const TilePlan& plan, const TileTask& t, int64_t source_bytes) {
  const int64_t staged = std::min(plan.block, t.pixels), block = plan.resident ? plan.group : t.pixels;
  const int64_t code_bytes =
      plan.transposed ? ColumnTileCodes::scratch_bytes(plan.f, t.rows) : RowTileCodes::scratch_bytes(plan.f, t.rows);
  Scratch scratch(source_bytes + code_bytes + Product<PARTS, Source>::scratch_bytes(plan, t.rows, block));
  Source source(plan, staged, scratch);
  if (plan.transposed) {
    const ColumnBlock columns{t.group * plan.layer.channels, plan.layer.channels, plan.layer.rows, t.start, t.rows};
    ColumnTileCodes codes(plan.f, columns, scratch);
    multiply_task<PARTS>(plan, t, block, source, codes, scratch);
  } else {
    RowTileCodes codes(plan.f, t.group * plan.layer.rows + t.start, t.rows, scratch);
    multiply_task<PARTS>(plan, t, block, source, codes, scratch);
  }
}

template <int PARTS>
void run(const TilePlan& plan, const TileTask& t) {
  const int64_t staged = std::min(plan.block, t.pixels);
  if (plan.one_tap()) {
    run_task<PARTS, OneTap<PARTS>>(plan, t, OneTap<PARTS>::scratch_bytes(staged));
  } else {
    run_task<PARTS, ManyTaps<PARTS>>(plan, t, ManyTaps<PARTS>::scratch_bytes(plan, staged));
  }
}

// Even parts of n, none above `limit`, in steps of two tiles.
int64_t even_parts(int64_t n, int64_t limit) {
  return std::min(round_up(divide_up(n, divide_up(n, limit)), 2 * TILE), round_up(n, TILE));
}

int64_t work_bytes(const Frozen& f, int threads) {
  const int64_t dense = 4 * f.rows * f.cols;
  return dense < LARGE_LAYER_BYTES ? WORK_BYTES : std::clamp(dense / 8 / threads, LEAST_WORK_BYTES, WORK_BYTES);
}

// Largest divisor of n for which ok(divisor), else 1.
template <class Ok>
int64_t divisor(int64_t n, const Ok& ok) {
  int64_t d = n;
  while (d > 1 && (n % d || !ok(d))) --d;
  return d;
}

// Pixels whose inputs are staged together: whole images or an even part of the lines of one, so that little is staged
// twice and little of it is beside the point; part of a line where lines are long.
int64_t staged_block(const TilePlan& plan, int64_t pixels, int64_t bytes, int parts, int threads) {
  const Geometry& g = plan.g;
  const int64_t line = g.narrow[2], lines = g.narrow[1], plane = line * lines, image = plane * g.narrow[0];
  const auto fits = [&](int64_t n) {
    return ManyTaps<1>::staged_bytes(g, plan.width(), n) * parts <= bytes && n <= MOST_PIXELS;
  };
  const auto shared = [&](int64_t blocks) { return blocks % threads == 0 || blocks >= 4 * threads; };
  if (fits(image)) {
    return image * divisor(g.batch, [&](int64_t n) { return fits(n * image) && shared(g.batch / n); });
  }
  if (!fits(line)) {
    int64_t part = std::min(line, MOST_PIXELS);
    while (part > 2 * TILE && !fits(part)) part -= 2 * TILE;
    return part;
  }
  const int64_t planes = pixels / plane;
  return line * divisor(lines, [&](int64_t n) { return fits(n * line) && shared(planes * (lines / n)); });
}

// Sets rows, pixels, block and resident. A task decodes its codes once and splits its inputs once, so few large ones
// are best, but a few for each thread.
void cut(TilePlan& plan, int64_t pixels, int parts, int threads) {
  const Layer& layer = plan.layer;
  const int64_t work = work_bytes(plan.f, threads);
  const int64_t fitting = work * 5 / 8 / (plan.words * WORD_BYTES) / TILE * TILE;
  // Fewer rows than this, and splitting the inputs again for each block of rows costs more than what residence saves.
  const int64_t all = round_up(layer.rows, TILE), part = std::min(all, std::max<int64_t>(64, MOST_ROWS / layer.taps));
  // Part of the channels under many taps is read in short pieces, which costs a transposed product more than that.
  plan.resident = fitting >= (plan.transposed && layer.taps > 1 ? all : part);
  plan.rows = even_parts(layer.rows, std::min(plan.resident ? fitting : work / 3072, MOST_ROWS));
  if (plan.one_tap()) {
    // Tile loads wait for the stores of what they read: with few words a group is larger, so that most stores are done.
    plan.group = 2 * TILE * std::clamp<int64_t>(chunk_words(parts) / plan.words, 1, MOST_GROUP / (2 * TILE));
    // Chunk by chunk, a quarter of the memory is for sums and one for their totals.
    plan.block = plan.resident
                     ? plan.group
                     : even_parts(pixels, std::min(work / (parts == 3 ? 16 : 8) / plan.rows / 32 * 32, MOST_PIXELS));
  } else {
    plan.block = staged_block(plan, pixels, plan.resident ? work * 3 / 8 : LEAST_REGION_BYTES, parts, threads);
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

void run_plan(TilePlan& plan, int threads) {
  const int parts = parts_of(plan.source.dtype);
  const int64_t pixels = plan.grid.pixels();
  cut(plan, pixels, parts, threads);
  const int64_t per_group = divide_up(plan.layer.rows, plan.rows), blocks = divide_up(pixels, plan.pixels);
  parallel_for(threads, plan.layer.groups * per_group * blocks, [&](int64_t i) {
    const int64_t start = i / blocks % per_group * plan.rows, pixel0 = i % blocks * plan.pixels;
    const TileTask task{i / blocks / per_group, start, std::min(plan.rows, plan.layer.rows - start), pixel0,
                        std::min(plan.pixels, pixels - pixel0)};
    if (!HAS_HALVES || parts == 3) return run<3>(plan, task);
    if constexpr (HAS_HALVES) {
      if (parts == 2) return run<2>(plan, task);
      run<1>(plan, task);
    }
  });
}

bool staging_fits(const Call& c) {
  return c.layer.taps == 1 || window_fits(c.g, 1, 2 * TILE * c.g.stride[2], MOST_STAGED);
}

}  // namespace

bool tiles_serve(const Call& c) { return c.layer.rows >= LEAST_ROWS && c.pixels > 1 && staging_fits(c); }

void convolve_tiles(const Call& call) {
  const Grid grid = narrow_grid(call.g);
  const Result result = narrow_result(call);
  TilePlan plan{call.f, call.g, call.layer, false, call.wide, grid, result, call.f.words, 0, 0, 0, 2 * TILE, false};
  run_plan(plan, call.threads);
}

bool transposed_tiles_serve(const Call& c) {
  const Layer& layer = c.layer;
  const bool steps = c.g.stride[0] == 1 && c.g.stride[1] == 1 && c.g.stride[2] == 1;
  const bool full =
      layer.taps == 1 ? std::min(layer.rows, layer.channels) >= LEAST_ROWS : layer.rows * layer.channels >= LEAST_CODES;
  return steps && full && c.pixels > 1 && staging_fits(c);
}

void convolve_transposed_tiles(const Call& call) {
  const Frozen& f = call.f;
  const Geometry& g = call.g;
  Geometry flipped = g;
  for (int d = 0; d < 3; ++d) {
    flipped.wide[d] = g.narrow[d];
    flipped.narrow[d] = g.wide[d];
    flipped.padding[d] = (g.taps[d] - 1) * g.dilation[d] - g.padding[d];
  }
  Layer layer = call.layer;
  std::swap(layer.rows, layer.channels);
  const Grid grid = narrow_grid(flipped);
  const Result result{call.wide, f.scale, call.epilogue, grid, Position{}};
  const int64_t words = layer.taps * divide_up(layer.channels, 32);
  TilePlan plan{f, flipped, layer, true, call.narrow, grid, result, words, 0, 0, 0, 2 * TILE, false};
  run_plan(plan, call.threads);
}

}  // namespace fk::FK_LEVEL_NS

#endif
