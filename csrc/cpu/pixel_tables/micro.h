// Adds entries of tables to sums: the loop that does the products.
#pragma once
#include <array>
#include <utility>

#include "cpu/pixel_tables/shape.h"

namespace fk::FK_ISA_NS {

// Where a row's sums come from and go to: VECTORS vectors each, `from` standing still before the first pass. An odd
// number of rows may be rounded up.
struct SumRows {
  int64_t rows;
  const float* from;
  int64_t from_step;
  float* to;
};

// For each row, to = from + the entries at its offsets. A word holds four offsets; words lie [VL rows][word][row], so
// that one pointer reaches all of a row. The same offset serves all vectors of pixels. Which table an offset is of is
// known here, so it is an entry alone, times 8: a byte. Words are loaded whole and cut in registers: a load of each
// offset would take turns of the load ports, which bound the loop.
template <int BASES, int LINES, int TRIPLES, int STEP, int VECTORS>
struct EntryLoop {
  static constexpr int OFFSETS = LINES * TRIPLES;
  static constexpr int QUADS = static_cast<int>(divide_up(BASES * OFFSETS, QUAD_OFFSETS));
  static constexpr int PLACES = static_cast<int>(places_of(LINES, STEP, VECTORS));
  static constexpr int ENTRY_SCALE = VL / 2;  // bytes of an entry over 8
  static constexpr int ROWS = rows_at_once(VECTORS);
  static constexpr bool fits =
      VECTORS <= most_vectors(LINES) && BASES * TRIPLES * PLACES * TABLE_FLOATS * 4 <= TABLE_BYTES;

  static void run(const uint32_t* words, const char* const* bases, const SumRows& sums) {
    const char* base[BASES];
    for (int k = 0; k < BASES; ++k) base[k] = bases[k];
    const int64_t from_step = sums.from_step;
    const float* from = sums.from;
    float* to = sums.to;
    for (int64_t left = sums.rows; left > 0; left -= VL, words += QUADS * VL) {
      const uint32_t* const end = words + std::min<int64_t>(VL, left);
      for (const uint32_t* at = words; at < end; at += ROWS, from += ROWS * from_step, to += ROWS * VECTORS * VL) {
        add(at, base, from, from_step, to);
      }
    }
  }

 private:
  // Entries are cut and added in the program's order: a compiler that cuts all words first runs out of registers.
  FK_INLINE static void keep_order(uint64_t& entry, vf32 (&sum)[VECTORS]) {
#pragma GCC unroll 4
    for (int p = 0; p < VECTORS; ++p) {
      auto held = sum[p].v;
      asm volatile("" : "+v"(held));
      sum[p].v = held;
    }
    uint64_t cut = entry;
    asm volatile("" : "+r"(cut));
    entry = cut;
  }

  FK_INLINE static void add(const uint32_t* words, const char* const (&base)[BASES], const float* from,
                            int64_t from_step, float* to) {
    vf32 sum[ROWS][VECTORS];
    uint64_t word[ROWS];  // wide, as GCC keeps two words of 32 bits in one register
#pragma GCC unroll 32
    for (int i = 0; i < BASES * OFFSETS; ++i) {
      const int part = i % static_cast<int>(QUAD_OFFSETS), line = i % OFFSETS / TRIPLES, triple = i % TRIPLES;
#pragma GCC unroll 2
      for (int r = 0; r < ROWS; ++r) {
        if (part == 0) {
          word[r] = words[i / QUAD_OFFSETS * VL + r];
          asm volatile("" : "+r"(word[r]));  // or the compiler loads every offset by itself
        } else if (part == 2) {
          word[r] >>= 16;
        }
        uint64_t entry = part % 2 ? word[r] >> 8 & 0xFF : word[r] & 0xFF;
        if (i) {
          keep_order(entry, sum[r]);
        } else {
          asm volatile("" : "+r"(entry));
        }
#pragma GCC unroll 4
        for (int p = 0; p < VECTORS; ++p) {
          const int64_t table = (triple * PLACES + p * STEP + line) * TABLE_FLOATS * 4;
          const vf32 value =
              vf32::load(reinterpret_cast<const float*>(base[i / OFFSETS] + entry * ENTRY_SCALE + table));
          sum[r][p] = i ? sum[r][p] + value : value;
        }
      }
    }
#pragma GCC unroll 2
    for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 4
      for (int p = 0; p < VECTORS; ++p) {
        (vf32::load(from + r * from_step + p * VL) + sum[r][p]).store(to + (r * VECTORS + p) * VL);
      }
    }
  }
};

using AddEntries = void (*)(const uint32_t*, const char* const*, const SumRows&);
using EachVectors = std::array<AddEntries, 3>;  // 1, 2 and 4

// Kinds of passes of so many bases: triples of one line, then lines and triples, then three lines of stride 2.
constexpr int POINT_KINDS = static_cast<int>(most_offsets(1)), LINE_KINDS = 3, STRIDED_KINDS = 2;
constexpr int FIRST_STRIDED = POINT_KINDS + (static_cast<int>(MOST_LINES) - 1) * LINE_KINDS;
constexpr int PASS_KINDS = FIRST_STRIDED + STRIDED_KINDS;
constexpr int kind_of(int64_t lines, int64_t triples, int64_t step) {
  if (lines == 1) return static_cast<int>(triples) - 1;
  if (step == 2) return FIRST_STRIDED + static_cast<int>(triples) - 1;
  return POINT_KINDS + static_cast<int>((lines - 2) * LINE_KINDS + triples) - 1;
}

template <class Loop>
constexpr AddEntries loop_of() {
  if constexpr (Loop::fits) return Loop::run;
  return nullptr;
}
template <int BASES, int KIND>
constexpr EachVectors loops_of_kind() {
  constexpr bool point = KIND < POINT_KINDS, strided = KIND >= FIRST_STRIDED;
  constexpr int of_lines = KIND - POINT_KINDS;
  constexpr int lines = point ? 1 : strided ? 3 : 2 + of_lines / LINE_KINDS;
  constexpr int triples = 1 + (point ? KIND : strided ? KIND - FIRST_STRIDED : of_lines % LINE_KINDS);
  constexpr int step = strided ? 2 : 1;
  if constexpr (lines * triples > most_offsets(BASES) || lines > most_lines(BASES)) {
    return {};
  } else {
    return {loop_of<EntryLoop<BASES, lines, triples, step, 1>>(), loop_of<EntryLoop<BASES, lines, triples, step, 2>>(),
            loop_of<EntryLoop<BASES, lines, triples, step, 4>>()};
  }
}
template <int BASES, int... KINDS>
constexpr std::array<EachVectors, PASS_KINDS> each_kind(std::integer_sequence<int, KINDS...>) {
  return {loops_of_kind<BASES, KINDS>()...};
}

FK_INLINE AddEntries find_add_entries(const Pass& pass, int64_t vectors) {
  constexpr auto kinds = std::make_integer_sequence<int, PASS_KINDS>();
  static constexpr std::array<EachVectors, PASS_KINDS> found[MOST_BASES] = {
      each_kind<1>(kinds), each_kind<2>(kinds), each_kind<3>(kinds), each_kind<4>(kinds), each_kind<5>(kinds), {},
      each_kind<7>(kinds)};  // six taps are cut in three and three
  return found[pass.columns - 1][kind_of(pass.lines, pass.triples, pass.step)][vectors / 2];
}

// The 27 weighted sums of three vectors of inputs; entry 13 + d0 + 3 d1 + 9 d2. Weights of zero
// are factors too, so that infinity and NaN reach exactly the entries that a dense product would carry them to.
FK_INLINE void build_table(vf32 x0, vf32 x1, vf32 x2, float* out) {
  const vf32 zero = vf32::zero();
  const vf32 a[3] = {zero - x0, x0 * zero, x0}, b[3] = {zero - x1, x1 * zero, x1}, c[3] = {zero - x2, x2 * zero, x2};
#pragma GCC unroll 3
  for (int j = 0; j < 3; ++j) {
#pragma GCC unroll 3
    for (int i = 0; i < 3; ++i) {
      const vf32 two = a[i] + b[j];
#pragma GCC unroll 3
      for (int k = 0; k < 3; ++k) (two + c[k]).store(out + (i + 3 * j + 9 * k) * VL);
    }
  }
}

}  // namespace fk::FK_ISA_NS
