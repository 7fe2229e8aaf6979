// Few pixels on integer tiles: inputs become four signed digits of base 256, weights bytes -1, 0 and 1.
// Sums of digits are exact in int32, so their order is free. One tile product takes 64 columns of 16 rows.
#pragma once
#include <immintrin.h>

#include "cpu/small_batch/digit_order.h"
#include "cpu/words/row_words.h"

namespace fk::FK_LEVEL_NS {

namespace digits_detail {

constexpr int DIGITS = 4, MOST_PIXELS = 4;
constexpr int TOP_EXPONENT = 30;  // inputs are scaled below 2^30: the carries of signed digits need room
constexpr int64_t TILE_ROWS = 16, TILE_BYTES = 1024;
constexpr int64_t TILE_STEP = TILE_BYTES + 64;  // tiles of a chunk do not meet in the same cache sets
constexpr int64_t BLOCK_ROWS = 2 * TILE_ROWS;
constexpr int64_t TILES = 8;                       // of a chunk of 512 columns
constexpr int64_t GROUP_STEP = TILES * TILE_STEP;  // weights of 16 rows
constexpr int64_t MOST_COLS = int64_t{1} << 16;    // far from where a sum of digits leaves int32

struct alignas(64) TileShapes {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 0 to 3 are sums [row][digit], 4 and 5 weights [row][column], 6 and 7 digits [4 columns][digit][column].
class Tiles {
 public:
  explicit Tiles(int64_t digits) {
    TileShapes shapes;
    for (int t = 0; t < 8; ++t) {
      shapes.bytes[t] = static_cast<uint16_t>(t == 4 || t == 5 ? 64 : 4 * digits);
      shapes.rows[t] = TILE_ROWS;
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

// 16 words of a row to byte rows of 8 tiles: tile i holds bits i, 8 + i, 16 + i and 24 + i of each word.
FK_INLINE void put_signs(vu32 keep, vu32 sign, char* out) {
  // Affine products have one port; shifts would share it, multishifts do not.
  const __m512i left = _mm512_set1_epi64(0x342C241C140C043C), right = _mm512_set1_epi64(0x3C342C241C140C04);
  const vu32 low = vu32::set(0x0F0F0F0Fu), negative = keep & sign;
  const __m512i first = select_bits(low, keep, {_mm512_multishift_epi64_epi8(left, negative.v)}).v;
  const __m512i second = select_bits(low, {_mm512_multishift_epi64_epi8(right, keep.v)}, negative).v;
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512i matrix = ternary_matrix(i, 4 + i);
    _mm512_store_si512(out + TILE_STEP * i, _mm512_gf2p8affine_epi64_epi8(first, matrix, 0));
    _mm512_store_si512(out + TILE_STEP * (4 + i), _mm512_gf2p8affine_epi64_epi8(second, matrix, 0));
  }
}
FK_INLINE void put_ones(vu32 keep, char* out) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    _mm512_store_si512(out + TILE_STEP * i, _mm512_gf2p8affine_epi64_epi8(keep.v, ternary_matrix(i, -1), 0));
  }
}

}  // namespace digits_detail

// The digits of all inputs: tiles [chunk][tile][4 columns][pixel, digit][column], columns in the order of the weights.
class DigitInput {
 public:
  static bool serves(const VectorInput& input, const Frozen& f) {
    return in_common_range(input, f.cols, LOST_EXPONENT);
  }

  DigitInput(const VectorInput& input, const Frozen&)
      : pixels_(input.pixels), memory_(static_cast<size_t>(input.ld * digits() + 64)) {
    using namespace digits_detail;
    char* const start = memory_.data();
    tiles_ = start + (64 - reinterpret_cast<uintptr_t>(start) % 64);
    for (int64_t p = 0; p < pixels_; ++p) {
      const uint32_t largest = input.largest(p);
      exponent_[p] = TOP_EXPONENT + 126 - static_cast<int>(std::max<uint32_t>(largest >> 23, 1));
      for (int64_t word = 0; word < input.ld / 32; ++word) put_word(input.of(p) + 32 * word, p, word);
    }
  }

  int64_t digits() const { return digits_detail::DIGITS * pixels_; }
  int64_t pixels() const { return pixels_; }
  const char* tile(int64_t i) const { return tiles_ + i * 64 * digits(); }

  // out[pixel][row], row stride BLOCK_ROWS, of sums[row][digit] of 16 rows.
  void finish(const int32_t* sums, float* out) const {
    using namespace digits_detail;
    const auto four = [&](int64_t row, int64_t p) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(sums + row * digits() + DIGITS * p));
    };
    for (int64_t p = 0; p < pixels_; ++p) {
      const __m512d unit = _mm512_scalef_pd(_mm512_set4_pd(0x1p24, 0x1p16, 0x1p8, 1.0), _mm512_set1_pd(-exponent_[p]));
      for (int64_t r = 0; r < TILE_ROWS; r += 2) {
        const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(four(r, p)), four(r + 1, p), 1);
        const __m512d terms = _mm512_mul_pd(_mm512_cvtepi32_pd(both), unit);
        const __m512d pairs = _mm512_add_pd(terms, _mm512_permute_pd(terms, 0x55));
        const __m512d total = _mm512_add_pd(pairs, _mm512_permutex_pd(pairs, 0x4E));
        out[p * BLOCK_ROWS + r] = static_cast<float>(_mm512_cvtsd_f64(total));
        out[p * BLOCK_ROWS + r + 1] = static_cast<float>(_mm256_cvtsd_f64(_mm512_extractf64x4_pd(total, 1)));
      }
    }
  }

 private:
  void put_word(const float* x, int64_t pixel, int64_t word) {
    using namespace digits_detail;
    const vu32 carry = vu32::set(0x00808080);
    vu32 fixed[2];
    for (int i = 0; i < 2; ++i) {
      const __m512 scaled =
          _mm512_scalef_ps(_mm512_loadu_ps(x + 16 * i), _mm512_set1_ps(static_cast<float>(exponent_[pixel])));
      fixed[i] = signed_digits({_mm512_cvtps_epi32(scaled)}, carry);
    }
    alignas(64) char bytes[128];
    store_ordered(fixed, bytes);
    const int64_t chunk = word / 16, place = word % 16;
    for (int four = 0; four < 8; ++four) {
      char* const to = tiles_ + ((chunk * TILES + four) * TILE_ROWS + place) * 4 * digits() + 4 * DIGITS * pixel;
      memcpy(to, bytes + 16 * four, 16);
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

  static bool serves(const Frozen& f) {
    return (f.code == SIGN_CODE || f.code == CONSTANT_CODE) && f.cols <= digits_detail::MOST_COLS;
  }
  static int64_t scratch_bytes(const Frozen&) { return RowWords::SCRATCH_BYTES + 2 * digits_detail::GROUP_STEP; }

  DigitSums(const Frozen& f, const DigitInput& input, Scratch& scratch)
      : f_(f),
        input_(input),
        words_(f, scratch),
        weights_(scratch.take<char>(2 * digits_detail::GROUP_STEP)),
        tiles_(input.digits()) {}

  // out[pixel][row], row stride ROWS; anything past `rows`.
  void operator()(int64_t row0, int64_t rows, float* out) {
    words_.start(row0, rows);
    clear_sums();
    if (f_.code == SIGN_CODE) {
      add_ternary<true>();
    } else {
      add_ternary<false>();
    }
    finish(out);
  }

 private:
  int64_t chunks() const { return divide_up(f_.words, RowWords::CHUNK); }

  // Two groups of 16 rows, so that the digits of 64 columns are read once for both.
  template <bool SIGNED>
  void add_ternary() {
    using namespace digits_detail;
    for (int64_t chunk = 0; chunk < chunks(); ++chunk) {
      const RowView keep = words_.keep(chunk), sign = SIGNED ? words_.draw(chunk) : RowView{};
      for (int64_t r = 0; r < ROWS; ++r) {
        char* const to = weights_ + r / TILE_ROWS * GROUP_STEP + r % TILE_ROWS * 64;
        // These rows of the next block: a prefetch past the end of a plane does nothing.
        _mm_prefetch(keep.row(r + ROWS), _MM_HINT_T1);
        if constexpr (SIGNED) {
          _mm_prefetch(sign.row(r + ROWS), _MM_HINT_T1);
          put_signs(vu32::load(keep.row(r)), vu32::load(sign.row(r)), to);
        } else {
          put_ones(vu32::load(keep.row(r)), to);
        }
      }
      for (int64_t i = 0; i < TILES; i += 2) {
        multiply<false>(weights_ + i * TILE_STEP, GROUP_STEP, chunk * TILES + i);
        multiply<true>(weights_ + (i + 1) * TILE_STEP, GROUP_STEP, chunk * TILES + i + 1);
      }
    }
  }

  // A tile of weights, and another `step` bytes on, times the same digits; even and odd tiles have sums of their own,
  // for a product waits for the last one into its sums. Tiles must be literals here.
  template <bool ODD>
  FK_INLINE void multiply(const char* weights, int64_t step, int64_t tile) const {
    const int64_t stride = 4 * input_.digits();
    if constexpr (ODD) {
      _tile_loadd(7, input_.tile(tile), stride);
      _tile_loadd(4, weights, 64);
      _tile_dpbssd(2, 4, 7);
      _tile_loadd(5, weights + step, 64);
      _tile_dpbssd(3, 5, 7);
    } else {
      _tile_loadd(6, input_.tile(tile), stride);
      _tile_loadd(4, weights, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, weights + step, 64);
      _tile_dpbssd(1, 5, 6);
    }
  }

  static void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }

  // Sums 0 and 1 are those of even tiles of both groups, 2 and 3 of odd ones.
  void finish(float* out) const {
    using namespace digits_detail;
    alignas(64) int32_t sums[4][TILE_BYTES / 4];
    const int64_t stride = 4 * input_.digits();
    _tile_stored(0, sums[0], stride);
    _tile_stored(1, sums[1], stride);
    _tile_stored(2, sums[2], stride);
    _tile_stored(3, sums[3], stride);
    for (int g = 0; g < 2; ++g) {
      for (int64_t i = 0; i < TILE_ROWS * input_.digits(); i += VL) {
        (vu32::load(sums[g] + i) + vu32::load(sums[2 + g] + i)).store(sums[g] + i);
      }
      input_.finish(sums[g], out + g * TILE_ROWS);
    }
  }

  const Frozen& f_;
  const DigitInput& input_;
  RowWords words_;
  char* weights_;
  digits_detail::Tiles tiles_;
};

using TernarySums = DigitSums;

}  // namespace fk::FK_LEVEL_NS
