// Which kernel does a product: the first of the operation's table that serves it. What a kernel serves may depend on
// shapes, strides, dtype, code and values of the inputs, never on residency or threads, for its bits may be its own.
#include "cpu/conv/flipped.h"
#include "cpu/conv/kernels.h"
#include "cpu/conv/turned.h"
#include "cpu/depthwise/depthwise.h"
#include "cpu/fma/fma.h"
#include "cpu/lookup/integer_lookup.h"
#include "cpu/lookup/pack.h"
#include "cpu/one_tap/one_tap.h"
#include "cpu/pixel_tables/pixel_tables.h"
#include "cpu/scores/scores.h"
#include "cpu/stored/stored.h"

#if FK_HAS_AVX2
#include "cpu/small_batch/small_batch.h"
#endif
#if FK_HAS_TILES
#include "cpu/amx/amx.h"
#endif

namespace fk::FK_TABLE_NS {

namespace {

template <class Call>
struct Kernel {
  KernelInfo info;
  bool (*serves)(const Call&);
  bool (*run)(const Call&);  // false where values of the inputs need the next kernel
};

template <auto kernel, class Call>
bool always(const Call& c) {
  kernel(c);
  return true;
}
template <auto kernel>
bool with_indices(const Call& c) {
#if FK_USES_LOOKUP
  kernel(c, pack_indices, FK_HAS_INTEGER_PIPES);  // stores past the caches were measured there alone
#endif
  return true;
}
template <class Call>
bool any(const Call&) {
  return true;
}

// Stored weights come first, and no call of one goes further: the other kernels draw their weights.
constexpr Kernel<Call> CONVOLVE_KERNELS[] = {
    {{"stored_vector", STORED_VECTOR_SERVES}, stored_vector_serves, always<convolve_stored_vector, Call>},
    {{"stored", "stored weights"}, is_stored, always<convolve_stored, Call>},
#if FK_USES_INTEGER_LOOKUP
    {{"integer_lookup",
      "sign and constant codes, 5 pixels; of one tap at least 64 rows per group and 32 inputs, channels neighbours in "
      "memory, 8 pixels above 2048 inputs; of more taps 33 rows and 8 inputs, enough reads of each table"},
     integer_lookup_serves,
     with_indices<convolve_integer_lookup>},
#endif
#if FK_HAS_AVX2
    {{"small_batch", SMALL_BATCH_SERVES}, small_batch_serves, convolve_small_batch},
#endif
    {{"depthwise", "one channel per group, more than one group, no vast dilation"},
     depthwise_serves,
     always<depthwise, Call>},
#if FK_HAS_TILES
    {{"amx", "at least 8 rows per group, more than one pixel, no vast dilation"},
     tiles_serve,
     always<convolve_tiles, Call>},
#endif
#if FK_USES_ONE_TAP
    {{"one_tap",
      "one tap, at least 128 pixels whose channels are neighbours in memory, at most 4 MB of dense weight; sign and "
      "constant codes of few rows or few channels"},
     one_tap_serves,
     always<convolve_one_tap, Call>},
#endif
#if FK_USES_PIXEL_TABLES
    {{"pixel_tables",
      "sign and constant codes, at least 16 rows per group and a vector of pixels, enough reads of each table"},
     pixel_tables_serve,
     always<convolve_pixel_tables, Call>},
#endif
#if FK_USES_LOOKUP
    {{"lookup", "sign and constant codes, at least 16 rows per group and 5 pixels, enough reads of each table"},
     lookup_serves,
     with_indices<convolve_lookup>},
#endif
    {{"fma", "everything else"}, any<Call>, always<convolve_panels, Call>},
};

template <class Call, size_t N>
void run(const Kernel<Call> (&kernels)[N], const Call& call) {
  for (const Kernel<Call>& kernel : kernels) {
    if (kernel.serves(call) && kernel.run(call)) return;
  }
}

// libfrozen has no products towards the wide side and no gradients.
#ifndef FK_LIBRARY
// These kernels are so much faster that a transposed product turns its weight for them.
bool fast_kernel_serves([[maybe_unused]] const Call& c) {
#if FK_USES_INTEGER_LOOKUP
  if (integer_lookup_serves(c)) return true;
#endif
#if FK_USES_ONE_TAP
  if (one_tap_serves(c)) return true;
#endif
#if FK_USES_PIXEL_TABLES
  if (pixel_tables_serve(c)) return true;
#endif
#if FK_USES_LOOKUP
  return lookup_serves(c);
#else
  return false;
#endif
}

bool flipped_serves(const Call& c) {
  constexpr bool has_kernel = FK_USES_ONE_TAP || FK_USES_PIXEL_TABLES || FK_USES_LOOKUP;
  if (!has_kernel || (c.f.code != SIGN_CODE && c.f.code != CONSTANT_CODE) || c.pixels == 0) return false;
  // With many strides most of the convolutions have few taps or none.
  if (c.g.stride[0] * c.g.stride[1] * c.g.stride[2] > c.layer.taps) return false;
  const std::vector<Flipped> all = flipped(c);
  size_t most = 0;
  for (const Flipped& one : all) {
    if (one.taps.empty()) return false;
    most = std::max(most, one.taps.size());
  }
  for (const Flipped& one : all) {
    const Frozen turned = turned_shape(c.f, c.layer, static_cast<int64_t>(one.taps.size()));
    if (one.taps.size() == most) return fast_kernel_serves(one.call(c, turned));
  }
  return false;
}

void convolve_flipped(const Call& c) {
  for (const Flipped& one : flipped(c)) {
    const TurnedWeight weight(c.f, c.layer, one.taps, c.threads);
    run(CONVOLVE_KERNELS, one.call(c, weight.frozen()));
  }
}

constexpr Kernel<Call> TRANSPOSED_KERNELS[] = {
    {{"stored_scatter", "stored weights: one tap, strides of 1"},
     stored_scatter_serves,
     always<convolve_transposed_stored_scatter, Call>},
    {{"stored", "stored weights"}, is_stored, always<convolve_transposed_stored, Call>},
    {{"depthwise", "one row and one channel per group, more than one group, no vast dilation"},
     depthwise_transposed_serves,
     always<depthwise_transposed, Call>},
#if FK_HAS_TILES
    {{"amx", "strides of 1, more than one pixel, enough rows and channels per group"},
     transposed_tiles_serve,
     always<convolve_transposed_tiles, Call>},
#endif
    {{"flipped",
      "sign and constant codes, where the convolution with flipped taps has a kernel of one tap or by tables"},
     flipped_serves,
     always<convolve_flipped, Call>},
    {{"fma", "everything else"}, any<Call>, always<convolve_transposed_panels, Call>},
};

constexpr Kernel<ScoreCall> SCORE_KERNELS[] = {
#if FK_HAS_TILES
    {{"amx", "at least 96 rows per group (16 where both sides are bfloat16), 64 pixels and 32 columns"},
     score_tiles_serve,
     always<score_gradient_tiles, ScoreCall>},
#endif
    {{"along_pixels", "few rows per group: sums along the pixels, a quarter of a vector of rows at most"},
     score_along_pixels_serves,
     always<score_gradient_along_pixels, ScoreCall>},
    {{"fma", "everything else"}, any<ScoreCall>, always<score_gradient_panels, ScoreCall>},
};
#endif

// Both sides with their pixels merged.
struct Sides {
  Geometry g;
  Activations wide, narrow;

  Sides(const Geometry& geometry, const Activations& wide_side, const Activations& narrow_side)
      : g(geometry), wide(wide_side), narrow(narrow_side) {
    merge_pixels(g, wide, narrow);
  }
  Call call(const Frozen& f, const Epilogue& epilogue, bool wide_result, int threads) const {
    const int64_t* const size = wide_result ? g.wide : g.narrow;
    return {f, g, wide, narrow, epilogue, threads, Layer(f, g), g.batch * size[0] * size[1] * size[2]};
  }
};

void convolve(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
              const Epilogue& epilogue, int threads) {
  const Sides sides(g, wide, narrow);
  const Call call = sides.call(f, epilogue, false, threads);
  if (call.pixels && f.rows) run(CONVOLVE_KERNELS, call);
}

#ifndef FK_LIBRARY

template <class Call, size_t N>
const char* first_of(const Kernel<Call> (&kernels)[N], const Call& call) {
  const Kernel<Call>* kernel = kernels;
  while (!kernel->serves(call)) ++kernel;
  return kernel->info.name;
}

template <class Call, size_t N>
std::vector<KernelInfo> infos(const Kernel<Call> (&kernels)[N]) {
  std::vector<KernelInfo> all;
  for (const Kernel<Call>& kernel : kernels) all.push_back(kernel.info);
  return all;
}

void convolve_transposed(const Frozen& f, const Geometry& g, const Activations& narrow, const Activations& wide,
                         const Epilogue& epilogue, int threads) {
  const Sides sides(g, wide, narrow);
  const Call call = sides.call(f, epilogue, true, threads);
  if (call.pixels && f.cols) run(TRANSPOSED_KERNELS, call);
}

void score_gradient(const Frozen& f, const Geometry& g, const Activations& wide, const Activations& narrow,
                    const void* scores, void* out, int scores_dtype, int threads) {
  const Sides sides(g, wide, narrow);
  if (!f.rows || !f.cols) return;
  run(SCORE_KERNELS, ScoreCall{f, sides.g, sides.wide, sides.narrow, Layer(f, g), scores, out, scores_dtype, threads});
}

std::vector<KernelInfo> list(Operation operation) {
  if (operation == CONVOLVE) return infos(CONVOLVE_KERNELS);
  return operation == CONVOLVE_TRANSPOSED ? infos(TRANSPOSED_KERNELS) : infos(SCORE_KERNELS);
}

const char* choose(Operation operation, const Frozen& f, const Geometry& g, const Activations& wide,
                   const Activations& narrow) {
  const Sides sides(g, wide, narrow);
  if (operation == SCORE_GRADIENT) {
    return first_of(SCORE_KERNELS,
                    ScoreCall{f, sides.g, sides.wide, sides.narrow, Layer(f, g), nullptr, nullptr, FLOAT32, 1});
  }
  const Call call = sides.call(f, Epilogue{}, operation == CONVOLVE_TRANSPOSED, 1);
  return operation == CONVOLVE ? first_of(CONVOLVE_KERNELS, call) : first_of(TRANSPOSED_KERNELS, call);
}

#endif

}  // namespace

extern const ConvKernels conv_kernels;
#ifdef FK_LIBRARY
const ConvKernels conv_kernels = {convolve, nullptr, nullptr, nullptr, nullptr};
#else
const ConvKernels conv_kernels = {convolve, convolve_transposed, score_gradient, list, choose};
#endif

}  // namespace fk::FK_TABLE_NS
