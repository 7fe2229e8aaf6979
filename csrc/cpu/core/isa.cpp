#include "cpu/core/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

#if defined(FK_AMX_VARIANT) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fk {

namespace {

// Tiles need the processor, the kernel's save area, and a permission that a process asks for once.
bool tiles_work() {
#if defined(FK_AMX_VARIANT) && defined(__linux__)
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned AMX_BITS = 1u << 22 | 1u << 24 | 1u << 25;   // bf16, tile, int8
  constexpr unsigned AVX512_BITS = 1u << 1 | 1u << 8 | 1u << 11;  // VBMI, GFNI, VNNI
  if ((d & AMX_BITS) != AMX_BITS || (c & AVX512_BITS) != AVX512_BITS) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // AVX512_BF16
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return (low >> 17 & 3u) == 3u && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

bool runs(int isa) {
#ifdef FK_X86_VARIANTS
  __builtin_cpu_init();
  if (isa >= AVX2) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi") ||
        !__builtin_cpu_supports("bmi2") || !__builtin_cpu_supports("popcnt") || !__builtin_cpu_supports("f16c")) {
      return false;
    }
  }
  if (isa == AMX) {
    static const bool works = tiles_work();
    return works && runs(AVX512);
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
  for (int isa = PORTABLE; isa <= AMX; ++isa) {
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
      for (isa = AMX; !runs(isa);) --isa;
    }
    chosen.store(isa);
  }
  return static_cast<Isa>(isa);
}

void set_isa(const std::string& name) { chosen.store(parse(name, "isa")); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int isa = PORTABLE; isa <= AMX; ++isa) {
    if (runs(isa)) names.push_back(ISA_NAMES[isa]);
  }
  return names;
}

}  // namespace fk
