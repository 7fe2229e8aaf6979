// Philox4x32-10 (Salmon et al., SC11). Normative: compiled unchanged by g++ and nvcc.
#pragma once
#include <stdint.h>

#if defined(__CUDACC__)
#define FK_HD static __host__ __device__ __forceinline__
#else
// Always inlined: an out-of-line copy could be shared between files built for different instruction sets.
#define FK_HD static constexpr inline __attribute__((always_inline))
#endif

namespace fk {

constexpr uint32_t PHILOX_M0 = 0xD2511F53u, PHILOX_M1 = 0xCD9E8D57u;
constexpr uint32_t PHILOX_W0 = 0x9E3779B9u, PHILOX_W1 = 0xBB67AE85u;
constexpr int PHILOX_ROUNDS = 10;

struct Words4 {
  uint32_t x[4];
};

FK_HD Words4 philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < PHILOX_ROUNDS; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(PHILOX_M0) * c0, p1 = static_cast<uint64_t>(PHILOX_M1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    key0 += PHILOX_W0;
    key1 += PHILOX_W1;
  }
  return {{c0, c1, c2, c3}};
}

}  // namespace fk
