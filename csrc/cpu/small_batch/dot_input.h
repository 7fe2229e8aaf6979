// The digits of all inputs of a layer of few pixels, for dot products of bytes.
#pragma once
#include "cpu/simd/transpose_tile.h"
#include "cpu/small_batch/digit_order.h"

namespace fk::FK_LEVEL_NS {

namespace dots_detail {

constexpr int64_t CHUNK = VL, CHUNK_COLUMNS = 32 * CHUNK;  // words, one for each lane
constexpr int64_t VECTOR_BYTES = 4 * VL;
constexpr int FIELDS = 8;  // vectors of bytes that the bits of a chunk make
constexpr int64_t MOST_PIXELS = 16;
constexpr float THREE_DIGITS = 0x1.1p-26f;  // rounding by this part of the inputs' norm stays below twice torch's error
constexpr int64_t LEAST_ROWS = 256, LEAST_COLS = 1024;  // from which three digits pay

// Whether this is faster than the next kernel in line, by what a pixel and column of a row cost. Columns are filled up
// to whole chunks.
#if FK_HAS_VNNI
// In units of what a column costs a pixel in a table lookup, which costs 7.4 to begin with (panels, for up to four
// pixels, 15).
constexpr int64_t COST_OF_THREE = 14, COST_OF_FOUR = 22;
inline int64_t cost_of_next(int64_t pixels) { return pixels <= 4 ? 160 : 74 + 10 * pixels; }
#else
// In cycles; of one pixel the tables come next, of more the panels and the tables of pixels.
constexpr int64_t COST_OF_THREE = 19, COST_OF_FOUR = 26;
inline int64_t cost_of_next(int64_t pixels) { return pixels == 1 ? 37 : (pixels < VL ? 145 : 125) + 7 * pixels; }
#endif
inline bool pays(const Frozen& f, int64_t pixels, int digits) {
  const int64_t cost = pixels * (digits == 3 ? COST_OF_THREE : COST_OF_FOUR);
  return cost * round_up(f.cols, CHUNK_COLUMNS) <= cost_of_next(pixels) * f.cols;
}
inline int fewest_digits(const Frozen& f) { return f.rows < LEAST_ROWS || f.cols < LEAST_COLS ? 4 : 3; }

// out = (high * step + low) * unit of the integers in VL lanes, rounded once.
FK_INLINE void join_digits(vu32 high, vu32 low, double step, double unit, float* out) {
#if FK_HAS_AVX512
  const auto join = [&](__m256i h, __m256i l) {
    const __m512d sum = _mm512_fmadd_pd(_mm512_cvtepi32_pd(h), _mm512_set1_pd(step), _mm512_cvtepi32_pd(l));
    return _mm512_cvtpd_ps(_mm512_mul_pd(sum, _mm512_set1_pd(unit)));
  };
  _mm256_storeu_ps(out, join(_mm512_castsi512_si256(high.v), _mm512_castsi512_si256(low.v)));
  _mm256_storeu_ps(out + 8, join(_mm512_extracti64x4_epi64(high.v, 1), _mm512_extracti64x4_epi64(low.v, 1)));
#else
  const auto join = [&](__m128i h, __m128i l) {
    const __m256d sum = _mm256_fmadd_pd(_mm256_cvtepi32_pd(h), _mm256_set1_pd(step), _mm256_cvtepi32_pd(l));
    return _mm256_cvtpd_ps(_mm256_mul_pd(sum, _mm256_set1_pd(unit)));
  };
  _mm_storeu_ps(out, join(_mm256_castsi256_si128(high.v), _mm256_castsi256_si128(low.v)));
  _mm_storeu_ps(out + 4, join(_mm256_extracti128_si256(high.v, 1), _mm256_extracti128_si256(low.v, 1)));
#endif
}

}  // namespace dots_detail

// [pixel][chunk][field][digit][a vector of columns]: field v has the columns of bits v of all bytes.
class DotInput {
 public:
  static bool serves(const VectorInput& input, const Frozen& f) {
    using namespace dots_detail;
    return in_common_range(input, f.cols, LOST_EXPONENT) && pays(f, input.pixels, digits_for(input, f));
  }

  DotInput(const VectorInput& input, const Frozen& f)
      : pixels_(input.pixels), digits_(digits_for(input, f)), chunks_(divide_up(f.words, dots_detail::CHUNK)) {
    using namespace dots_detail;
    memory_.resize(static_cast<size_t>(pixels_ * pixel_bytes() + 64));
    char* const start = memory_.data();
    bytes_ = start + (64 - reinterpret_cast<uintptr_t>(start) % 64);
    for (int64_t p = 0; p < pixels_; ++p) {
      const int power = exponent(input.largest(p), digits_);
      const PowerOfTwo scale(power);
      Totals totals;
      for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
        put_chunk(input.of(p) + CHUNK_COLUMNS * chunk, scale, totals,
                  bytes_ + p * pixel_bytes() + chunk * chunk_bytes());
      }
      unit_[p] = std::ldexp(1.0, -power);
      total_[p][0] = sum_of_lanes(totals.high);
      total_[p][1] = sum_of_lanes(totals.low);
    }
  }

  int64_t pixels() const { return pixels_; }
  int digits() const { return digits_; }
  int64_t pixel_bytes() const { return chunks_ * chunk_bytes(); }
  int64_t chunk_bytes() const { return dots_detail::VECTOR_BYTES * dots_detail::FIELDS * digits_; }
  const char* of(int64_t pixel) const { return bytes_ + pixel * pixel_bytes(); }

  // out of the sums of digits of VL rows: those of the upper two and of the others.
  void finish(int64_t pixel, bool offset, vu32 high, vu32 low, float* out) const {
    if (offset) {
      high = high - vu32::set(total_[pixel][0]);
      low = low - vu32::set(total_[pixel][1]);
    }
    dots_detail::join_digits(high, low, digits_ == 4 ? 0x1p16 : 0x1p8, unit_[pixel], out);
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
      const PowerOfTwo scale(exponent(input.largest(p), 3));
      vf32 squares = vf32::zero();
      for (int64_t i = 0; i < input.ld; i += VL) {
        const vf32 scaled = scale.times(vf32::load(input.of(p) + i));
        squares = fma(scaled, scaled, squares);
      }
      float lane[VL], sum = 0;
      squares.store(lane);
      for (const float one : lane) sum += one;
      if (THREE_DIGITS * std::sqrt(sum) < 1) return 4;
    }
    return 3;
  }

  // Sums of the upper two digits and of the others, of VL inputs at a time.
  struct Totals {
    vu32 high = vu32::set(0), low = high;
  };
  static uint32_t sum_of_lanes(vu32 x) {
    uint32_t lane[VL], sum = 0;
    x.store(lane);
    for (const uint32_t one : lane) sum += one;
    return sum;
  }

  // The digits of a word's inputs in the order of the fields, [field][digit][4 columns].
  FK_INLINE void order_word(const float* x, const PowerOfTwo& scale, Totals& totals, char* out) const {
    const vu32 carry = vu32::set(digits_ == 4 ? 0x00808080 : 0x00008080);
    vu32 bytes[32 / VL];
    for (int i = 0; i < 32 / VL; ++i) {
      const vu32 fixed = round_to_integers(scale.times(vf32::load(x + VL * i)));
      bytes[i] = signed_digits(fixed, carry);
      vu32 low = shr_signed<24>(shl<24>(bytes[i]));
      if (digits_ == 4) low = low + shl<8>(shr_signed<24>(shl<16>(bytes[i])));
      const vu32 rest = fixed - low;
      totals.high = totals.high + (digits_ == 4 ? shr_signed<16>(rest) : shr_signed<8>(rest));
      totals.low = totals.low + low;
    }
    store_ordered(bytes, out);
  }

  void put_chunk(const float* x, const PowerOfTwo& scale, Totals& totals, char* out) const {
    using namespace dots_detail;
    alignas(64) char ordered[CHUNK][128], turned[32][VECTOR_BYTES];
    for (int64_t word = 0; word < CHUNK; ++word) order_word(x + 32 * word, scale, totals, ordered[word]);
    for (int i = 0; i < 32; i += VL) transpose_tile(ordered[0] + 4 * i, 128, turned[i], VECTOR_BYTES);
    for (int v = 0; v < FIELDS; ++v) {
      for (int d = 0; d < digits_; ++d) memcpy(out + (v * digits_ + d) * VECTOR_BYTES, turned[4 * v + d], VECTOR_BYTES);
    }
  }

  int64_t pixels_;
  int digits_;
  int64_t chunks_;
  std::vector<char> memory_;
  char* bytes_ = nullptr;
  double unit_[dots_detail::MOST_PIXELS];  // of the sums of lower digits
  uint32_t total_[dots_detail::MOST_PIXELS][2];
};

}  // namespace fk::FK_LEVEL_NS
