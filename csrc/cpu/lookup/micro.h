// Tables of the signed sums of three inputs, and the products made from them: a register tile of rows by pixels whose
// sums grow by one table entry per three weights. Entries and sums are floats, or integers of one unit.
#pragma once
#include <array>
#include <utility>

#include "cpu/lookup/lookup.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

#define FK_LAMBDA __attribute__((always_inline))

constexpr int64_t TRIPLE = 3;        // weights per table entry
constexpr int64_t TABLE = VL;        // entries of a table: v = 1 .. 13 in place v
constexpr int64_t QUAD = 4;          // indices of a row that are neighbours in memory
constexpr int TILE_ROW_VECTORS = 4;  // with TILE_PIXELS: 20 sums, 4 indices, a table and its negative, 4 entries
constexpr int TILE_PIXELS = 5;

// The negatives are not stored: one operation makes them where a table is read.
struct FloatTables {
  static constexpr bool INTEGERS = false;

  FK_INLINE static void store(vf32 sums, float* table) { sums.store(table); }
  FK_INLINE static __m512i negative(__m512i low) {
    return _mm512_xor_si512(low, _mm512_castps_si512(_mm512_set1_ps(-0.0f)));
  }
  FK_INLINE static __m512i look_up(__m512i low, __m512i index, __m512i high) {
    asm volatile("vpermt2ps %2, %1, %0" : "+v"(low) : "v"(index), "v"(high));
    return low;
  }
  // The same sum either way. AMD multiplies on pipes that neither look up nor add, so half the additions go there.
  FK_INLINE static __m512i add(__m512i sum, __m512i entry, bool by_product) {
    if (by_product) {
      asm volatile("vfmadd231ps %1, %2, %0" : "+v"(sum) : "v"(entry), "v"(_mm512_set1_ps(1.0f)));
    } else {
      asm volatile("vaddps %1, %0, %0" : "+v"(sum) : "v"(entry));
    }
    return sum;
  }
  FK_INLINE static vf32 joined(__m512i sum, float, const float* before) {
    const vf32 own{_mm512_castsi512_ps(sum)};
    return before ? vf32::load(before) + own : own;
  }
};

// Entries and sums in one unit. AMD from Zen 4 on looks up and adds integers on pipes of their own, where floats share
// some.
struct IntegerTables {
  static constexpr bool INTEGERS = true;

  FK_INLINE static void store(vf32 sums, float* table) { _mm512_store_si512(table, _mm512_cvtps_epi32(sums.v)); }
  FK_INLINE static __m512i negative(__m512i low) { return _mm512_sub_epi32(_mm512_setzero_si512(), low); }
  FK_INLINE static __m512i look_up(__m512i low, __m512i index, __m512i high) {
    asm volatile("vpermt2d %2, %1, %0" : "+v"(low) : "v"(index), "v"(high));
    return low;
  }
  FK_INLINE static __m512i add(__m512i sum, __m512i entry, bool) {
    asm volatile("vpaddd %1, %0, %0" : "+v"(sum) : "v"(entry));
    return sum;
  }
  FK_INLINE static vf32 joined(__m512i sum, float unit, const float* before) {
    const vf32 own = to_float(vu32{sum});
    return before ? fma(own, vf32::set(unit), vf32::load(before)) : own * vf32::set(unit);
  }
};

// Entry v is the sum of digit i of v times input i, digits balanced: v = d0 + 3 d1 + 9 d2, each -1, 0 or 1. A digit of
// zero is a factor too: infinity and NaN reach the entries that a dense product would carry them to.
template <class Tables>
class TableBuilder {
 public:
  // Inputs are multiplied by `factor` first.
  explicit TableBuilder(float factor = 1.0f) {
    static constexpr auto digits = balanced_digits();
    for (int i = 0; i < TRIPLE; ++i) digit_[i] = vf32::load(digits[i].data()) * vf32::set(factor);
  }

  // Tables of `channels` inputs `step` apart, filled up with zeros.
  template <class Step>
  FK_INLINE void build(const float* inputs, Step step, int64_t channels, float* tables) const {
    int64_t c = 0;
    for (; c + TRIPLE <= channels; c += TRIPLE, inputs += TRIPLE * step, tables += TABLE) {
      build_one(inputs[0], inputs[step], inputs[2 * step], tables);
    }
    if (c < channels) build_one(inputs[0], c + 1 < channels ? inputs[step] : 0.0f, 0.0f, tables);
  }

 private:
  static constexpr std::array<std::array<float, VL>, TRIPLE> balanced_digits() {
    std::array<std::array<float, VL>, TRIPLE> digits{};
    for (size_t v = 1; v <= 13; ++v) {
      int rest = static_cast<int>(v);
      for (size_t i = 0; i < TRIPLE; ++i) {
        const int digit = (rest + 1) % 3 - 1;
        digits[i][v] = static_cast<float>(digit);
        rest = (rest - digit) / 3;
      }
    }
    return digits;
  }
  FK_INLINE void build_one(float x0, float x1, float x2, float* table) const {
    Tables::store(fma(digit_[2], vf32::set(x2), fma(digit_[1], vf32::set(x1), digit_[0] * vf32::set(x0))), table);
  }

  vf32 digit_[TRIPLE];
};

// The tables that one pixel's sums read, in order: `run` neighbours from each of `count` offsets on.
struct Path {
  const int64_t* offsets;  // floats
  int64_t count, run;
};

// Where sums become results as they leave the registers: x * factor + bias of each row, `floor` at least.
struct Output {
  const float *factors, *biases;
  float floor;
  int64_t rows;            // the rest of a block
  bool past_caches;        // whole lines, straight to memory
  float* to[TILE_PIXELS];  // the first row of each pixel

  void skip_rows(int64_t count) {
    factors += count, biases += count, rows -= count;
    for (float*& pixel : to) pixel += count;
  }
};

// As Finish and store_some do, without their branches: in every register tile those are 12 KB of code.
template <int P>
FK_INLINE void store_results(const Output& output, int r, const vf32 (&sums)[P]) {
  const int64_t rows = output.rows - r * VL;
  const __mmask16 mask = rows >= VL ? 0xFFFF : static_cast<__mmask16>((1u << rows) - 1u);
  const vf32 factor = vf32::load(output.factors + r * VL), bias = vf32::load(output.biases + r * VL);
#pragma GCC unroll 5
  for (int p = 0; p < P; ++p) {
    const vf32 x = sums[p] * factor + bias;
    // Of a NaN: the second operand.
    const __m512 y = _mm512_max_ps(_mm512_set1_ps(output.floor), x.v);
    if (output.past_caches) {
      _mm512_stream_ps(output.to[p] + r * VL, y);
    } else {
      _mm512_mask_storeu_ps(output.to[p] + r * VL, mask, y);
    }
  }
}

// fn of 0 .. N - 1, each a constant: arrays that are indexed by no other number stay in registers.
template <class Fn, int... I>
FK_INLINE void for_each_of(std::integer_sequence<int, I...>, const Fn& fn) {
  (fn(std::integral_constant<int, I>()), ...);
}
template <int N, class Fn>
FK_INLINE void for_each(const Fn& fn) {
  for_each_of(std::make_integer_sequence<int, N>(), fn);
}

// One table for each of P pixels, one entry for each of R vectors of rows. The order of lookups and additions is the
// program's, since a compiler that reorders them runs out of registers.
template <class Tables, int R, int P>
FK_INLINE void add_entries(const uint8_t* indices, const float* const* tables, int64_t at, __m512i (&sum)[P][R]) {
  __m512i index[R];
  for_each<R>([&](auto r) FK_LAMBDA { index[r] = _mm512_loadu_si512(indices + r * 64); });
  for_each<P>([&](auto p) FK_LAMBDA {
    const __m512i low = _mm512_load_si512(tables[p] + at), high = Tables::negative(low);
    __m512i entry[R];
    for_each<R>([&](auto r) FK_LAMBDA { entry[r] = Tables::look_up(low, index[r], high); });
    for_each<R>([&](auto r) FK_LAMBDA { sum[p][r] = Tables::add(sum[p][r], entry[r], (p + r) % 2); });
  });
}

// Sums [pixel][row] of R vectors of rows and P pixels, or results of them where there is an output; `units` are those
// of each pixel's integers. Indices: R vectors per quad, row by row the bytes of four tables; an entry's index is the
// low five bits of a lane, so the next byte is one unaligned load away and nothing is shifted.
template <class Tables, int R, int P>
void look_up(const uint8_t* indices, const Path& path, const float* const* pixel_tables, const float* units, bool add,
             float* sums, int64_t ld, const Output* output) {
  const float* tables[P];
  __m512i sum[P][R];
  for_each<P>([&](auto p) FK_LAMBDA {
    tables[p] = pixel_tables[p];
    for_each<R>([&](auto r) FK_LAMBDA { sum[p][r] = _mm512_setzero_si512(); });
  });
  for (int64_t i = 0; i < path.count; ++i) {
    int64_t at = path.offsets[i];
    for (int64_t left = path.run; left > 0; left -= QUAD, indices += R * 64) {
      const int64_t count = std::min(left, QUAD);
      for (int64_t b = 0; b < count; ++b, at += TABLE) add_entries<Tables, R, P>(indices + b, tables, at, sum);
    }
  }
  for_each<R>([&](auto r) FK_LAMBDA {
    vf32 whole[P];
    for_each<P>([&](auto p) FK_LAMBDA {
      float* const to = sums + p * ld + r * VL;
      whole[p] = Tables::joined(sum[p][r], units[p], add ? to : nullptr);
      if (!output) whole[p].store(to);
    });
    if (output) store_results<P>(*output, r, whole);
  });
}

using LookUp = void (*)(const uint8_t*, const Path&, const float* const*, const float*, bool, float*, int64_t,
                        const Output*);

template <class Tables, int R, int... P>
constexpr std::array<LookUp, sizeof...(P)> lookups(std::integer_sequence<int, P...>) {
  return {look_up<Tables, R, P + 1>...};
}

template <class Tables>
FK_INLINE LookUp find_lookup(int64_t row_vectors, int64_t pixels) {
  constexpr auto pixel_counts = std::make_integer_sequence<int, TILE_PIXELS>();
  static constexpr std::array<LookUp, TILE_PIXELS> found[TILE_ROW_VECTORS] = {
      lookups<Tables, 1>(pixel_counts), lookups<Tables, 2>(pixel_counts), lookups<Tables, 3>(pixel_counts),
      lookups<Tables, 4>(pixel_counts)};
  return found[row_vectors - 1][pixels - 1];
}

}  // namespace fk::FK_ISA_NS
#endif
