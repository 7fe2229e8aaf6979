// One or two pixels: the inputs that a row keeps are moved together, and meet its values in one dot product.
#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"
#include "cpu/small_batch/input.h"
#include "cpu/stored/decode.h"
#include "cpu/stored/stored.h"

namespace fk::FK_ISA_NS {

namespace {

constexpr int64_t ROWS = 16;  // stored together
constexpr int CHAINS = 32 / VL;
constexpr int64_t FETCH_ROWS = 3;  // ahead

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
  with_dtype(dtype, [&](auto kind) {
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

// Values and bits of a row on their way to the cache: a row reads its bits first and then, all at once, its values.
void fetch(const Frozen& f, int64_t row) {
  if (row >= f.rows) return;
  const int64_t bytes = f.value_dtype == FLOAT32 ? 4 : f.value_dtype == INT8 ? 1 : 2;
  const int64_t begin = f.offsets[row * f.chunks()] * bytes, end = f.offsets[(row + 1) * f.chunks()] * bytes;
  const char* const values = static_cast<const char*>(f.values);
  const char* const words = reinterpret_cast<const char*>(f.keep + row * f.words);
  for (int64_t i = begin; i < end; i += 64) __builtin_prefetch(values + i);
  for (int64_t i = 0; i < 4 * f.words; i += 64) __builtin_prefetch(words + i);
}

// Inputs in the order of the bits of their words: [pixel][word][bit].
std::vector<float> in_bit_order(const VectorInput& input, const Frozen& f) {
  std::vector<float> x(static_cast<size_t>(input.pixels * 32 * f.words));
  for (int64_t pixel = 0; pixel < input.pixels; ++pixel) {
    const float* const from = input.of(pixel);
    float* const to = x.data() + pixel * 32 * f.words;
    each_column(f.cols, [&](int64_t column, int64_t place) { to[place] = from[column]; });
  }
  return x;
}

}  // namespace

bool stored_vector_serves(const Call& c) {
  return is_stored(c) && c.layer.groups == 1 && c.pixels <= STORED_VECTOR_PIXELS;
}

void convolve_stored_vector(const Call& call) {
  const Frozen& f = call.f;
  const Grid grid = narrow_grid(call.g);
  Run runs[STORED_VECTOR_PIXELS];
  const int64_t run_count = find_runs(grid, 0, call.pixels, runs);
  const std::vector<float> x = in_bit_order(VectorInput(f, call.g, call.wide, grid, runs, run_count), f);
  const Result result = narrow_result(call);
  const int64_t blocks = divide_up(f.rows, ROWS), per_task = std::clamp<int64_t>(blocks / (8 * call.threads), 1, 16);
  parallel_for(call.threads, divide_up(blocks, per_task), [&](int64_t task) {
    Scratch scratch(4 * (32 * f.words + LIST_SLACK + STORED_VECTOR_PIXELS * ROWS) + 128);
    float* const kept = scratch.take<float>(32 * f.words + LIST_SLACK);
    float* const sums = scratch.take<float>(STORED_VECTOR_PIXELS * ROWS);
    for (int64_t row0 = task * per_task * ROWS; row0 < std::min((task + 1) * per_task * ROWS, f.rows); row0 += ROWS) {
      const int64_t rows = std::min(ROWS, f.rows - row0);
      for (int64_t row = row0; row < row0 + rows; ++row) {
        const int64_t first = f.offsets[row * f.chunks()];
        fetch(f, row + FETCH_ROWS);
        for (int64_t pixel = 0; pixel < call.pixels; ++pixel) {
          const int64_t count = compress(f.keep + row * f.words, f.words, x.data() + pixel * 32 * f.words, kept);
          const float sum = row_sum(f, first, count, kept);
          sums[pixel * ROWS + row - row0] = f.row_scale ? sum * f.row_scale[row] : sum;
        }
      }
      result.store_channels(sums, ROWS, row0, rows, runs, run_count);
    }
  });
}

}  // namespace fk::FK_ISA_NS
