#include "../cpu/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace fk {

namespace {

bool runs(int isa) {
#ifdef FK_X86_VARIANTS
  __builtin_cpu_init();
  if (isa >= AVX2) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("popcnt") || !__builtin_cpu_supports("f16c")) {
      return false;
    }
  }
  if (isa == AVX512) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512cd");
  }
  return true;
#else
  return isa == PORTABLE;
#endif
}

Isa parse(const std::string& name, const std::string& source) {
  std::string available;
  for (int isa = PORTABLE; isa <= AVX512; ++isa) {
    if (!runs(isa)) continue;
    if (name == ISA_NAMES[isa]) return static_cast<Isa>(isa);
    available += std::string(available.empty() ? "" : ", ") + ISA_NAMES[isa];
  }
  throw std::runtime_error(source + "=" + name + " is not available on this machine (available: " + available + ")");
}

std::atomic<int> chosen{-1};

}  // namespace

Isa active_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    const char* const wanted = std::getenv("FROZEN_KERNELS_ISA");
    if (wanted && *wanted) {
      isa = parse(wanted, "FROZEN_KERNELS_ISA");
    } else {
      for (isa = AVX512; !runs(isa);) --isa;
    }
    chosen.store(isa);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const std::string& name) { chosen.store(parse(name, "isa")); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int isa = PORTABLE; isa <= AVX512; ++isa) {
    if (runs(isa)) names.push_back(ISA_NAMES[isa]);
  }
  return names;
}

}  // namespace fk
