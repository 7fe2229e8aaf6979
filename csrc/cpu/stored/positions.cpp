// Few pixels of a sparse weight. Compressing the places of 64 bits at once says where a row keeps its weights, and the
// inputs there are gathered: work in proportion to what is kept, where an expansion's is in proportion to the columns.
#include <algorithm>

#include "cpu/stored/decode.h"
#include "cpu/stored/stored.h"

namespace fk::FK_LEVEL_NS {

#if FK_HAS_VBMI

namespace {

constexpr int64_t POSITION_COLUMNS = 1 << 16;  // a position takes two bytes
constexpr int64_t SLACK = 64;                  // positions past the last that are written
constexpr int64_t FETCH_VALUES = 1 << 10;      // ahead

// On other makers' processors a gather costs more than the expansions that it saves, or it was not measured.
bool gathers_fast() {
  __builtin_cpu_init();
  return __builtin_cpu_is("intel") != 0;
}

struct Places {
  alignas(64) uint8_t place[64];
  constexpr Places() : place() {
    for (int i = 0; i < 64; ++i) place[i] = static_cast<uint8_t>(i);
  }
};
constexpr Places PLACES;

// Where the positions of a row are found, in the order of its bits.
struct Search {
  uint16_t* next;
  __m512i places, base;  // 0 to 63, and the position of the next bit

  FK_INLINE void find(uint64_t bits) {
    const int found = __builtin_popcountll(bits);
    const __m512i place = _mm512_maskz_compress_epi8(bits, places);
    _mm512_storeu_si512(next, _mm512_add_epi16(base, _mm512_cvtepu8_epi16(_mm512_castsi512_si256(place))));
    if (__builtin_expect(found > 32, 0)) {
      const __m512i rest = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(place, 1));
      _mm512_storeu_si512(next + 32, _mm512_add_epi16(base, rest));
    }
    next += found;
    base = _mm512_add_epi16(base, _mm512_set1_epi16(64));
  }
  FK_INLINE void find_pair(const uint32_t* words, int pair) {
    uint64_t bits;
    memcpy(&bits, words + 2 * pair, 8);
    find(bits);
  }
};

FK_INLINE Search search(uint16_t* positions) {
  return {positions, _mm512_load_si512(PLACES.place), _mm512_setzero_si512()};
}

inline void find_all(const uint32_t* words, int64_t count, uint16_t* positions) {
  Search all = search(positions);
  for (int pair = 0; pair < count / 2; ++pair) all.find_pair(words, pair);
  if (count % 2) all.find(words[count - 1]);
}

// 16 values as floats, or those of a mask and zeros.
template <int DTYPE>
inline __m512 load_values(const char* from, __mmask16 mask) {
  if constexpr (DTYPE == FLOAT32) return _mm512_maskz_loadu_ps(mask, from);
  if constexpr (DTYPE == INT8) return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from)));
  const __m256i halves = _mm256_maskz_loadu_epi16(mask, from);
  if constexpr (DTYPE == FLOAT16) return _mm512_cvtph_ps(halves);
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

// The inputs at 16 positions, or at those of a mask and zeros.
inline __m512 gather(const float* x, __m512i positions, __mmask16 mask) {
  // A full mask that the compiler knows lets a gather wait for what its register held before.
  asm("" : "+Yk"(mask));
  return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, positions, x, 4);
}
inline __m512i load_positions(const uint16_t* from) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// out[p] = the sum of the values `first` and on times the inputs at `positions`, for P pixels whose inputs lie `ld`
// apart. Meanwhile the positions of another row are found, since one waits for loads and the other for shuffles.
template <int DTYPE, int P>
FK_INLINE void gathered_dots(const Frozen& f, int64_t first, int64_t count, const uint16_t* positions, const float* x,
                             int64_t ld, const uint32_t* other, int64_t other_words, uint16_t* found, float* out) {
  constexpr int64_t VALUE_BYTES = DTYPE == FLOAT32 ? 4 : DTYPE == INT8 ? 1 : 2;
  const char* values = static_cast<const char*>(f.values) + first * VALUE_BYTES;
  Search ahead = search(found);
  __m512 sum[P][2];
  for (int p = 0; p < P; ++p) sum[p][0] = sum[p][1] = _mm512_setzero_ps();
  const auto add = [&](auto half, __mmask16 mask) {
    __builtin_prefetch(values + FETCH_VALUES * VALUE_BYTES);
    const __m512i index = load_positions(positions);
    const __m512 value = load_values<DTYPE>(values, mask);
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) sum[p][half] = _mm512_fmadd_ps(value, gather(x + p * ld, index, mask), sum[p][half]);
    values += 16 * VALUE_BYTES;
    positions += 16;
  };
  constexpr std::integral_constant<int, 0> FIRST{};
  constexpr std::integral_constant<int, 1> SECOND{};
  const int vectors = static_cast<int>(count / 16), pairs = static_cast<int>(other_words / 2);
  int vector = 0, pair = 0;
  for (; vector + 2 <= vectors && pair + 4 <= pairs; vector += 2, pair += 4) {
    ahead.find_pair(other, pair);
    ahead.find_pair(other, pair + 1);
    add(FIRST, 0xFFFF);
    ahead.find_pair(other, pair + 2);
    ahead.find_pair(other, pair + 3);
    add(SECOND, 0xFFFF);
  }
  for (; pair < pairs; ++pair) ahead.find_pair(other, pair);
  if (other_words % 2) ahead.find(other[other_words - 1]);
  for (; vector + 2 <= vectors; vector += 2) {  // the same chains, wherever the search ended
    add(FIRST, 0xFFFF);
    add(SECOND, 0xFFFF);
  }
  if (vector < vectors) add(FIRST, 0xFFFF);
  add(SECOND, static_cast<__mmask16>((1u << count % 16) - 1));
  for (int p = 0; p < P; ++p) out[p] = _mm512_reduce_add_ps(_mm512_add_ps(sum[p][0], sum[p][1]));
}

// The positions of two rows begin a page, and half a page: a store across two pages is slow, and a load waits for a
// store whose address has the same lower 12 bits.
constexpr int64_t PAGE = 4096;
int64_t positions_apart(int64_t words) { return round_up(32 * words + SLACK, 2048) + 1024; }

template <int DTYPE, int P>
void gathered_rows(const Frozen& f, int64_t row0, int64_t rows, const float* x, uint16_t* room, float* sums) {
  uint16_t* here = room;
  uint16_t* there = here + positions_apart(f.words);
  find_all(f.keep + row0 * f.words, f.words, here);
  for (int64_t row = row0; row < row0 + rows; ++row) {
    const int64_t first = f.offsets[row * f.chunks()], count = f.offsets[(row + 1) * f.chunks()] - first;
    const bool last = row + 1 == row0 + rows;
    gathered_dots<DTYPE, P>(f, first, count, here, x, 32 * f.words, f.keep + (row + 1) * f.words, last ? 0 : f.words,
                            there, sums + (row - row0) * P);
    std::swap(here, there);
  }
}

using Rows = void (*)(const Frozen&, int64_t, int64_t, const float*, uint16_t*, float*);
template <int DTYPE>
constexpr Rows ROWS[GATHERED_PIXELS] = {gathered_rows<DTYPE, 1>, gathered_rows<DTYPE, 2>};

Rows find_rows(int dtype, int64_t pixels) {
  switch (dtype) {
    case BFLOAT16:
      return ROWS<BFLOAT16>[pixels - 1];
    case FLOAT16:
      return ROWS<FLOAT16>[pixels - 1];
    case INT8:
      return ROWS<INT8>[pixels - 1];
    default:
      return ROWS<FLOAT32>[pixels - 1];
  }
}

}  // namespace

int64_t position_floats(int64_t words) { return positions_apart(words) + PAGE / 4; }

bool gathers_positions(const Frozen& f, int64_t pixels) {
  if (pixels > GATHERED_PIXELS || 32 * f.words > POSITION_COLUMNS || !gathers_fast()) return false;
  // Expansions, which float32 values have, serve a second pixel at little cost.
  const int64_t kept = f.offsets[f.rows * f.chunks()], gathered = f.value_dtype == FLOAT32 ? kept * pixels : kept;
  return gathered <= f.rows * f.cols / GATHERED_SHARE;
}

void position_sums(const Frozen& f, int64_t row0, int64_t rows, int64_t pixels, const float* x, float* room,
                   float* sums) {
  const uintptr_t page = (reinterpret_cast<uintptr_t>(room) + PAGE - 1) / PAGE * PAGE;
  find_rows(f.value_dtype, pixels)(f, row0, rows, x, reinterpret_cast<uint16_t*>(page), sums);
}

#endif

}  // namespace fk::FK_LEVEL_NS
