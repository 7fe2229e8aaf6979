// Few pixels by dot products of bytes: inputs become signed digits of base 256, a ternary weight w the byte w + 1,
// which is two neighbouring bits. Sums of digits are exact in integers, so their order is free.
#pragma once
#include "cpu/core/scratch.h"
#include "cpu/small_batch/dot_input.h"
#include "cpu/words/whole_rows.h"

namespace fk::FK_LEVEL_NS {

namespace dots_detail {

constexpr int64_t MOST_COLS = int64_t{1} << 15;  // longest sum of two digits that stays in int32
constexpr int MOST_DIGITS = 4;
constexpr int64_t HELD_BYTES = 24 << 10;  // digits of a pass that stay in the first-level cache

// Adds products of unsigned bytes and signed ones to sums of several: of four in 32 bits, or of two in 16, which hold
// a few chunks and then go to sums of 32.
#if FK_HAS_VNNI
constexpr bool WIDE_SUMS = true;
constexpr int64_t SUM_CHUNKS = MOST_COLS / CHUNK_COLUMNS;
FK_INLINE vu32 add_products(vu32 sums, vu32 bytes, vu32 digits) {
  return {_mm512_dpbusd_epi32(sums.v, bytes.v, digits.v)};
}
#else
constexpr bool WIDE_SUMS = false;
constexpr int64_t SUM_CHUNKS = (1 << 15) / (2 * 2 * 128) / FIELDS;
FK_INLINE vu32 add_products(vu32 sums, vu32 bytes, vu32 digits) {
  sums.v = _mm256_add_epi16(sums.v, _mm256_maddubs_epi16(bytes.v, digits.v));
  asm("" : "+x"(sums.v));  // a compiler that adds products among themselves first runs out of registers
  return sums;
}
#endif

// Bits 2 m and 2 m + 1 of a byte of `even` are w + 1 of bit 2 m, those of `odd` of bit 2 m + 1.
struct Fields {
  vu32 even, odd;
};
#if FK_HAS_AVX512
constexpr bool EVEN_FLIPPED = false;
FK_INLINE Fields ternary_fields(vu32 keep, vu32 sign) {
  const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xAA));
  const vu32 plus = andnot(sign, keep);
  // Of the mask a, a ? b : ~c.
  return {{_mm512_ternarylogic_epi32(upper, (plus + plus).v, keep.v, 0xC5)},
          {_mm512_ternarylogic_epi32(upper, plus.v, shr<1>(keep).v, 0xC5)}};
}
#else
constexpr bool EVEN_FLIPPED = true;  // all bits of `even`, which saves a step here and costs none below
FK_INLINE Fields ternary_fields(vu32 keep, vu32 sign) {
  // The upper bits of keep change places with the lower ones of plus.
  const vu32 plus = andnot(sign, keep), moved = andnot(shr<1>(keep) ^ plus, vu32::set(0x55555555u));
  return {keep ^ (moved + moved), plus ^ moved};
}
#endif

// The first `count` words of a vector, zeros after them.
FK_INLINE vu32 load_first(const uint32_t* words, int64_t count) {
#if FK_HAS_AVX512
  return {_mm512_maskz_loadu_epi32(static_cast<__mmask16>((1u << count) - 1), words)};
#else
  return {_mm256_maskload_epi32(reinterpret_cast<const int*>(words), from_bits((1u << count) - 1).v)};
#endif
}

// Lane r of the result: the sum of the lanes of x[r].
FK_INLINE vu32 sum_lanes(const vu32 (&x)[VL]) {
#if FK_HAS_AVX512
  const auto pairs = [](__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const auto fours = [&](int i) {  // lane k of each quarter: part of the sum of x[i + k]
    const __m512i a = pairs(x[i].v, x[i + 1].v), b = pairs(x[i + 2].v, x[i + 3].v);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  };
  const __m512i a = fours(0), b = fours(4), c = fours(8), d = fours(12);
  const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
  const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xEE));
  return {_mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD))};
#else
  const auto fours = [&](int i) {  // lane k of each half: part of the sum of x[i + k]
    return _mm256_hadd_epi32(_mm256_hadd_epi32(x[i].v, x[i + 1].v), _mm256_hadd_epi32(x[i + 2].v, x[i + 3].v));
  };
  const __m256i a = fours(0), b = fours(4);
  return {_mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31))};
#endif
}

// Pixels, and rows of so many, whose sums stay in registers.
constexpr int most_pixels(int digits) { return FK_HAS_AVX512 ? 4 : 12 / digits; }
constexpr int rows_of(int pixels, int digits) {
  if (!FK_HAS_AVX512) return pixels * digits <= 6 ? 2 : 1;
  return pixels == 1 ? 4 : pixels * digits <= 12 ? 2 : 1;
}

// Sums of digits of R rows and P pixels, in registers.
template <bool SIGNED, int DIGITS, int P, int R>
struct Dots {
  static constexpr int SUMS = R * P * DIGITS;
  vu32 sum[SUMS];  // [row][pixel][digit]

  // From zero, or from earlier sums of 32 bits; sums of 16 join those when they are stored.
  FK_INLINE void start(const vu32* earlier) {
    if (WIDE_SUMS && earlier) {
#pragma GCC unroll 24
      for (int i = 0; i < SUMS; ++i) sum[i] = earlier[i];
    } else {
#pragma GCC unroll 24
      for (int i = 0; i < SUMS; ++i) sum[i] = vu32::set(0);
    }
  }
  FK_INLINE void store([[maybe_unused]] bool earlier, vu32* to) const {
#if FK_HAS_VNNI
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; ++i) to[i] = sum[i];
#else
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; ++i) {
      const vu32 wide = {_mm256_madd_epi16(sum[i].v, _mm256_set1_epi16(1))};
      to[i] = earlier ? to[i] + wide : wide;
    }
#endif
  }

  // A chunk of words of each row; unsigned weights have bits of their own.
  FK_INLINE void add(const vu32 (&keep)[R], const vu32 (&sign)[R], const char* digits, int64_t pixel_step) {
    vu32 even[R], odd[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const Fields fields = SIGNED ? ternary_fields(keep[r], sign[r]) : Fields{keep[r], shr<1>(keep[r])};
      even[r] = fields.even, odd[r] = fields.odd;
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      multiply<SIGNED && EVEN_FLIPPED>(even, digits + 2 * m * DIGITS * VECTOR_BYTES, pixel_step);
      multiply<false>(odd, digits + (2 * m + 1) * DIGITS * VECTOR_BYTES, pixel_step);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) even[r] = shr<2>(even[r]), odd[r] = shr<2>(odd[r]);
    }
  }

 private:
  template <bool FLIPPED>
  FK_INLINE void multiply(const vu32 (&bytes)[R], const char* digits, int64_t pixel_step) {
    const vu32 field = vu32::set(SIGNED ? 0x03030303u : 0x01010101u);
    vu32 weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) weights[r] = FLIPPED ? andnot(bytes[r], field) : bytes[r] & field;
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int d = 0; d < DIGITS; ++d) {
        const vu32 from = vu32::load(digits + p * pixel_step + d * VECTOR_BYTES);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          vu32& to = sum[(r * P + p) * DIGITS + d];
          to = add_products(to, weights[r], from);
        }
      }
    }
  }
};

}  // namespace dots_detail

// Sums of 64 rows at a time.
class DotSums {
 public:
  using Input = DotInput;
  static constexpr int64_t ROWS = 64, PIXELS = dots_detail::MOST_PIXELS;
  static constexpr int64_t SUMS = ROWS * dots_detail::most_pixels(3) * dots_detail::MOST_DIGITS;

  static bool serves(const Frozen& f) {
    return (f.code == SIGN_CODE || f.code == CONSTANT_CODE) && f.cols <= dots_detail::MOST_COLS;
  }
  static int64_t scratch_bytes(const Frozen& f) {
    return WholeRows::scratch_bytes(f, ROWS) + SUMS * dots_detail::VECTOR_BYTES;
  }

  DotSums(const Frozen& f, const DotInput& input, Scratch& scratch)
      : f_(f), input_(input), words_(f, ROWS, scratch), sums_(scratch.take<vu32>(SUMS)) {}

  // out[pixel][row], row stride ROWS; anything past `rows`.
  void operator()(int64_t row0, int64_t rows, float* out) {
    // Drawn words of few rows stay in the first-level cache; where digits take turns there, many rows use each.
    const int64_t step = input_.pixels() > 2 ? ROWS : VL;
    for (int64_t r = 0; r < rows; r += step) {
      const int64_t count = std::min(step, rows - r);
      words_.start(row0 + r, count);
      if (f_.code == SIGN_CODE) {
        run<true>(count, out + r);
      } else {
        run<false>(count, out + r);
      }
    }
  }

 private:
  template <bool SIGNED>
  void run(int64_t rows, float* out) {
    if (input_.digits() == 3) {
      run_passes<SIGNED, 3>(rows, out);
    } else {
      run_passes<SIGNED, 4>(rows, out);
    }
  }

  template <bool SIGNED, int DIGITS>
  void run_passes(int64_t rows, float* out) {
    constexpr int64_t most = dots_detail::most_pixels(DIGITS);
    for (int64_t pixel = 0; pixel < input_.pixels(); pixel += most) {
      pass_of<SIGNED, DIGITS>(std::min(most, input_.pixels() - pixel), rows, pixel, out);
    }
  }

  template <bool SIGNED, int DIGITS>
  void pass_of(int64_t pixels, int64_t rows, int64_t pixel, float* out) {
    switch (pixels) {
      case 1:
        return pass<SIGNED, DIGITS, 1>(rows, pixel, out);
      case 2:
        return pass<SIGNED, DIGITS, 2>(rows, pixel, out);
      case 3:
        return pass<SIGNED, DIGITS, 3>(rows, pixel, out);
      default:
        if constexpr (dots_detail::most_pixels(DIGITS) == 4) pass<SIGNED, DIGITS, 4>(rows, pixel, out);
    }
  }

  template <bool SIGNED, int DIGITS, int P>
  void pass(int64_t rows, int64_t pixel, float* out) {
    using namespace dots_detail;
    constexpr int R = rows_of(P, DIGITS);
    constexpr int64_t columns = std::max<int64_t>(1, HELD_BYTES / (P * DIGITS * CHUNK_COLUMNS)) * CHUNK;
    for (int64_t w = 0; w < f_.words; w += columns) {
      for (int64_t r = 0; r < rows; r += R) multiply<SIGNED, DIGITS, P, R>(r, rows, pixel, w, columns);
    }
    for (int64_t first = 0; first < rows; first += VL) {
      for (int64_t p = 0; p < P; ++p) finish<SIGNED, DIGITS, P>(first, p, pixel, out + (pixel + p) * ROWS + first);
    }
  }

  template <bool SIGNED, int DIGITS, int P>
  void finish(int64_t row, int64_t p, int64_t pixel, float* out) const {
    vu32 high[VL], low[VL];
    const auto join = [](vu32 upper, vu32 lower) { return shl<8>(upper) + lower; };
#pragma GCC unroll 16
    for (int r = 0; r < VL; ++r) {
      const vu32* const sum = sums_ + ((row + r) * P + p) * DIGITS;
      high[r] = join(sum[DIGITS - 1], sum[DIGITS - 2]);
      low[r] = DIGITS == 4 ? join(sum[1], sum[0]) : sum[0];
    }
    input_.finish(pixel + p, SIGNED, dots_detail::sum_lanes(high), dots_detail::sum_lanes(low), out);
  }

  // Adds `columns` words from `from` on of R rows.
  template <bool SIGNED, int DIGITS, int P, int R>
  void multiply(int64_t row, int64_t rows, int64_t pixel, int64_t from, int64_t columns) {
    using namespace dots_detail;
    const uint32_t *keep[R], *sign[R];
    for (int r = 0; r < R; ++r) {
      const int64_t at = std::min(row + r, rows - 1);
      keep[r] = words_.keep(at);
      sign[r] = SIGNED ? words_.sign(at) : nullptr;
    }
    const int64_t end = std::min(from + columns, f_.words);
    if constexpr (WIDE_SUMS) return add_words<SIGNED, DIGITS, P, R>(keep, sign, row, pixel, from, end);
    for (int64_t w = from; w < end; w += SUM_CHUNKS * CHUNK) {
      add_words<SIGNED, DIGITS, P, R>(keep, sign, row, pixel, w, std::min(w + SUM_CHUNKS * CHUNK, end));
    }
  }

  template <bool SIGNED, int DIGITS, int P, int R>
  FK_INLINE void add_words(const uint32_t* const (&keep)[R], const uint32_t* const (&sign)[R], int64_t row,
                           int64_t pixel, int64_t from, int64_t end) {
    using namespace dots_detail;
    vu32* const to = sums_ + row * P * DIGITS;
    Dots<SIGNED, DIGITS, P, R> dots;
    dots.start(from > 0 ? to : nullptr);
    const char* digits = input_.of(pixel) + from / CHUNK * input_.chunk_bytes();
    const int64_t pixel_step = input_.pixel_bytes();
    vu32 keeps[R], signs[R];
    int64_t w = from;
    for (; w + CHUNK <= end; w += CHUNK, digits += VECTOR_BYTES * FIELDS * DIGITS) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        keeps[r] = vu32::load(keep[r] + w);
        if (SIGNED) signs[r] = vu32::load(sign[r] + w);
        // The next rows: a prefetch past the end of a plane does nothing.
        __builtin_prefetch(keep[r] + w + R * f_.words);
        if (SIGNED) __builtin_prefetch(sign[r] + w + R * f_.words);
      }
      dots.add(keeps, signs, digits, pixel_step);
    }
    if (w < end) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        keeps[r] = load_first(keep[r] + w, end - w);
        if (SIGNED) signs[r] = load_first(sign[r] + w, end - w);
      }
      dots.add(keeps, signs, digits, pixel_step);
    }
    dots.store(from > 0, to);
  }

  const Frozen& f_;
  const DotInput& input_;
  WholeRows words_;
  vu32* sums_;
};

}  // namespace fk::FK_LEVEL_NS
