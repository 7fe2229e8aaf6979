#include "cpu/small_batch/small_batch.h"

#include "cpu/core/parallel.h"

#if FK_HAS_AVX2

#include "cpu/small_batch/integers.h"
#if FK_DOTS
#include "cpu/small_batch/dots.h"
#endif
#if FK_HAS_TILES
#include "cpu/small_batch/digits.h"
#else
#include "cpu/small_batch/tables.h"
#endif

namespace fk::FK_LEVEL_NS {

namespace {

// Calls sums(row0, rows, out) for all rows, ROWS at a time, and stores what comes out.
template <class Sums, class Input>
void run_blocks(const Frozen& f, const Input& input, const Result& result, const Run* runs, int64_t run_count,
                int threads) {
  constexpr int64_t R = Sums::ROWS;
  const int64_t blocks = divide_up(f.rows, R);
  // Long enough that a thread reads planes in order, short enough that none waits for another at the end.
  const int64_t per_task = std::clamp<int64_t>(blocks / (8 * threads), 1, 256 / R);
  parallel_for(threads, divide_up(blocks, per_task), [&](int64_t task) {
    Scratch scratch(Sums::scratch_bytes(f) + input.pixels() * R * 4);
    Sums sums(f, input, scratch);
    float* const out = scratch.take<float>(input.pixels() * R);
    for (int64_t block = task * per_task; block < std::min((task + 1) * per_task, blocks); ++block) {
      const int64_t row0 = block * R, rows = std::min(R, f.rows - row0);
      sums(row0, rows, out);
      result.store_channels(out, R, row0, rows, runs, run_count);
    }
  });
}

template <class Sums>
bool serves(const Call& c) {
  return c.pixels <= Sums::PIXELS && Sums::serves(c.f);
}

template <class Sums>
bool run(const Call& c) {
  const Grid grid = narrow_grid(c.g);
  Run runs[Sums::PIXELS];
  const int64_t run_count = find_runs(grid, 0, c.pixels, runs);
  const VectorInput input(c.f, c.g, c.wide, grid, runs, run_count);
  if (!Sums::Input::serves(input, c.f)) return false;
  run_blocks<Sums>(c.f, typename Sums::Input(input, c.f), narrow_result(c), runs, run_count, c.threads);
  return true;
}

#if FK_DOTS
bool dots_serve(const Call& c) {
  return serves<DotSums>(c) && dots_detail::pays(c.f, c.pixels, dots_detail::fewest_digits(c.f));
}
#endif

}  // namespace

bool small_batch_serves(const Call& c) {
#if FK_DOTS
  if (c.layer.groups == 1 && dots_serve(c)) return true;
#endif
  return c.layer.groups == 1 && (serves<TernarySums>(c) || serves<IntegerSums>(c));
}

bool convolve_small_batch(const Call& c) {
#if FK_DOTS
  if (dots_serve(c) && run<DotSums>(c)) return true;
#endif
  if (serves<TernarySums>(c)) return run<TernarySums>(c);
  return serves<IntegerSums>(c) && run<IntegerSums>(c);
}

}  // namespace fk::FK_LEVEL_NS

#endif
