// Few pixels by dot products of bytes (VNNI): inputs become signed digits of base 256, a ternary weight w the byte w +
// 1, which is two neighbouring bits. Sums of digits are exact in int32, so their order is free.
#pragma once
#include <immintrin.h>

#include "cpu/core/scratch.h"
#include "cpu/small_batch/digit_order.h"
#include "cpu/words/whole_rows.h"

namespace fk::FK_ISA_NS {

namespace dots_detail {

constexpr int64_t CHUNK = VL, CHUNK_COLUMNS = 32 * CHUNK;
constexpr int FIELDS = 8;                        // vectors of bytes that the bits of a chunk make
constexpr int64_t MOST_COLS = int64_t{1} << 15;  // longest sum of two digits that stays in int32
constexpr int MOST_DIGITS = 4;
constexpr int64_t MOST_PIXELS = 16, PASS_PIXELS = 4;  // of a call, and in registers at once
constexpr int64_t HELD_BYTES = 24 << 10;              // digits of a pass that stay in the first-level cache
constexpr float THREE_DIGITS = 0x1.1p-26f;  // rounding by this part of the inputs' norm stays below twice torch's error
constexpr int64_t LEAST_ROWS = 256, LEAST_COLS = 1024;  // from which three digits pay

// Whether this is faster than the next kernel in line. In units of what a column costs a pixel in a table lookup, which
// costs 7.4 to begin with (panels, for up to four pixels, 15): 1.4 for three digits and 2.2 for four, and columns are
// filled up to a multiple of 512.
inline bool pays(const Frozen& f, int64_t pixels, int digits) {
  const int64_t cost = pixels * (digits == 3 ? 14 : 22) * round_up(f.cols, CHUNK_COLUMNS);
  return cost <= (pixels <= 4 ? 160 : 74 + 10 * pixels) * f.cols;
}
inline int fewest_digits(const Frozen& f) { return f.rows < LEAST_ROWS || f.cols < LEAST_COLS ? 4 : 3; }

}  // namespace dots_detail

// Digits of all inputs, [pixel][chunk][field][digit][64 columns]: field v has the columns of bits v of all bytes.
class DotInput {
 public:
  static bool serves(const VectorInput& input, const Frozen& f) {
    using namespace dots_detail;
    return in_common_range(input, f.cols, LOST_EXPONENT) && pays(f, input.pixels, digits_for(input, f));
  }

  DotInput(const VectorInput& input, const Frozen& f) : pixels_(input.pixels), digits_(digits_for(input, f)) {
    using namespace dots_detail;
    chunks_ = divide_up(f.words, CHUNK);
    memory_.resize(static_cast<size_t>(pixels_ * pixel_bytes() + 64));
    char* const start = memory_.data();
    bytes_ = start + (64 - reinterpret_cast<uintptr_t>(start) % 64);
    for (int64_t p = 0; p < pixels_; ++p) {
      exponent_[p] = exponent(input.largest(p), digits_);
      Totals totals;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        put_chunk(input.of(p) + CHUNK_COLUMNS * chunk, p, totals, bytes_ + p * pixel_bytes() + chunk * chunk_bytes());
      }
      total_[p][0] = _mm512_reduce_add_epi32(totals.high);
      total_[p][1] = _mm512_reduce_add_epi32(totals.low);
    }
  }

  int64_t pixels() const { return pixels_; }
  int digits() const { return digits_; }
  int64_t pixel_bytes() const { return chunks_ * chunk_bytes(); }
  int64_t chunk_bytes() const { return 64 * dots_detail::FIELDS * digits_; }
  const char* of(int64_t pixel) const { return bytes_ + pixel * pixel_bytes(); }

  // out of the sums of digits of 16 rows: those of the upper two and of the others.
  void finish(int64_t pixel, bool offset, __m512i high, __m512i low, float* out) const {
    if (offset) {
      high = _mm512_sub_epi32(high, _mm512_set1_epi32(total_[pixel][0]));
      low = _mm512_sub_epi32(low, _mm512_set1_epi32(total_[pixel][1]));
    }
    const __m512d step = _mm512_set1_pd(digits_ == 4 ? 0x1p16 : 0x1p8), unit = _mm512_set1_pd(-exponent_[pixel]);
    const auto join = [&](__m256i h, __m256i l) {
      const __m512d sum = _mm512_fmadd_pd(_mm512_cvtepi32_pd(h), step, _mm512_cvtepi32_pd(l));
      return _mm512_cvtpd_ps(_mm512_scalef_pd(sum, unit));
    };
    _mm256_storeu_ps(out, join(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low)));
    _mm256_storeu_ps(out + 8, join(_mm512_extracti64x4_epi64(high, 1), _mm512_extracti64x4_epi64(low, 1)));
  }

 private:
  // Scaled by 2^exponent the largest input has 30 bits, or 23 with room for the carries of signed digits.
  static int exponent(uint32_t largest, int digits) {
    const int power = std::max<int>(static_cast<int>(largest >> 23), 1) - 127;  // below 2^(power + 1)
    if (digits == 4) return 29 - power;
    return (largest & 0x7FFFFFu) < 0x7E0000u ? 22 - power : 21 - power;
  }

  static int digits_for(const VectorInput& input, const Frozen& f) {
    using namespace dots_detail;
    if (fewest_digits(f) == 4) return 4;
    for (int64_t p = 0; p < input.pixels; ++p) {
      const __m512 unit = _mm512_set1_ps(static_cast<float>(exponent(input.largest(p), 3)));
      vf32 squares = vf32::zero();
      for (int64_t i = 0; i < input.ld; i += VL) {
        const vf32 scaled{_mm512_scalef_ps(vf32::load(input.of(p) + i).v, unit)};
        squares = fma(scaled, scaled, squares);
      }
      if (THREE_DIGITS * std::sqrt(_mm512_reduce_add_ps(squares.v)) < 1) return 4;
    }
    return 3;
  }

  // Sums of the upper two digits and of the others, of 16 inputs at a time.
  struct Totals {
    __m512i high = _mm512_setzero_si512(), low = high;
  };

  // The digits of a word's inputs in the order of the fields, [field][digit][4 columns].
  void order_word(const float* x, int64_t pixel, Totals& totals, char* out) const {
    const __m512i carry = _mm512_set1_epi32(digits_ == 4 ? 0x00808080 : 0x00008080);
    const __m512 unit = _mm512_set1_ps(static_cast<float>(exponent_[pixel]));
    const __m128i low_bits = _mm_cvtsi32_si128(digits_ == 4 ? 16 : 8);
    __m512i bytes[2];
    for (int i = 0; i < 2; ++i) {
      const __m512i fixed = _mm512_cvtps_epi32(_mm512_scalef_ps(_mm512_loadu_ps(x + 16 * i), unit));
      bytes[i] = signed_digits(fixed, carry);
      __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(bytes[i], 24), 24);
      if (digits_ == 4) {
        const __m512i second = _mm512_srai_epi32(_mm512_slli_epi32(bytes[i], 16), 24);
        low = _mm512_add_epi32(low, _mm512_slli_epi32(second, 8));
      }
      totals.high = _mm512_add_epi32(totals.high, _mm512_sra_epi32(_mm512_sub_epi32(fixed, low), low_bits));
      totals.low = _mm512_add_epi32(totals.low, low);
    }
    store_ordered(bytes, out);
  }

  void put_chunk(const float* x, int64_t pixel, Totals& totals, char* out) const {
    using namespace dots_detail;
    alignas(64) char ordered[CHUNK][128], turned[32][64];
    for (int64_t word = 0; word < CHUNK; ++word) order_word(x + 32 * word, pixel, totals, ordered[word]);
    transpose_tile(ordered[0], 128, turned[0], 64);
    transpose_tile(ordered[0] + 64, 128, turned[16], 64);
    for (int v = 0; v < FIELDS; ++v) {
      for (int d = 0; d < digits_; ++d) memcpy(out + (v * digits_ + d) * 64, turned[4 * v + d], 64);
    }
  }

  int64_t pixels_, chunks_ = 0;
  int digits_;
  std::vector<char> memory_;
  char* bytes_ = nullptr;
  int exponent_[dots_detail::MOST_PIXELS];
  int32_t total_[dots_detail::MOST_PIXELS][2];
};

namespace dots_detail {

// Lane r of the result: the sum of the lanes of x[r].
FK_INLINE __m512i sum_lanes(const __m512i* x) {
  const auto pairs = [](__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const auto fours = [&](int i) {  // lane k of each quarter: part of the sum of x[i + k]
    const __m512i a = pairs(x[i], x[i + 1]), b = pairs(x[i + 2], x[i + 3]);
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  };
  const __m512i a = fours(0), b = fours(4), c = fours(8), d = fours(12);
  const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x44), _mm512_shuffle_i32x4(a, b, 0xEE));
  const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i32x4(c, d, 0x44), _mm512_shuffle_i32x4(c, d, 0xEE));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xDD));
}

// Sums of digits of R rows and P pixels, in registers.
template <bool SIGNED, int DIGITS, int P, int R>
struct Dots {
  static constexpr int SUMS = R * P * DIGITS;
  __m512i sum[SUMS];  // [row][pixel][digit]

  FK_INLINE void clear() {
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; ++i) sum[i] = _mm512_setzero_si512();
  }
  FK_INLINE void load(const __m512i* from) {
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; ++i) sum[i] = _mm512_load_si512(from + i);
  }
  FK_INLINE void store(__m512i* to) const {
#pragma GCC unroll 24
    for (int i = 0; i < SUMS; ++i) _mm512_store_si512(to + i, sum[i]);
  }

  // A chunk of words of each row. Bits 2 m and 2 m + 1 of a byte of even[r] are w + 1 of bit 2 m, those of odd[r] of
  // bit 2 m + 1; unsigned weights have bits of their own.
  FK_INLINE void add(const vu32 (&keep)[R], const vu32 (&sign)[R], const char* digits, int64_t pixel_step) {
    vu32 even[R], odd[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      if constexpr (SIGNED) {
        const __m512i upper = _mm512_set1_epi8(static_cast<char>(0xAA));
        const vu32 plus = andnot(sign[r], keep[r]);
        // Of the mask a, a ? b : ~c.
        even[r] = {_mm512_ternarylogic_epi32(upper, (plus + plus).v, keep[r].v, 0xC5)};
        odd[r] = {_mm512_ternarylogic_epi32(upper, plus.v, shr<1>(keep[r]).v, 0xC5)};
      } else {
        even[r] = keep[r];
        odd[r] = shr<1>(keep[r]);
      }
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      multiply(even, digits + 2 * m * DIGITS * 64, pixel_step);
      multiply(odd, digits + (2 * m + 1) * DIGITS * 64, pixel_step);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) even[r] = shr<2>(even[r]), odd[r] = shr<2>(odd[r]);
    }
  }

 private:
  FK_INLINE void multiply(const vu32 (&bytes)[R], const char* digits, int64_t pixel_step) {
    __m512i weights[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) weights[r] = _mm512_and_si512(bytes[r].v, _mm512_set1_epi8(SIGNED ? 3 : 1));
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int d = 0; d < DIGITS; ++d) {
        const __m512i from = _mm512_load_si512(digits + p * pixel_step + d * 64);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          __m512i& to = sum[(r * P + p) * DIGITS + d];
          to = _mm512_dpbusd_epi32(to, weights[r], from);
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

  static bool serves(const Frozen& f) {
    return (f.code == SIGN_CODE || f.code == CONSTANT_CODE) && f.cols <= dots_detail::MOST_COLS;
  }
  static int64_t scratch_bytes(const Frozen& f) {
    return WholeRows::scratch_bytes(f, ROWS) + ROWS * dots_detail::PASS_PIXELS * dots_detail::MOST_DIGITS * 64;
  }

  DotSums(const Frozen& f, const DotInput& input, Scratch& scratch)
      : f_(f),
        input_(input),
        words_(f, ROWS, scratch),
        sums_(scratch.take<__m512i>(ROWS * dots_detail::PASS_PIXELS * dots_detail::MOST_DIGITS)) {}

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
    for (int64_t pixel = 0; pixel < input_.pixels(); pixel += dots_detail::PASS_PIXELS) {
      const int64_t count = std::min(dots_detail::PASS_PIXELS, input_.pixels() - pixel);
      if (input_.digits() == 3) {
        pass_of<SIGNED, 3>(count, rows, pixel, out);
      } else {
        pass_of<SIGNED, 4>(count, rows, pixel, out);
      }
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
        return pass<SIGNED, DIGITS, 4>(rows, pixel, out);
    }
  }

  template <bool SIGNED, int DIGITS, int P>
  void pass(int64_t rows, int64_t pixel, float* out) {
    using namespace dots_detail;
    constexpr int R = P == 1 ? 4 : P * DIGITS <= 12 ? 2 : 1;
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
    __m512i high[VL], low[VL];
    const auto join = [](__m512i upper, __m512i lower) { return _mm512_add_epi32(_mm512_slli_epi32(upper, 8), lower); };
#pragma GCC unroll 16
    for (int r = 0; r < VL; ++r) {
      const __m512i* const sum = sums_ + ((row + r) * P + p) * DIGITS;
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
    Dots<SIGNED, DIGITS, P, R> dots;
    if (from) {
      dots.load(sums_ + row * P * DIGITS);
    } else {
      dots.clear();
    }
    const char* digits = input_.of(pixel) + from / CHUNK * input_.chunk_bytes();
    const int64_t pixel_step = input_.pixel_bytes(), end = std::min(from + columns, f_.words);
    vu32 keeps[R], signs[R];
    int64_t w = from;
    for (; w + CHUNK <= end; w += CHUNK, digits += 64 * FIELDS * DIGITS) {
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
      const __mmask16 valid = static_cast<__mmask16>((1u << (end - w)) - 1);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        keeps[r] = {_mm512_maskz_loadu_epi32(valid, keep[r] + w)};
        if (SIGNED) signs[r] = {_mm512_maskz_loadu_epi32(valid, sign[r] + w)};
      }
      dots.add(keeps, signs, digits, pixel_step);
    }
    dots.store(sums_ + row * P * DIGITS);
  }

  const Frozen& f_;
  const DotInput& input_;
  WholeRows words_;
  __m512i* sums_;
};

}  // namespace fk::FK_ISA_NS
