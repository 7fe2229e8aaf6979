#include "cpu/stored/lines.h"

namespace fk::FK_ISA_NS {

Lines::Lines(int64_t batch, const int64_t* size_of, const int64_t* extra, const int64_t* step, const int64_t* limit) {
  grid.batch = batch;
  for (int d = 0; d < 3; ++d) {
    size[d] = size_of[d];
    grid.size[d] = size_of[d] + extra[d];
    grid.step[d] = step[d];
    grid.limit[d] = limit[d];
  }
  reach = distance(extra);
  const int64_t image = grid.size[0] * grid.size[1] * grid.size[2];
  segments = reach ? batch : 1;
  segment = reach ? image : batch * image;
  used = segment - reach;
}

namespace {

bool at_least_a_vector(const Span* spans, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    if (spans[i].count < VL) return false;
  }
  return true;
}

// As Lines::pack, straight from floats whose channels are contiguous. The last vector of a span may overlap the one
// before it.
void turn(const float* source, int64_t step, const Span* spans, int64_t count, int64_t channels, float* out,
          int64_t ld) {
  const bool whole = count == 1 && spans[0].lane == 0;
  const int64_t zeros = whole ? spans[0].count : 0;
  for (int64_t c = 0; c < channels; ++c) clear(out + c * ld + zeros, ld - zeros);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < spans[i].count; j += VL) {
      const int64_t at = std::min(j, spans[i].count - VL);
      const float* const from = source + spans[i].offset + at * step;
      for (int64_t c = 0; c < channels; c += VL) {
        transpose_tile(from + c, 4 * step, out + c * ld + spans[i].lane + at, 4 * ld);
      }
    }
  }
}

}  // namespace

void Lines::pack(const Activations& source, const Position& shift, int64_t first, int64_t count, int64_t channel,
                 int64_t channels, float* out, int64_t ld, float* stage, Run* runs, Span* spans) const {
  count = std::min(count, grid.pixels() - first);
  const int64_t run_count = find_runs(grid, first, count, runs);
  const int64_t span_count = find_spans(grid, source, shift, runs, run_count, spans);
  if (source.stride[CHANNEL] != 1 || channels < VL) {
    pack_lanes(source, grid, spans, span_count, ld, channel, channels, out, ld);
    return;
  }
  if (source.dtype == FLOAT32 && channels % VL == 0 && at_least_a_vector(spans, span_count)) {
    turn(static_cast<const float*>(source.data) + channel, grid.step[2] * source.stride[SPATIAL + 2], spans, span_count,
         channels, out, ld);
    return;
  }
  const int64_t padded = round_up(count, VL);
  for (int64_t c = 0; c < channels; c += DEPTH) {
    const int64_t some = std::min(DEPTH, channels - c);
    pack_channels(source, grid, spans, span_count, count, channel + c, some, stage);
    // No result reads them, but what memory happens to hold may be slow to multiply.
    for (int64_t i = count; i < padded; ++i) clear(stage + i * LD, some);
    transpose(stage, LD, padded, some / VL * VL, out + c * ld, ld);
    if (some % VL) {
      alignas(64) float rest[VL * VL];
      for (int64_t i = 0; i < padded; i += VL) {
        transpose_tile(stage + i * LD + some / VL * VL, 4 * LD, rest, 4 * VL);
        for (int64_t j = 0; j < some % VL; ++j)
          vf32::load(rest + j * VL).store(out + (c + some / VL * VL + j) * ld + i);
      }
    }
  }
  if (padded < ld) {
    for (int64_t c = 0; c < channels; ++c) clear(out + c * ld + padded, ld - padded);
  }
}

int64_t Lines::result_runs(const Tile& tile, const int64_t* limit, Run* runs) const {
  const int64_t all = find_runs(grid, tile.first, tile.count, runs);
  int64_t found = 0;
  for (int64_t i = 0; i < all; ++i) {
    Run run = runs[i];
    run.count = std::min(run.count, limit[2] - run.q.x[2]);
    if (run.count > 0 && run.q.x[0] < limit[0] && run.q.x[1] < limit[1]) runs[found++] = run;
  }
  return found;
}

void store_sums(const Result& result, const float* sums, int64_t ld, int64_t channel, int64_t channels, int64_t pixels,
                const Run* runs, int64_t run_count, float* turned) {
  if (result.side.stride[CHANNEL] != 1 || channels < VL / 2) {
    result.store_lanes(sums, ld, channel, channels, runs, run_count);
    return;
  }
  for (int64_t c = 0; c < channels; c += VL) {
    transpose(sums + c * ld, ld, VL, pixels, turned, VL);
    result.store_channels(turned, VL, channel + c, std::min<int64_t>(VL, channels - c), runs, run_count);
  }
}

}  // namespace fk::FK_ISA_NS
