// The instruction set in use, and the choice of one kernel table out of the variants that were built.
#pragma once
#include <string>
#include <vector>

namespace fk {

// amx: AVX-512 with VBMI, VNNI, GFNI and BF16, and the tile registers (Intel since Sapphire Rapids).
enum Isa { PORTABLE = 0, AVX2 = 1, AVX512 = 2, AMX = 3 };
constexpr const char* ISA_NAMES[] = {"portable", "avx2", "avx512", "amx"};

// Throws std::runtime_error when FROZEN_KERNELS_ISA names a variant that this machine or this build lacks.
Isa active_isa();
void set_isa(const std::string& name);
std::vector<std::string> available_isas();

}  // namespace fk

// Compilers before GCC 11 know no tiles; the build then leaves that variant out.
#ifdef FK_AMX_VARIANT
#define FK_IF_AMX(yes, no) yes
#else
#define FK_IF_AMX(yes, no) no
#endif

// Declares `extern const Table name` for each variant, and fk::active_<name>(), which returns the one in use.
#ifdef FK_X86_VARIANTS
#define FK_KERNEL_TABLE(Table, name)                 \
  namespace fk::portable {                           \
  extern const Table name;                           \
  }                                                  \
  namespace fk::avx2 {                               \
  extern const Table name;                           \
  }                                                  \
  namespace fk::avx512 {                             \
  extern const Table name;                           \
  }                                                  \
  namespace fk::amx {                                \
  extern const Table name;                           \
  }                                                  \
  namespace fk {                                     \
  inline const Table& active_##name() {              \
    switch (active_isa()) {                          \
      case AMX:                                      \
        return FK_IF_AMX(amx::name, portable::name); \
      case AVX512:                                   \
        return avx512::name;                         \
      case AVX2:                                     \
        return avx2::name;                           \
      default:                                       \
        return portable::name;                       \
    }                                                \
  }                                                  \
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
