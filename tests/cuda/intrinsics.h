// The names of CUDA that kernels use, on the emulator: vector types, indices, barriers, warp intrinsics, bits.
#pragma once
#include "emulator.h"

struct alignas(8) int2 {
  int x, y;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline int2 make_int2(int x, int y) { return {x, y}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
using std::max;
using std::min;

#define threadIdx emulator::thread_index()
#define blockIdx emulator::block_index()
#define blockDim emulator::block_size()
#define gridDim emulator::grid_size()
// Where an intrinsic is called: its last parameters.
#define EMULATOR_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_HERE) { emulator::synchronize(emulator::State::IN_BLOCK, {file, line}); }
inline void __syncwarp(EMULATOR_HERE) { emulator::synchronize(emulator::State::IN_WARP, {file, line}); }
template <class T>
T __shfl_sync(unsigned mask, T value, int source, EMULATOR_HERE) {
  return emulator::shuffle(value, mask, source, {file, line});
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, EMULATOR_HERE) {
  return emulator::shuffle(value, mask, emulator::lane() ^ bits, {file, line});
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, EMULATOR_HERE) {
  return emulator::shuffle(value, mask, emulator::lane() - (emulator::lane() < by ? 0 : by), {file, line});
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, EMULATOR_HERE) {
  return emulator::shuffle(value, mask, emulator::lane() + (emulator::lane() + by < 32 ? by : 0), {file, line});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_HERE) {
  if (mask != ~0u) emulator::fail("a ballot of a part of the warp at " + emulator::Place{file, line}.text());
  const emulator::Slot* const slots = emulator::exchange({{predicate != 0}}, {file, line});
  unsigned result = 0;
  for (unsigned i = 0; i < 32; ++i) result |= emulator::shown(slots, i).words[0] << i;
  return result;
}
template <class T>
T __reduce_add_sync(unsigned mask, T value, EMULATOR_HERE) {
  if (mask != ~0u) emulator::fail("a sum of a part of the warp at " + emulator::Place{file, line}.text());
  const emulator::Slot* const slots = emulator::exchange(emulator::to_slot(value), {file, line});
  T result = 0;
  for (unsigned i = 0; i < 32; ++i) result += emulator::from_slot<T>(emulator::shown(slots, i));
  return result;
}

inline int __popc(uint32_t bits) { return __builtin_popcount(bits); }
inline int __ffs(uint32_t bits) { return __builtin_ffs(static_cast<int>(bits)); }
inline int __clz(uint32_t bits) { return bits ? __builtin_clz(bits) : 32; }
inline uint32_t __brev(uint32_t bits) {
  uint32_t result = 0;
  for (int i = 0; i < 32; ++i) result |= (bits >> i & 1) << (31 - i);
  return result;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) { return static_cast<uint32_t>(static_cast<uint64_t>(a) * b >> 32); }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  return emulator::permute(a, b, selector & 0x7777);
}
inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) >> (shift & 31));
}
inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
  return static_cast<uint32_t>((static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32);
}
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) sum += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return sum;
}
template <class T>
T __ldg(const T* from) {
  emulator::require_aligned(from, alignof(T));
  return *from;
}
