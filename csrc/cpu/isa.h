// The instruction set in use, and the choice of one kernel table out of the variants that were built.
#pragma once
#include <string>
#include <vector>

namespace fk {

enum Isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2 };
constexpr const char* ISA_NAMES[] = {"portable", "avx2", "avx512"};

// Throws std::runtime_error when FROZEN_KERNELS_ISA names a variant that this machine or this build lacks.
Isa active_isa();
void set_isa(const std::string& name);
std::vector<std::string> available_isas();

}  // namespace fk

// Declares `extern const Table name` for each variant, and fk::active_<name>(), which returns the one in use.
#ifdef FK_X86_VARIANTS
#define FK_KERNEL_TABLE(Table, name)                                                 \
  namespace fk::portable {                                                           \
  extern const Table name;                                                           \
  }                                                                                  \
  namespace fk::avx2 {                                                               \
  extern const Table name;                                                           \
  }                                                                                  \
  namespace fk::avx512 {                                                             \
  extern const Table name;                                                           \
  }                                                                                  \
  namespace fk {                                                                     \
  inline const Table& active_##name() {                                              \
    const Isa isa = active_isa();                                                    \
    return isa == AVX512 ? avx512::name : isa == AVX2 ? avx2::name : portable::name; \
  }                                                                                  \
  }
#else
#define FK_KERNEL_TABLE(Table, name)                                           \
  namespace fk::portable {                                                     \
  extern const Table name;                                                     \
  }                                                                            \
  namespace fk {                                                               \
  inline const Table& active_##name() { return active_isa(), portable::name; } \
  }
#endif
