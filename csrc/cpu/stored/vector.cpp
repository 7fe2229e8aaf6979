// Few pixels. The inputs that a row keeps are moved together and meet its values in one dot product; or values are
// moved to the lanes of their inputs.
#include <cmath>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/small_batch/input.h"
#include "cpu/stored/decode.h"
#include "cpu/stored/stored.h"

namespace fk::FK_LEVEL_NS {

namespace {

constexpr int64_t ROWS = 16;  // stored together
constexpr int CHAINS = 32 / VL;

float sum_of(vf32 x) {
  float lane[VL];
  x.store(lane);
  for (int half = VL / 2; half; half /= 2) {
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  }
  return lane[0];
}

vf32 load_values(const void* values, int dtype, int64_t at) {
  if (dtype == INT8) {
    const int8_t* const from = static_cast<const int8_t*>(values) + at;
#if FK_HAS_AVX512
    return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))))};
#elif FK_HAS_AVX2
    return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from))))};
#else
    float lane[VL];
    for (int i = 0; i < VL; ++i) lane[i] = static_cast<float>(from[i]);
    return vf32::load(lane);
#endif
  }
  vf32 found = vf32::zero();
  with_any_dtype(dtype, [&](auto kind) {
    found = load_vector<kind>(static_cast<const typename Element<kind>::Type*>(values) + at);
  });
  return found;
}

// The sum of values [first, first + count) times x; x is written up to a multiple of VL.
template <int DTYPE>
float dot(const Frozen& f, int64_t first, int64_t count, float* x) {
  vf32 sum[CHAINS];
  for (vf32& chain : sum) chain = vf32::zero();
  int64_t i = 0;
  for (; i + CHAINS * VL <= count; i += CHAINS * VL) {
#pragma GCC unroll 8
    for (int c = 0; c < CHAINS; ++c) {
      sum[c] = multiply_add(load_values(f.values, DTYPE, first + i + c * VL), vf32::load(x + i + c * VL), sum[c]);
    }
  }
  for (int c = 0; i + VL <= count; i += VL, ++c) {
    sum[c] = multiply_add(load_values(f.values, DTYPE, first + i), vf32::load(x + i), sum[c]);
  }
  if (i < count) {
    alignas(64) float rest[VL] = {};
    read_values(f, first + i, count - i, rest);
    std::fill(x + count, x + i + VL, 0.0f);
    sum[CHAINS - 1] = multiply_add(vf32::load(rest), vf32::load(x + i), sum[CHAINS - 1]);
  }
  for (int half = CHAINS / 2; half; half /= 2) {
    for (int c = 0; c < half; ++c) sum[c] = sum[c] + sum[c + half];
  }
  return sum_of(sum[0]);
}

#if FK_HAS_AVX512
constexpr int64_t FETCH_VALUES = 1 << 10;  // ahead

// The same for float32 values straight from the bits, for P pixels whose inputs lie `ld` apart: values go to the lanes
// that keep them. No value past those of the row is read. Masks come by sign bits, on the port that does not expand, or
// by a test, on the one that does: both are busy alike.
template <int P>
void expanded_dots(const uint32_t* words, int64_t count, const float* value, const float* x, int64_t ld, float* out) {
  const __m512i low = _mm512_sub_epi32(_mm512_set1_epi32(31), vu32::iota().v);
  const __m512i high = _mm512_sllv_epi32(_mm512_set1_epi32(1 << 16), vu32::iota().v);
  __m512 evens[P][2], odds[P][2];
  for (int p = 0; p < P; ++p) evens[p][0] = evens[p][1] = odds[p][0] = odds[p][1] = _mm512_setzero_ps();
  const auto add = [&](int64_t i, auto chain) {
    const uint32_t* const word = words + i;
    __m512i bits;
    // A broadcast from memory takes a load, one from an integer register the port that expands.
    asm("vpbroadcastd %1, %0" : "=v"(bits) : "m"(*word));
    const __mmask16 even = _mm512_movepi32_mask(_mm512_sllv_epi32(bits, low));
    const __mmask16 odd = _mm512_test_epi32_mask(bits, high);
    const __m512 first = _mm512_maskz_expandloadu_ps(even, value);
    const __m512 second = _mm512_maskz_expandloadu_ps(odd, value + __builtin_popcount(*word & EVEN_COLUMNS));
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const float* const inputs = x + p * ld + 32 * i;
      // with the masks, for a dropped weight must not meet infinity or NaN
      evens[p][chain] = _mm512_mask3_fmadd_ps(first, _mm512_loadu_ps(inputs), evens[p][chain], even);
      odds[p][chain] = _mm512_mask3_fmadd_ps(second, _mm512_loadu_ps(inputs + 16), odds[p][chain], odd);
    }
    value += __builtin_popcount(*word);
  };
  int64_t i = 0;
  for (; i + 2 <= count; i += 2) {
    __builtin_prefetch(value + FETCH_VALUES);
    add(i, std::integral_constant<int, 0>());
    add(i + 1, std::integral_constant<int, 1>());
  }
  if (i < count) add(i, std::integral_constant<int, 0>());
  for (int p = 0; p < P; ++p) {
    const __m512 even = _mm512_add_ps(evens[p][0], evens[p][1]), odd = _mm512_add_ps(odds[p][0], odds[p][1]);
    out[p] = _mm512_reduce_add_ps(_mm512_add_ps(even, odd));
  }
}

using ExpandedDots = void (*)(const uint32_t*, int64_t, const float*, const float*, int64_t, float*);
constexpr ExpandedDots EXPANDED_DOTS[STORED_VECTOR_PIXELS] = {expanded_dots<1>, expanded_dots<2>, expanded_dots<3>,
                                                              expanded_dots<4>};
#elif FK_HAS_AVX2
// The same straight from the bits, for P pixels: values go to the lanes that keep them, a byte of a word at a time. The
// other lanes are inputs times zero. Up to VL values past those of the row are read.
template <int DTYPE, int P>
void expanded_dots(const Frozen& f, const uint32_t* words, int64_t value, const float* x, float* out) {
  constexpr int BYTES = 4, PIXEL_CHAINS = P == 3 ? 2 : BYTES;
  const int64_t ld = 32 * f.words;
  const uint8_t* byte = reinterpret_cast<const uint8_t*>(words);
  vf32 sum[P * PIXEL_CHAINS];
#pragma GCC unroll 8
  for (vf32& chain : sum) chain = vf32::zero();
  for (int64_t i = 0; i < f.words; ++i, x += 32) {
#pragma GCC unroll 4
    for (int b = 0; b < BYTES; ++b, ++byte) {
      const vu32 moved = from_front(as_bits(load_values(f.values, DTYPE, value)), *byte);
      const vf32 values = as_float(moved & vu32::load(KEPT_LANES.lane[*byte]));
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        vf32& chain = sum[p * PIXEL_CHAINS + b % PIXEL_CHAINS];
        chain = multiply_add(values, vf32::load(x + p * ld + 8 * b), chain);
      }
      value += __builtin_popcount(*byte);
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    const vf32* const chains = sum + p * PIXEL_CHAINS;
    const vf32 two = chains[0] + chains[1];
    out[p] = sum_of(PIXEL_CHAINS == 2 ? two : two + (chains[PIXEL_CHAINS - 2] + chains[PIXEL_CHAINS - 1]));
  }
}

// False where fewer than VL values follow those of the row. A sum that is not finite is none: a dropped weight may have
// met infinity or NaN.
bool expanded_row(const Frozen& f, int64_t row, int64_t pixels, const float* x, float* out) {
  if (f.offsets[(row + 1) * f.chunks()] + VL > f.offsets[f.rows * f.chunks()]) return false;
  const uint32_t* const words = f.keep + row * f.words;
  const int64_t first = f.offsets[row * f.chunks()];
  const auto add = [&](auto dtype) {
    if (pixels == 1) return expanded_dots<dtype, 1>(f, words, first, x, out);
    if (pixels == 2) return expanded_dots<dtype, 2>(f, words, first, x, out);
    expanded_dots<dtype, 3>(f, words, first, x, out);
  };
  if (f.value_dtype == INT8) {
    add(std::integral_constant<int, INT8>());
  } else {
    with_any_dtype(f.value_dtype, add);
  }
  return true;
}
#endif

float row_sum(const Frozen& f, int64_t first, int64_t count, float* x) {
  switch (f.value_dtype) {
    case BFLOAT16:
      return dot<BFLOAT16>(f, first, count, x);
    case FLOAT16:
      return dot<FLOAT16>(f, first, count, x);
    case INT8:
      return dot<INT8>(f, first, count, x);
    default:
      return dot<FLOAT32>(f, first, count, x);
  }
}

// sums[i * pixels + p] of row `row0 + i` and pixel p, whose inputs lie in the order of the bits; `room` is for as many
// floats as `room_of` says.
void row_sums(const Frozen& f, int64_t row0, int64_t rows, int64_t pixels, const float* x, float* room, float* sums) {
#if FK_HAS_VBMI
  if (gathers_positions(f, pixels)) return position_sums(f, row0, rows, pixels, x, room, sums);
#endif
  for (int64_t row = row0; row < row0 + rows; ++row, sums += pixels) {
    const uint32_t* const words = f.keep + row * f.words;
    const int64_t first = f.offsets[row * f.chunks()];
    bool found = false;
#if FK_HAS_AVX512
    if (f.value_dtype == FLOAT32) {
      const float* const values = static_cast<const float*>(f.values) + first;
      EXPANDED_DOTS[pixels - 1](words, f.words, values, x, 32 * f.words, sums);
      continue;
    }
#elif FK_HAS_AVX2
    found = expanded_row(f, row, pixels, x, sums);
#endif
    for (int64_t pixel = 0; pixel < pixels; ++pixel) {
      if (found && std::isfinite(sums[pixel])) continue;
      const int64_t count = compress(words, f.words, x + pixel * 32 * f.words, room);
      sums[pixel] = row_sum(f, first, count, room);
    }
  }
}

int64_t room_of(const Frozen& f) {
#if FK_HAS_VBMI
  return std::max(position_floats(f.words), 32 * f.words + LIST_SLACK);
#else
  return 32 * f.words + LIST_SLACK;
#endif
}

// Inputs in the order of the bits of their words: [pixel][word][bit].
std::vector<float> in_bit_order(const VectorInput& input, const Frozen& f) {
  std::vector<float> x(static_cast<size_t>(input.pixels * 32 * f.words));
  float* to = x.data();
  for (int64_t pixel = 0; pixel < input.pixels; ++pixel) {
    const float* from = input.of(pixel);
    for (int64_t word = 0; word < f.words; ++word, from += 32, to += 32) {
      for (int i = 0; i < 16; ++i) {
        to[i] = from[2 * i];
        to[16 + i] = from[2 * i + 1];
      }
    }
  }
  return x;
}

}  // namespace

bool stored_vector_serves(const Call& c) {
  int64_t most = 2;
#if FK_HAS_AVX512
  if (c.f.value_dtype == FLOAT32) most = 4;
#elif FK_HAS_AVX2
  most = 3;
#endif
  return is_stored(c) && c.layer.groups == 1 && c.pixels <= most;
}

void convolve_stored_vector(const Call& call) {
  const Frozen& f = call.f;
  const Grid grid = narrow_grid(call.g);
  Run runs[STORED_VECTOR_PIXELS];
  const int64_t run_count = find_runs(grid, 0, call.pixels, runs);
  const std::vector<float> x = in_bit_order(VectorInput(f, call.g, call.wide, grid, runs, run_count), f);
  const Result result = narrow_result(call);
  const int64_t blocks = divide_up(f.rows, ROWS), per_task = std::clamp<int64_t>(blocks / (8 * call.threads), 1, 16);
  const int64_t task_rows = per_task * ROWS;
  parallel_for(call.threads, divide_up(blocks, per_task), [&](int64_t task) {
    Scratch scratch(4 * (room_of(f) + (task_rows + ROWS) * STORED_VECTOR_PIXELS) + 192);
    float* const room = scratch.take<float>(room_of(f));
    float* const found = scratch.take<float>(task_rows * STORED_VECTOR_PIXELS);
    float* const sums = scratch.take<float>(ROWS * STORED_VECTOR_PIXELS);
    const int64_t first = task * task_rows, end = std::min(first + task_rows, f.rows);
    row_sums(f, first, end - first, call.pixels, x.data(), room, found);
    for (int64_t row0 = first; row0 < end; row0 += ROWS) {
      const int64_t rows = std::min(ROWS, end - row0);
      for (int64_t row = row0; row < row0 + rows; ++row) {
        const float scale = f.row_scale ? f.row_scale[row] : 1.0f;
        for (int64_t pixel = 0; pixel < call.pixels; ++pixel) {
          sums[pixel * ROWS + row - row0] = found[(row - first) * call.pixels + pixel] * scale;
        }
      }
      result.store_channels(sums, ROWS, row0, rows, runs, run_count);
    }
  });
}

}  // namespace fk::FK_LEVEL_NS
