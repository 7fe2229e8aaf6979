// The primitives that kernels are made of: once for nvcc, and once for the emulator of tests/cuda, which is included
// before this and defines FK_EMULATED.
#pragma once
#include "cuda/product.h"

#ifdef FK_EMULATED
#define FK_DEVICE inline
#define FK_TWIN constexpr inline
#define FK_UNROLL
#define FK_ROLLED
#define FK_KERNEL inline void
#define FK_BOUNDS(...)
#define FK_SHARED(Type, name) Type* const name = static_cast<Type*>(emulator::dynamic_shared())
#else
#include <cuda_runtime.h>
#define FK_DEVICE __device__ __forceinline__
#define FK_TWIN constexpr __host__ __device__ __forceinline__
#define FK_UNROLL _Pragma("unroll")
#define FK_ROLLED _Pragma("unroll 1")
#define FK_KERNEL __global__ void
#define FK_BOUNDS(...) __launch_bounds__(__VA_ARGS__)
// One symbol for all kernels, so it has no type.
#define FK_SHARED(Type, name)                              \
  extern __shared__ __align__(16) unsigned char shared_[]; \
  Type* const name = reinterpret_cast<Type*>(shared_)
#endif

namespace fk::cuda {

// Truth tables of the inputs of `logic`, whose constant an expression of them makes.
constexpr uint32_t TABLE_A = 0xF0, TABLE_B = 0xCC, TABLE_C = 0xAA;

// Bits of a where the mask is set, of b elsewhere. On truth tables it makes the constant of its own instruction, so
// what the emulator runs and what a GPU runs cannot differ.
FK_TWIN uint32_t picked(uint32_t a, uint32_t b, uint32_t mask) { return ((a ^ b) & mask) ^ b; }

#ifndef FK_EMULATED

FK_DEVICE float to_float(uint32_t bits) { return __uint_as_float(bits); }
FK_DEVICE uint32_t to_bits(float value) { return __float_as_uint(value); }
FK_DEVICE float half_to_float(uint32_t half) {
  float value;
  asm("{.reg .b16 h; cvt.u16.u32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(value) : "r"(half));
  return value;
}
// Two values, the first in the low half, each rounded to nearest even.
FK_DEVICE uint32_t pack_bfloat16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}
FK_DEVICE uint32_t pack_float16(float low, float high) {
  uint32_t pair;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

// One LOP3, where nvcc makes two instructions of the expression.
FK_DEVICE uint32_t pick(uint32_t a, uint32_t b, uint32_t mask) {
  constexpr uint32_t TABLE = picked(0xF0, 0xCC, 0xAA);
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(mask), "n"(TABLE));
  return result;
}
// One LOP3: bit for bit what the expression of truth tables that makes TABLE is of a, b and c.
template <uint32_t TABLE>
FK_DEVICE uint32_t logic(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(result) : "r"(a), "r"(b), "r"(c), "n"(TABLE));
  return result;
}
// Each selector nibble chooses a byte of b:a, its top bit the sign of that byte, eight times.
template <uint32_t SELECTOR>
FK_DEVICE uint32_t permute(uint32_t a, uint32_t b) {
  uint32_t result;
  // as asm, since __byte_perm clears the bit that repeats a sign
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "n"(SELECTOR));
  return result;
}
FK_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(selector));
  return result;
}

// Bytes in shared memory, by their address there: one instruction makes the address of a byte, one reads it.
using Table = uint32_t;
FK_DEVICE Table table_at(const uint8_t* shared) { return static_cast<uint32_t>(__cvta_generic_to_shared(shared)); }
// The byte at the sum of the products of bytes of a and b, without signs.
FK_DEVICE uint32_t look_up(Table table, uint32_t a, uint32_t b) {
  uint32_t byte;
  // volatile, so that no compiler moves it over a barrier
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(byte) : "r"(__dp4a(a, b, table)));
  return byte;
}
// NaN where one of them is.
FK_DEVICE float larger(float a, float b) {
  float result;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(result) : "f"(a), "f"(b));
  return result;
}

// The value itself, which the compiler keeps in a register: it would make again in a loop what comes from an index.
FK_DEVICE uint32_t kept_in_register(uint32_t value) {
  asm volatile("" : "+r"(value));
  return value;
}

// d += A B, A of 16 x 16 and B of 16 x 8, fragments as in the PTX ISA; bfloat16 or float16 in, float32 sums.
template <bool BFLOAT>
FK_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (BFLOAT) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  } else {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
}
// d += A B, A of 16 x 32 and B of 32 x 8 signed bytes.
FK_DEVICE void multiply_bytes(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Weights are read once: past the first-level cache, but left in the second, which holds the planes of a whole model.
FK_DEVICE uint4 load_words(const uint32_t* from) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w)
               : "l"(from));
  return words;
}
FK_DEVICE uint2 load_two_words(const uint32_t* from) {
  uint2 words;
  asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0,%1}, [%2];" : "=r"(words.x), "=r"(words.y) : "l"(from));
  return words;
}
FK_DEVICE uint32_t load_word(const uint32_t* from) {
  uint32_t word;
  asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

// Words that blocks on one multiprocessor share: through the first-level cache.
FK_DEVICE uint32_t load_shared_word(const uint32_t* from) {
  uint32_t word;
  asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(word) : "l"(from));
  return word;
}

// Programmatic dependent launch: what is read before `wait_for_inputs` must be no result of an earlier kernel. Weights
// may be one, of a step of a search, so kernels wait before they read anything; loads in assembly are volatile, or the
// compiler could move them in front.
#if __CUDA_ARCH__ >= 900
FK_DEVICE void wait_for_inputs() { asm volatile("griddepcontrol.wait;" ::: "memory"); }
FK_DEVICE void release_next() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
#else
FK_DEVICE void wait_for_inputs() {}
FK_DEVICE void release_next() {}
#endif

#else

FK_DEVICE float to_float(uint32_t bits) { return emulator::cast<float>(bits); }
FK_DEVICE uint32_t to_bits(float value) { return emulator::cast<uint32_t>(value); }
FK_DEVICE float half_to_float(uint32_t half) { return emulator::from_float16(static_cast<uint16_t>(half)); }
FK_DEVICE uint32_t pack_bfloat16(float low, float high) {
  return emulator::to_bfloat16(low) | static_cast<uint32_t>(emulator::to_bfloat16(high)) << 16;
}
FK_DEVICE uint32_t pack_float16(float low, float high) {
  return emulator::to_float16(low) | static_cast<uint32_t>(emulator::to_float16(high)) << 16;
}
FK_DEVICE uint32_t pick(uint32_t a, uint32_t b, uint32_t mask) { return picked(a, b, mask); }
template <uint32_t TABLE>
FK_DEVICE uint32_t logic(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t result = 0;
  for (int i = 0; i < 8; ++i)
    if (TABLE >> i & 1) result |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  return result;
}
template <uint32_t SELECTOR>
FK_DEVICE uint32_t permute(uint32_t a, uint32_t b) {
  return emulator::permute(a, b, SELECTOR);
}
FK_DEVICE uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) { return emulator::permute(a, b, selector); }
FK_DEVICE uint32_t kept_in_register(uint32_t value) { return value; }
using Table = const uint8_t*;
FK_DEVICE Table table_at(const uint8_t* shared) { return shared; }
FK_DEVICE uint32_t look_up(Table table, uint32_t a, uint32_t b) {
  uint32_t at = 0;
  for (int i = 0; i < 4; ++i) at += (a >> 8 * i & 255u) * (b >> 8 * i & 255u);
  return table[at];
}
FK_DEVICE float larger(float a, float b) { return a > b || a != a ? a : b; }
template <bool BFLOAT>
FK_DEVICE void multiply(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply<BFLOAT>(d, a, b0, b1);
}
FK_DEVICE void multiply_bytes(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  emulator::multiply_bytes(d, a, b0, b1);
}
FK_DEVICE uint4 load_words(const uint32_t* from) {
  emulator::require_aligned(from, 16);
  return uint4{from[0], from[1], from[2], from[3]};
}
FK_DEVICE uint2 load_two_words(const uint32_t* from) {
  emulator::require_aligned(from, 8);
  return uint2{from[0], from[1]};
}
FK_DEVICE uint32_t load_word(const uint32_t* from) { return *from; }
FK_DEVICE uint32_t load_shared_word(const uint32_t* from) { return *from; }
FK_DEVICE void wait_for_inputs() { emulator::wait_for_inputs(); }
FK_DEVICE void release_next() {}

#endif

FK_DEVICE uint32_t word_of(const uint4& words, int i) {
  return i == 0 ? words.x : i == 1 ? words.y : i == 2 ? words.z : words.w;
}
FK_DEVICE float bfloat16_to_float(uint32_t half) { return to_float(half << 16); }

// The format's header, read by the kernel.
struct Seed {
  uint32_t key0, key1, stream, generation;
  float scale;
};
FK_DEVICE Seed read_seed(const int32_t* header) {
  const uint32_t* const word = reinterpret_cast<const uint32_t*>(header);
  return {word[SEED_LO], word[SEED_HI], word[STREAM], word[GENERATION], to_float(word[SCALE])};
}

FK_DEVICE float read_element(const void* from, int dtype, int64_t at) {
  if (dtype == FLOAT32) return static_cast<const float*>(from)[at];
  const uint32_t half = static_cast<const uint16_t*>(from)[at];
  return dtype == BFLOAT16 ? bfloat16_to_float(half) : half_to_float(half);
}
FK_DEVICE void write_element(void* to, int dtype, int64_t at, float value) {
  if (dtype == FLOAT32) {
    static_cast<float*>(to)[at] = value;
  } else {
    const uint32_t pair = dtype == BFLOAT16 ? pack_bfloat16(value, 0.0f) : pack_float16(value, 0.0f);
    static_cast<uint16_t*>(to)[at] = static_cast<uint16_t>(pair);
  }
}

// The epilogue: relu(gain * sum + bias), as torch's relu, which leaves NaN.
FK_DEVICE float finished(float sum, const float* gain, const void* bias, int bias_dtype, bool relu, int channel) {
  if (gain) sum *= gain[channel];
  if (bias) sum += read_element(bias, bias_dtype, channel);
  return relu && sum < 0.0f ? 0.0f : sum;
}

}  // namespace fk::cuda
