// Few pixels on integer tiles: inputs become four signed digits of base 256, weights bytes -1, 0 and 1 (or half codes).
// Sums of digits are exact in int32, so their order is free. One tile product takes 64 columns of 16 rows.
#pragma once
#include <immintrin.h>

#include "vector_input.h"
#include "words.h"

namespace fk::FK_ISA_NS {

namespace digits_detail {

constexpr int DIGITS = 4, MOST_PIXELS = 4;
constexpr int TOP_EXPONENT = 30;   // inputs are scaled below 2^30: the carries of signed digits need room
constexpr int LOST_EXPONENT = 22;  // an input this far below the largest keeps 8 bits
constexpr int64_t TILE_ROWS = 16, TILE_BYTES = 1024, PAIR = 2;  // words of a tile
constexpr int64_t BLOCK_ROWS = 2 * TILE_ROWS;
constexpr int64_t CHUNK_OF_WORDS = 16;
constexpr int64_t DIGIT_COLS = int64_t{1} << 16;  // longest sum of digits times codes that stays in int32

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums [digit][row], 4 the digits of 64 columns, 5 and 6 their weights.
class Tiles {
 public:
  explicit Tiles(int64_t digit_rows) {
    TileShapes shapes;
    for (int t = 0; t < 7; ++t) {
      shapes.bytes[t] = 64;
      shapes.rows[t] = static_cast<uint8_t>(t < 5 ? digit_rows : TILE_ROWS);
    }
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;
};

// gf2p8affine's matrix for the byte -1, 0 or 1 of a keep bit and its sign bit; without one 0 or 1.
FK_INLINE __m512i ternary_matrix(int keep, int sign) {
  const uint64_t copies = sign < 0 ? 0 : 0x0001010101010101u * (uint64_t{1} << sign);
  return _mm512_set1_epi64(static_cast<int64_t>(uint64_t{1} << (56 + keep) | copies));
}

// Bytes of one word of 16 rows to out[8][64]: vector i holds bits i, 8 + i, 16 + i and 24 + i of each row.
FK_INLINE void put_signs(vu32 keep, vu32 sign, char* out) {
  const vu32 low = vu32::set(0x0F0F0F0Fu), negative = keep & sign;
  const __m512i first = select_bits(low, keep, shl<4>(negative)).v, second = select_bits(low, shr<4>(keep), negative).v;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i matrix = ternary_matrix(i, 4 + i);
    _mm512_store_si512(out + 64 * i, _mm512_gf2p8affine_epi64_epi8(first, matrix, 0));
    _mm512_store_si512(out + 64 * (4 + i), _mm512_gf2p8affine_epi64_epi8(second, matrix, 0));
  }
}
FK_INLINE void put_ones(vu32 keep, char* out) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm512_store_si512(out + 64 * i, _mm512_gf2p8affine_epi64_epi8(keep.v, ternary_matrix(i, -1), 0));
  }
}

// (code - 1) / 2 of a normal draw, in eight bits; the table's lower half mirrors the upper.
struct HalfCodes {
  alignas(64) int8_t upper[128];
  constexpr HalfCodes() : upper() {
    for (uint32_t i = 0; i < 128; ++i) upper[i] = static_cast<int8_t>((normal_code(128 + i) - 1) / 2);
  }
};
inline constexpr HalfCodes HALF_CODES{};

template <int CODE>
FK_INLINE __m512i half_code(__m512i draw) {
  if constexpr (CODE == UNIFORM_CODE) return _mm512_xor_si512(draw, _mm512_set1_epi8(-128));
  const __m512i ones = _mm512_set1_epi8(-1), none = _mm512_setzero_si512();
  const __mmask64 lower = ~_mm512_movepi8_mask(draw);
  const __m512i mirror = _mm512_mask_blend_epi8(lower, none, ones), index = _mm512_xor_si512(draw, mirror);
  const __m512i value =
      _mm512_permutex2var_epi8(_mm512_load_si512(HALF_CODES.upper), index, _mm512_load_si512(HALF_CODES.upper + 64));
  return _mm512_xor_si512(value, mirror);
}

// Kept half codes of one word of 16 rows to halves[8][64] and their count to ones[8][64], in the order of columns.
template <int CODE>
FK_INLINE void put_halves(vu32 keep, const uint32_t* quads, int64_t ld, char* halves, char* ones) {
  // Bytes (0, 2) or (1, 3) of a word hold columns 0 to 15 or 16 to 31: even ones first.
  const __m512i low = _mm512_shuffle_epi8(keep.v, _mm512_set4_epi32(0x0E0C0E0C, 0x0A080A08, 0x06040604, 0x02000200));
  const __m512i high = _mm512_shuffle_epi8(keep.v, _mm512_set4_epi32(0x0F0D0F0D, 0x0B090B09, 0x07050705, 0x03010301));
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const uint32_t bits = 0x02020101u << 2 * (i & 3);
    const __mmask64 kept = _mm512_test_epi8_mask(i < 4 ? low : high, vu32::set(bits).v);
    const __m512i value = half_code<CODE>(_mm512_loadu_si512(quads + i * ld));
    _mm512_store_si512(halves + 64 * i, _mm512_maskz_mov_epi8(kept, value));
    _mm512_store_si512(ones + 64 * i, _mm512_maskz_set1_epi8(kept, 1));
  }
}

}  // namespace digits_detail

// The digits of all inputs: tiles [two words][pixel, digit][64 columns], columns in the order that the weights come in.
class DigitInput {
 public:
  // Whether fixed point keeps what the inputs say: finite, and few of them lost far below the largest.
  static bool serves(const VectorInput& input, const Frozen& f) {
    using namespace digits_detail;
    for (int64_t p = 0; p < input.pixels; ++p) {
      const uint32_t largest = input.largest(p), lost = LOST_EXPONENT << 23;
      if (largest >= 0x7F800000u) return false;
      if (largest > lost && 4 * input.count_below(p, largest - lost) > f.cols) return false;
    }
    return true;
  }

  DigitInput(const VectorInput& input, const Frozen& f)
      : pixels_(input.pixels), memory_(static_cast<size_t>(input.ld * digit_rows() + 64)) {
    using namespace digits_detail;
    char* const start = memory_.data();
    tiles_ = start + (64 - reinterpret_cast<uintptr_t>(start) % 64);
    for (int64_t p = 0; p < pixels_; ++p) {
      const uint32_t largest = input.largest(p);
      exponent_[p] = TOP_EXPONENT + 126 - static_cast<int>(std::max<uint32_t>(largest >> 23, 1));
      for (int64_t word = 0; word < input.ld / 32; ++word)
        put_word(input.of(p) + 32 * word, p, word, f.code == UNIFORM_CODE || f.code == NORMAL_CODE);
    }
  }

  int64_t digit_rows() const { return digits_detail::DIGITS * pixels_; }
  int64_t pixels() const { return pixels_; }
  const char* tile(int64_t pair) const { return tiles_ + pair * 64 * digit_rows(); }

  // out[pixel][row] (row stride BLOCK_ROWS) = sums of 16 rows; twice the halves plus the ones where there are halves.
  void finish(const int32_t* sums, const int32_t* halves, float* out) const {
    for (int64_t p = 0; p < pixels_; ++p) {
      for (int64_t half = 0; half < 2; ++half) {
        __m512d total = _mm512_setzero_pd();
        for (int64_t d = digits_detail::DIGITS - 1; d >= 0; --d) {
          const int64_t at = (digits_detail::DIGITS * p + d) * digits_detail::TILE_ROWS + 8 * half;
          __m512d digit = widened(sums + at);
          if (halves) digit = _mm512_add_pd(digit, _mm512_mul_pd(widened(halves + at), _mm512_set1_pd(2.0)));
          total = _mm512_add_pd(_mm512_mul_pd(total, _mm512_set1_pd(256.0)), digit);
        }
        total = _mm512_scalef_pd(total, _mm512_set1_pd(-exponent_[p]));
        _mm256_storeu_ps(out + p * digits_detail::BLOCK_ROWS + 8 * half, _mm512_cvtpd_ps(total));
      }
    }
  }

 private:
  static FK_INLINE __m512d widened(const int32_t* p) {
    return _mm512_cvtepi32_pd(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }

  void put_word(const float* x, int64_t pixel, int64_t word, bool natural_order) {
    using namespace digits_detail;
    const __m512i carry = _mm512_set1_epi32(0x00808080);
    __m512i fixed[2];
    for (int i = 0; i < 2; ++i) {
      const __m512 scaled =
          _mm512_scalef_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(static_cast<float>(exponent_[pixel])));
      // Each lower byte b of the sum stands for the digit b - 128, and its top byte for itself.
      fixed[i] = _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(scaled), carry), carry);
    }
    alignas(64) uint8_t index[64] = {};
    for (int n = 0; n < 32; ++n)
      index[n] = static_cast<uint8_t>(4 * (natural_order ? n : column_of_bit(n / 4 + 8 * (n % 4))));
    for (int d = 0; d < DIGITS; ++d) {
      const __m512i at = _mm512_add_epi8(_mm512_load_si512(index), _mm512_set1_epi8(static_cast<char>(d)));
      const __m512i digits = _mm512_permutex2var_epi8(fixed[0], at, fixed[1]);
      char* const out = tiles_ + (word / PAIR * digit_rows() + DIGITS * pixel + d) * 64 + word % PAIR * 32;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_castsi512_si256(digits));
    }
  }

  int64_t pixels_;
  std::vector<char> memory_;
  char* tiles_;
  int exponent_[digits_detail::MOST_PIXELS];
};

// Sums of 32 rows at a time.
class DigitSums {
 public:
  using Input = DigitInput;
  static constexpr int64_t ROWS = digits_detail::BLOCK_ROWS, PIXELS = digits_detail::MOST_PIXELS;
  static constexpr int64_t SCRATCH_BYTES = 9 * digits_detail::CHUNK_OF_WORDS * ROWS * 4 + 8 * digits_detail::TILE_BYTES;

  static bool serves(const Frozen& f) { return f.cols <= digits_detail::DIGIT_COLS; }

  DigitSums(const Frozen& f, const DigitInput& input, Scratch& scratch)
      : f_(f),
        input_(input),
        keep_(scratch.take<uint32_t>(digits_detail::CHUNK_OF_WORDS * ROWS)),
        draw_(scratch.take<uint32_t>(8 * digits_detail::CHUNK_OF_WORDS * ROWS)),
        weights_(scratch.take<char>(8 * digits_detail::TILE_BYTES)),
        tiles_(input.digit_rows()) {}

  // out[pixel][row], row stride ROWS; zero past `rows`.
  void operator()(int64_t row0, int64_t rows, float* out) {
    switch (f_.code) {
      case SIGN_CODE:
        return run<SIGN_CODE>(row0, rows, out);
      case CONSTANT_CODE:
        return run<CONSTANT_CODE>(row0, rows, out);
      case UNIFORM_CODE:
        return run<UNIFORM_CODE>(row0, rows, out);
      default:
        return run<NORMAL_CODE>(row0, rows, out);
    }
  }

 private:
  template <int CODE>
  void run(int64_t row0, int64_t rows, float* out) {
    using namespace digits_detail;
    constexpr bool HALVES = CODE == UNIFORM_CODE || CODE == NORMAL_CODE;
    RowBlock block(f_, row0, rows, ROWS);
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t word = 0; word < f_.words; word += CHUNK_OF_WORDS) {
      const int64_t count = std::min(CHUNK_OF_WORDS, f_.words - word);
      block.prefetch_following(word, count);
      block.next(count, keep_, draw_);
      // Past the last word the digits are 0, and the weights whatever the buffer holds.
      for (int64_t w = 0; w < count; w += PAIR) {
        char* const weights = weights_ + w / PAIR % 2 * 4 * TILE_BYTES;
        put<CODE>(w, 0, weights);
        put<CODE>(w, 1, weights + 2 * TILE_BYTES);
        _tile_loadd(4, input_.tile((word + w) / PAIR), 64);
        _tile_loadd(5, weights, 64);
        _tile_loadd(6, weights + 2 * TILE_BYTES, 64);
        _tile_dpbssd(0, 4, 5);
        _tile_dpbssd(1, 4, 6);
        if constexpr (HALVES) {
          _tile_loadd(5, weights + TILE_BYTES, 64);
          _tile_loadd(6, weights + 3 * TILE_BYTES, 64);
          _tile_dpbssd(2, 4, 5);
          _tile_dpbssd(3, 4, 6);
        }
      }
    }
    alignas(64) int32_t sums[4][MOST_PIXELS * DIGITS * TILE_ROWS];
    _tile_stored(0, sums[0], 64);
    _tile_stored(1, sums[1], 64);
    _tile_stored(2, sums[2], 64);
    _tile_stored(3, sums[3], 64);
    for (int h = 0; h < 2; ++h) input_.finish(sums[h], HALVES ? sums[2 + h] : nullptr, out + h * TILE_ROWS);
  }

  // Two words of 16 rows: the ones, or ternary weights, and behind them the halves.
  template <int CODE>
  FK_INLINE void put(int64_t word, int64_t half, char* out) const {
    using namespace digits_detail;
#pragma GCC unroll 2
    for (int64_t w = 0; w < PAIR; ++w) {
      const int64_t lane = half * TILE_ROWS;
      const vu32 keep = vu32::load(keep_ + (word + w) * ROWS + lane);
      char* const to = out + 512 * w;
      if constexpr (CODE == SIGN_CODE) {
        put_signs(keep, vu32::load(draw_ + (word + w) * ROWS + lane), to);
      } else if constexpr (CODE == CONSTANT_CODE) {
        put_ones(keep, to);
      } else {
        put_halves<CODE>(keep, draw_ + 8 * (word + w) * ROWS + lane, ROWS, to + TILE_BYTES, to);
      }
    }
  }

  const Frozen& f_;
  const DigitInput& input_;
  uint32_t *keep_, *draw_;
  char* weights_;
  digits_detail::Tiles tiles_;
};

using VectorSums = DigitSums;

}  // namespace fk::FK_ISA_NS
