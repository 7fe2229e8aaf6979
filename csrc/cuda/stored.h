// Linear layers of few pixels, of a stored weight whose kept values are packed.
#pragma once
#include "cuda/stored_forward.h"
#include "cuda/stored_transposed.h"

namespace fk::cuda {

inline const char* stored_refuses(const Product& p) {
  if (p.code != STORED_CODE) return "a code whose weights are drawn";
  if (!p.keep || !p.values || !p.offsets) return "a stored weight that is not packed";
  if (reinterpret_cast<uintptr_t>(p.values) % 16) return "values that are not aligned to 16 bytes";
  if (p.pixels > 8) return "more than 8 pixels";
  if (p.dtype == INT8) return "int8 inputs";
  if (p.rows > 1 << 30) return "more than 2^30 rows";
  return nullptr;
}

// The pixels of a block; more are more blocks.
inline int stored_pixels(const Product& p) {
  const bool eight = p.pixels > 4 && p.dtype != FLOAT32 && !p.transposed;
  return eight ? 8 : p.pixels < 3 ? p.pixels : 4;
}

inline Plan plan_stored_transposed(const Product& p, int multiprocessors) {
  const int pixels = stored_pixels(p), groups = divide_up(p.pixels, pixels), warps = transposed_warps(pixels);
  // below two words values are read one by one
  int span = 32;
  while (span > 2 && divide_up(p.words, span) * groups < multiprocessors) span /= 2;
  return {{divide_up(p.words, span), groups}, 32 * warps, warps * pixels * STORED_SUM_BYTES, span};
}

// How many warps share a row, as a power of two: so that none waits long for the others' last rows. A part of a row
// costs about two chunks beside its own.
inline int stored_share(const StoredSplit& even, int pixels) {
  const int warps = stored_warps(pixels);
  StoredSplit best = even;
  int least = 0;
  for (int share = 0; warps % (1 << share) == 0 && even.rows << share <= STORED_SUMS / pixels; ++share) {
    StoredSplit split = even;
    split.share = share;
    const int cost = divide_up(split.rows, warps >> share) * (split.part_chunks() + 2);
    if (share == 0 || cost < least) best = split, least = cost;
  }
  return best.share;
}

// One block a multiprocessor, or whole rounds of them.
inline Plan plan_stored_forward(const Product& p, int multiprocessors) {
  const int pixels = stored_pixels(p), groups = divide_up(p.pixels, pixels),
            column_bytes = pixels < 8 ? 4 * pixels : 16;
  const int fair = divide_up(p.rows, multiprocessors > groups ? multiprocessors / groups : 1);
  const int rows = divide_up(fair, divide_up(fair, STORED_SUMS / 8));
  StoredSplit split = stored_split(p.words, column_bytes, rows, 0);
  split.share = stored_share(split, pixels);
  const int shared = split.piece_chunks * CHUNK_COLUMNS * column_bytes + (rows << split.share) * pixels * 4;
  return {{divide_up(p.rows, rows), groups}, 32 * stored_warps(pixels), shared, rows << 3 | split.share};
}

inline Plan plan_stored(const Product& p, int multiprocessors) {
  return p.transposed ? plan_stored_transposed(p, multiprocessors) : plan_stored_forward(p, multiprocessors);
}

template <int VALUES, class Visit>
auto with_stored_values(const Product& p, const Visit& visit) {
  const int pixels = stored_pixels(p);
  if (p.transposed) {
    return pixels == 1   ? visit(stored_transposed<VALUES, 1>)
           : pixels == 2 ? visit(stored_transposed<VALUES, 2>)
                         : visit(stored_transposed<VALUES, 4>);
  }
  return pixels == 1           ? visit(stored_forward<VALUES, FLOAT32, 1>)
         : pixels == 2         ? visit(stored_forward<VALUES, FLOAT32, 2>)
         : pixels == 4         ? visit(stored_forward<VALUES, FLOAT32, 4>)
         : p.dtype == BFLOAT16 ? visit(stored_forward<VALUES, BFLOAT16, 8>)
                               : visit(stored_forward<VALUES, FLOAT16, 8>);
}

template <class Visit>
auto with_stored(const Product& p, const Visit& visit) {
  return p.value_dtype == FLOAT32    ? with_stored_values<FLOAT32>(p, visit)
         : p.value_dtype == BFLOAT16 ? with_stored_values<BFLOAT16>(p, visit)
         : p.value_dtype == FLOAT16  ? with_stored_values<FLOAT16>(p, visit)
                                     : with_stored_values<INT8>(p, visit);
}

template <int VALUES, class Visit>
void each_stored_values(const Visit& visit) {
  visit(stored_forward<VALUES, FLOAT32, 1>), visit(stored_forward<VALUES, FLOAT32, 2>);
  visit(stored_forward<VALUES, FLOAT32, 4>);
  visit(stored_forward<VALUES, BFLOAT16, 8>), visit(stored_forward<VALUES, FLOAT16, 8>);
  visit(stored_transposed<VALUES, 1>), visit(stored_transposed<VALUES, 2>), visit(stored_transposed<VALUES, 4>);
}

template <class Visit>
void each_stored(const Visit& visit) {
  each_stored_values<FLOAT32>(visit);
  each_stored_values<BFLOAT16>(visit);
  each_stored_values<FLOAT16>(visit);
  each_stored_values<INT8>(visit);
}

}  // namespace fk::cuda
