#include "cpu/small_batch/vector.h"

#if FK_HAS_TILES
#include "cpu/small_batch/digits.h"
#elif FK_HAS_AVX512
#include "cpu/small_batch/tables.h"
#endif

namespace fk::FK_ISA_NS {

#if FK_HAS_AVX512
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
    Scratch scratch(Sums::SCRATCH_BYTES + input.pixels() * R * 4);
    Sums sums(f, input, scratch);
    float* const out = scratch.take<float>(input.pixels() * R);
    for (int64_t block = task * per_task; block < std::min((task + 1) * per_task, blocks); ++block) {
      const int64_t row0 = block * R, rows = std::min(R, f.rows - row0);
      sums(row0, rows, out);
      result.store_channels(out, R, row0, rows, runs, run_count);
    }
  });
}

}  // namespace
#endif

bool convolve_vector(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                     const Epilogue& epilogue, int threads) {
#if FK_HAS_AVX512
  const Grid grid = narrow_grid(g);
  const int64_t pixels = grid.pixels();
  if (g.groups != 1 || !pixels || pixels > VectorSums::PIXELS || !VectorSums::serves(f)) return false;
  Grid out = grid;
  for (int d = 0; d < 3; ++d) out.step[d] = 1;
  Run runs[VectorSums::PIXELS];
  const int64_t run_count = find_runs(grid, 0, pixels, runs);
  const VectorInput input(f, g, wide, grid, runs, run_count);
  if (!VectorSums::Input::serves(input, f)) return false;
  run_blocks<VectorSums>(f, VectorSums::Input(input, f), Result{narrow, f.scale, epilogue, out, Position{}}, runs,
                         run_count, threads);
  return true;
#else
  (void)f, (void)g, (void)wide, (void)narrow, (void)epilogue, (void)threads;
  return false;
#endif
}

}  // namespace fk::FK_ISA_NS
