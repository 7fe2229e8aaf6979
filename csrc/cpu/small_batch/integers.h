// Few pixels of uniform and normal codes: inputs become signed digits of 16 bits, two of float32, one of half
// precision, and weights integers of 16 bits. A multiplication takes two columns of VL rows. Sums are exact, so their
// order is free.
#pragma once
#include <immintrin.h>

#include "cpu/core/scratch.h"
#include "cpu/small_batch/fixed_point.h"
#include "cpu/small_batch/input.h"
#include "cpu/words/row_block.h"

namespace fk::FK_LEVEL_NS {

namespace integers_detail {

constexpr int64_t MOST_PIXELS = FK_HAS_VNNI && !FK_HAS_TILES ? 16 : 4;  // tiles, or FMA, are faster for more
constexpr int64_t CHUNK_OF_WORDS = 16;
constexpr int64_t SUM_WORDS = 8;                // 256 products of a digit and a code stay in int32
constexpr int TWO_DIGITS = 30, ONE_DIGIT = 15;  // bits that inputs are scaled below

// Sums of two products of 16 bits in each lane.
FK_INLINE vu32 add_products(vu32 sums, vu32 codes, vu32 digits) {
#if FK_HAS_VNNI
  return {_mm512_dpwssd_epi32(sums.v, codes.v, digits.v)};
#elif FK_HAS_AVX512
  return {_mm512_add_epi32(sums.v, _mm512_madd_epi16(codes.v, digits.v))};
#else
  return {_mm256_add_epi32(sums.v, _mm256_madd_epi16(codes.v, digits.v))};
#endif
}

// Two columns of each row, as 16-bit halves of its lane: the even ones of a quad, and the odd ones.
struct Pairs {
  vu32 even, odd;
};

// The words' halves of even and of odd columns, each twice in its lane.
FK_INLINE Pairs twice(vu32 keep) {
  return {(keep & vu32::set(EVEN_COLUMNS)) | shl<16>(keep), shr<16>(keep) | (keep & vu32::set(ODD_COLUMNS))};
}

// Halves of `values` where the bit of quad i, and the next one in the upper half, is 1.
FK_INLINE vu32 where_kept(vu32 kept, int i, vu32 values) {
  const vu32 bits = vu32::set(1u << 2 * i | 1u << (16 + 2 * i + 1));
#if FK_HAS_AVX512
  return {_mm512_maskz_mov_epi16(_mm512_test_epi16_mask(kept.v, bits.v), values.v)};
#else
  return {_mm256_and_si256(values.v, _mm256_cmpeq_epi16((kept & bits).v, bits.v))};
#endif
}

// Products of unsigned bytes and signed ones, two and two added.
FK_INLINE vu32 add_byte_products(vu32 bytes, vu32 factors) {
#if FK_HAS_AVX512
  return {_mm512_maddubs_epi16(bytes.v, factors.v)};
#else
  return {_mm256_maddubs_epi16(bytes.v, factors.v)};
#endif
}
FK_INLINE vu32 add_halves(vu32 a, vu32 b) {
#if FK_HAS_AVX512
  return {_mm512_add_epi16(a.v, b.v)};
#else
  return {_mm256_add_epi16(a.v, b.v)};
#endif
}

FK_INLINE Pairs uniform_codes(vu32 quad) {
  const vu32 less = vu32::set(0xFF01FF01u);  // -255
  return {add_halves(add_byte_products(quad, vu32::set(0x00020002u)), less),
          add_halves(add_byte_products(quad, vu32::set(0x02000200u)), less)};
}

#if FK_HAS_AVX512
// Magnitudes of the codes of 128 to 255; the others mirror them.
struct Magnitudes {
  alignas(64) uint8_t of[128];
  constexpr Magnitudes() : of() {
    for (uint32_t i = 0; i < 128; ++i) of[i] = static_cast<uint8_t>(normal_code(128 + i));
  }
};
inline constexpr Magnitudes MAGNITUDES{};
#endif

#if FK_HAS_VBMI && FK_HAS_GFNI
FK_INLINE Pairs normal_codes(vu32 quad) {
  // Rows of a matrix make the bits of a byte, its lowest byte the highest bit: one matrix the seven low bits, flipped
  // where the highest is 0, the other 1, or -1 where that is 0.
  const __m512i mirror = _mm512_set1_epi64(0x8182848890A0C000), sign = _mm512_set1_epi64(0x0080808080808080);
  const __m512i index = _mm512_gf2p8affine_epi64_epi8(quad.v, mirror, 0x7F);
  const vu32 magnitudes = {
      _mm512_permutex2var_epi8(_mm512_load_si512(MAGNITUDES.of), index, _mm512_load_si512(MAGNITUDES.of + 64))};
  return {add_byte_products(magnitudes, {_mm512_maskz_gf2p8affine_epi64_epi8(0x5555555555555555, quad.v, sign, 0xFF)}),
          add_byte_products(magnitudes, {_mm512_maskz_gf2p8affine_epi64_epi8(0xAAAAAAAAAAAAAAAA, quad.v, sign, 0xFF)})};
}
#elif FK_HAS_AVX512
// Of bytes in the upper halves of lanes of 16 bits.
FK_INLINE vu32 normal_codes_of(vu32 bytes) {
  const __m512i upper = _mm512_srai_epi16(bytes.v, 15);                          // all ones from 128 on
  const __m512i index = _mm512_ternarylogic_epi32(bytes.v, upper, upper, 0xC3);  // flipped below 128
  // Two magnitudes, and 1 or -1 beside the one that the lowest bit of the index names.
  const __m512i two = _mm512_permutex2var_epi16(_mm512_load_si512(MAGNITUDES.of), _mm512_srli_epi16(index, 9),
                                                _mm512_load_si512(MAGNITUDES.of + 64));
  const __m512i second = _mm512_srai_epi16(_mm512_slli_epi16(index, 7), 15);
  const __m512i place = _mm512_xor_si512(second, _mm512_set1_epi16(0x00FF));
  const __m512i sign = _mm512_ternarylogic_epi32(upper, _mm512_set1_epi16(0x0101), place, 0x8A);
  return {_mm512_maddubs_epi16(two, sign)};
}
FK_INLINE Pairs normal_codes(vu32 quad) {
  return {normal_codes_of({_mm512_slli_epi16(quad.v, 8)}), normal_codes_of(quad)};
}
#elif !FK_HAS_AVX512
// Magnitudes of the codes of 128 to 255 in tables of 16, each but the first xor the one before it: the xor of tables 0
// to k is table k. Twice, for both halves of a vector.
struct MagnitudeSteps {
  alignas(32) uint8_t of[8][32];
  constexpr MagnitudeSteps() : of() {
    for (uint32_t i = 0; i < 256; ++i) {
      const uint32_t k = i / 32, at = 128 + 16 * k + i % 16;
      of[k][i % 32] = static_cast<uint8_t>(normal_code(at) ^ (k ? normal_code(at - 16) : 0));
    }
  }
};
inline constexpr MagnitudeSteps MAGNITUDE_STEPS{};

FK_INLINE Pairs normal_codes(vu32 quad) {
  const __m256i centred = _mm256_xor_si256(quad.v, _mm256_set1_epi8(-128));
  const __m256i negative = _mm256_cmpgt_epi8(_mm256_setzero_si256(), centred);
  // Where the place is below 16 k its highest bit is 1 by then, and a shuffle gives 0.
  __m256i place = _mm256_xor_si256(centred, negative), magnitude = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    const __m256i table = _mm256_load_si256(reinterpret_cast<const __m256i*>(MAGNITUDE_STEPS.of[k]));
    magnitude = _mm256_xor_si256(magnitude, _mm256_shuffle_epi8(table, place));
    place = _mm256_sub_epi8(place, _mm256_set1_epi8(16));
  }
  const __m256i sign = _mm256_or_si256(negative, _mm256_set1_epi8(1));
  return {add_byte_products({magnitude}, {_mm256_and_si256(sign, _mm256_set1_epi16(0x00FF))}),
          add_byte_products({magnitude}, {_mm256_andnot_si256(_mm256_set1_epi16(0x00FF), sign)})};
}
#endif

}  // namespace integers_detail

// Digits of all inputs, [group of pixels][quad of columns][pixel][digit][even, odd].
class IntegerInput {
 public:
  static bool serves(const VectorInput& input, const Frozen& f) {
    return in_common_range(input, f.cols, integers_detail::TWO_DIGITS - 8);
  }

  IntegerInput(const VectorInput& input, const Frozen& f)
      : pixels_(input.pixels),
        quads_(input.ld / 4),
        // Half precision rounds to 11 bits, bfloat16 to 8: 15 below the largest are enough unless many inputs are small
        // beside it.
        digits_(HAS_HALVES && input.dtype != FLOAT32 && in_common_range(input, f.cols, input.dtype == FLOAT16 ? 4 : 5)
                    ? 1
                    : 2),
        memory_(static_cast<size_t>(2 * pixels_ * quads_ * digits_)) {
    for (int64_t p = 0; p < pixels_; ++p) {
      const int largest = static_cast<int>(std::max<uint32_t>(input.largest(p) >> 23, 1));
      const int exponent = (digits_ == 1 ? integers_detail::ONE_DIGIT : integers_detail::TWO_DIGITS) + 126 - largest;
      unit_[p] = std::ldexp(1.0, -exponent);
      put(input.of(p), p, exponent);
    }
  }

  int64_t pixels() const { return pixels_; }
  int digits() const { return digits_; }
  // Of a group of `width` pixels; each quad has 2 * width * digits() words.
  const uint32_t* group(int64_t pixel) const { return memory_.data() + 2 * pixel * quads_ * digits_; }
  // Pixels of the pass that starts at this one.
  int64_t width(int64_t pixel) const {
    const int64_t left = pixels_ - pixel;
    return left >= 8 && digits_ == 1 ? 8 : left >= 4 ? 4 : left >= 2 ? 2 : 1;
  }
  double unit(int64_t pixel) const { return unit_[pixel]; }

 private:
  void put(const float* x, int64_t pixel, int exponent) {
    int64_t first = 0;
    while (first + width(first) <= pixel) first += width(first);
    const int64_t step = 2 * width(first) * digits_;
    uint32_t* const out = memory_.data() + 2 * digits_ * (first * quads_ + pixel - first);
    const PowerOfTwo unit(exponent);
    uint64_t fixed[VL / 2];
    for (int64_t i = 0; i < 4 * quads_; i += VL) {
      round_to_integers(unit.times(vf32::load(x + i))).store(fixed);
      for (int64_t q = 0; q < VL / 4; ++q) put_quad(fixed + 2 * q, out + (i / 4 + q) * step);
    }
  }

  // Two columns in each integer of 64 bits become pairs (0, 2) and (1, 3).
  void put_quad(const uint64_t* columns, uint32_t* out) const {
    constexpr uint64_t LOW = 0x0000FFFF0000FFFF, ONES = 0x0000000100000001;
    const uint64_t lower = (columns[0] & LOW) | (columns[1] & LOW) << 16;
    memcpy(out, &lower, 8);
    if (digits_ == 1) return;
    // A lower digit whose highest bit is 1 is negative: the upper has one more.
    const auto upper = [](uint64_t two) { return ((two >> 16 & LOW) + (two >> 15 & ONES)) & LOW; };
    const uint64_t higher = upper(columns[0]) | upper(columns[1]) << 16;
    memcpy(out + 2, &higher, 8);
  }

  int64_t pixels_, quads_;
  int digits_;
  std::vector<uint32_t> memory_;
  double unit_[integers_detail::MOST_PIXELS];  // of the sums of lower digits
};

// Sums of 32 rows at a time, or 16.
class IntegerSums {
 public:
  using Input = IntegerInput;
  static constexpr int64_t ROWS = 2 * VL, PIXELS = integers_detail::MOST_PIXELS;

  static int64_t scratch_bytes(const Frozen&) {
    return 4 * ROWS * (integers_detail::CHUNK_OF_WORDS + 8 * integers_detail::SUM_WORDS) + 8 * ROWS * PIXELS;
  }
  static bool serves(const Frozen& f) { return f.code == UNIFORM_CODE || f.code == NORMAL_CODE; }

  IntegerSums(const Frozen& f, const IntegerInput& input, Scratch& scratch)
      : f_(f),
        input_(input),
        keep_(scratch.take<uint32_t>(integers_detail::CHUNK_OF_WORDS * ROWS)),
        draw_(scratch.take<uint32_t>(8 * integers_detail::SUM_WORDS * ROWS)),
        total_(scratch.take<double>(ROWS * PIXELS)) {}

  // out[pixel][row], row stride ROWS.
  void operator()(int64_t row0, int64_t rows, float* out) {
    using namespace integers_detail;
    RowBlock block(f_, row0, rows, ROWS);
    std::fill(total_, total_ + input_.pixels() * ROWS, 0.0);
    for (int64_t word = 0; word < f_.words; word += CHUNK_OF_WORDS) {
      const int64_t count = std::min(CHUNK_OF_WORDS, f_.words - word);
      block.prefetch_following(word, count);
      block.next_keep(count, keep_);
      for (int64_t w = 0; w < count; w += SUM_WORDS) {
        const int64_t words = std::min(SUM_WORDS, count - w);
        block.next_draw(words, draw_);
        if constexpr (HAS_HALVES) {
          if (input_.digits() == 1) {
            add<1>(word + w, words, keep_ + w * ROWS);
            continue;
          }
        }
        add<2>(word + w, words, keep_ + w * ROWS);
      }
    }
    for (int64_t p = 0; p < input_.pixels(); ++p) {
      for (int64_t r = 0; r < ROWS; ++r) {
        out[p * ROWS + r] = static_cast<float>(total_[p * ROWS + r] * input_.unit(p));
      }
    }
  }

 private:
  template <int DIGITS>
  void add(int64_t word, int64_t words, const uint32_t* keep) {
    for (int64_t p = 0; p < input_.pixels(); p += input_.width(p)) {
      switch (input_.width(p)) {
        case 1:
          add_pixels<DIGITS, 1>(p, word, words, keep);
          break;
        case 2:
          add_pixels<DIGITS, 2>(p, word, words, keep);
          break;
        case 4:
          add_pixels<DIGITS, 4>(p, word, words, keep);
          break;
        default:
          if constexpr (DIGITS == 1) add_pixels<DIGITS, 8>(p, word, words, keep);
      }
    }
  }
  template <int DIGITS, int WIDTH>
  void add_pixels(int64_t pixel, int64_t word, int64_t words, const uint32_t* keep) {
    if (f_.code == UNIFORM_CODE) {
      add_products_of<UNIFORM_CODE, DIGITS, WIDTH>(pixel, word, words, keep);
    } else {
      add_products_of<NORMAL_CODE, DIGITS, WIDTH>(pixel, word, words, keep);
    }
  }

  // A function of its own: within others its sums do not stay in registers.
  template <int CODE, int DIGITS, int WIDTH>
  __attribute__((noinline)) void add_products_of(int64_t pixel, int64_t word, int64_t words, const uint32_t* keep) {
    using namespace integers_detail;
    // A multiplication waits for the last one into its sum: at least eight of them.
    constexpr int SUMS = WIDTH * DIGITS, VECTORS = ROWS / VL, COPIES = SUMS >= 4 ? 1 : 2;
    vu32 sums[VECTORS][COPIES][SUMS];
#pragma GCC unroll 2
    for (auto& vector : sums) {
#pragma GCC unroll 2
      for (auto& copy : vector) {
#pragma GCC unroll 8
        for (vu32& sum : copy) sum = vu32::set(0);
      }
    }
    const uint32_t* digits = input_.group(pixel) + word * 8 * 2 * SUMS;
    for (int64_t w = 0; w < words; ++w, digits += 8 * 2 * SUMS) {
      Pairs kept[VECTORS];
      for (int v = 0; v < VECTORS; ++v) kept[v] = twice(vu32::load(keep + w * ROWS + v * VL));
#pragma GCC unroll 8
      for (int i = 0; i < 8; ++i) {
        Pairs codes[VECTORS];
#pragma GCC unroll 2
        for (int v = 0; v < VECTORS; ++v) {
          codes[v] = codes_of<CODE>(vu32::load(draw_ + (8 * w + i) * ROWS + v * VL));
          codes[v] = {where_kept(kept[v].even, i, codes[v].even), where_kept(kept[v].odd, i, codes[v].odd)};
        }
#pragma GCC unroll 8
        for (int s = 0; s < SUMS; ++s) {
          const uint32_t* const pair = digits + 2 * (i * SUMS + s);
          const vu32 even = vu32::set(pair[0]), odd = vu32::set(pair[1]);
#pragma GCC unroll 2
          for (int v = 0; v < VECTORS; ++v) {
            sums[v][0][s] = add_products(sums[v][0][s], codes[v].even, even);
            sums[v][COPIES - 1][s] = add_products(sums[v][COPIES - 1][s], codes[v].odd, odd);
          }
        }
      }
    }
    int32_t sum[SUMS][ROWS];
#pragma GCC unroll 8
    for (int s = 0; s < SUMS; ++s) {
#pragma GCC unroll 2
      for (int v = 0; v < VECTORS; ++v) {
        const vu32 first = sums[v][0][s], last = sums[v][COPIES - 1][s];
        (COPIES > 1 ? first + last : first).store(sum[s] + v * VL);
      }
    }
    for (int p = 0; p < WIDTH; ++p) {
      double* const total = total_ + (pixel + p) * ROWS;
      for (int64_t r = 0; r < ROWS; ++r) total[r] += sum[DIGITS * p][r];
      if constexpr (DIGITS > 1) {
        for (int64_t r = 0; r < ROWS; ++r) total[r] += 0x1p16 * sum[DIGITS * p + 1][r];
      }
    }
  }

  template <int CODE>
  static FK_INLINE integers_detail::Pairs codes_of(vu32 quad) {
    if constexpr (CODE == NORMAL_CODE) return integers_detail::normal_codes(quad);
    return integers_detail::uniform_codes(quad);
  }

  const Frozen& f_;
  const IntegerInput& input_;
  uint32_t *keep_, *draw_;
  double* total_;
};

}  // namespace fk::FK_LEVEL_NS
