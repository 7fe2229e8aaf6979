// The instruction set in use, and the choice of one kernel table out of the variants that were built.
#pragma once
#include <string>
#include <vector>

// The variants of setup.py that the compiler could build, each better than those before it.
#ifndef FK_EACH_VARIANT
#error "compile with -DFK_EACH_VARIANT(DO, ...)=DO(portable, __VA_ARGS__) and so on"
#endif

namespace fk {

// Places in the list of variants.
#define FK_NAME(variant, ...) #variant,
constexpr const char* ISA_NAMES[] = {FK_EACH_VARIANT(FK_NAME)};
#undef FK_NAME

// Throws std::runtime_error when FROZEN_KERNELS_ISA names a variant that this machine or this build lacks.
int active_isa();
void set_isa(const std::string& name);
std::vector<std::string> available_isas();

}  // namespace fk

#define FK_DECLARE_TABLE(variant, Table, name) \
  namespace fk::variant {                      \
  extern const Table name;                     \
  }
#define FK_TABLE_OF(variant, name) &fk::variant::name,

// Declares `extern const Table name` for each variant, and fk::active_<name>(), which returns the one in use.
#define FK_KERNEL_TABLE(Table, name)                                               \
  FK_EACH_VARIANT(FK_DECLARE_TABLE, Table, name)                                   \
  namespace fk {                                                                   \
  inline const Table& active_##name() {                                            \
    static constexpr const Table* tables[] = {FK_EACH_VARIANT(FK_TABLE_OF, name)}; \
    return *tables[active_isa()];                                                  \
  }                                                                                \
  }
