#include "cpu/core/isa.h"

#include <atomic>
#include <cstdlib>
#include <iterator>
#include <stdexcept>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace fk {

namespace {

// Whether this machine runs a variant.
namespace runs {

bool portable() { return true; }

#ifdef __aarch64__
bool neon() { return true; }
#endif

#ifdef __x86_64__
[[maybe_unused]] bool avx2() {
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("popcnt") && __builtin_cpu_supports("f16c");
}

[[maybe_unused]] bool avx512() {
  return avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
}

[[maybe_unused]] bool vnni() {
  return avx512() && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("gfni");
}

[[maybe_unused]] bool zen4() { return vnni(); }

// Tiles need the processor, the kernel's save area, and a permission that a process asks for once.
bool tiles() {
#ifdef __linux__
  unsigned a, b, c, d, low, high;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  constexpr unsigned AMX_BITS = 1u << 22 | 1u << 24 | 1u << 25;  // bf16, tile, int8
  if ((d & AMX_BITS) != AMX_BITS) return false;
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & 1u << 5)) return false;  // AVX512_BF16
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return (low >> 17 & 3u) == 3u && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

[[maybe_unused]] bool amx() {
  static const bool works = tiles();
  return works && vnni();
}
#endif

}  // namespace runs

// Whether a variant that runs suits this machine too. The kernels that zen4 chooses are slower on Intel's ports.
bool suits([[maybe_unused]] const char* variant) {
#ifdef __x86_64__
  __builtin_cpu_init();
  if (std::string(variant) == "zen4") return __builtin_cpu_is("amd");
#endif
  return true;
}

#define FK_RUNS(variant, ...) &runs::variant,
constexpr bool (*RUNS[])() = {FK_EACH_VARIANT(FK_RUNS)};
#undef FK_RUNS
constexpr int VARIANTS = static_cast<int>(std::size(RUNS));

int parse(const std::string& name, const std::string& source) {
  std::string available;
  for (int isa = 0; isa < VARIANTS; ++isa) {
    if (!RUNS[isa]()) continue;
    if (name == ISA_NAMES[isa]) return isa;
    available += std::string(available.empty() ? "" : ", ") + ISA_NAMES[isa];
  }
  throw std::runtime_error(source + "=" + name + " is not available on this machine (available: " + available + ")");
}

std::atomic<int> chosen{-1};

}  // namespace

int active_isa() {
  int isa = chosen.load(std::memory_order_relaxed);
  if (isa < 0) {
    const char* const wanted = std::getenv("FROZEN_KERNELS_ISA");
    if (wanted && *wanted) {
      isa = parse(wanted, "FROZEN_KERNELS_ISA");
    } else {
      for (isa = VARIANTS - 1; !RUNS[isa]() || !suits(ISA_NAMES[isa]);) --isa;
    }
    chosen.store(isa);
  }
  return isa;
}

void set_isa(const std::string& name) { chosen.store(parse(name, "isa")); }

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int isa = 0; isa < VARIANTS; ++isa) {
    if (RUNS[isa]()) names.push_back(ISA_NAMES[isa]);
  }
  return names;
}

}  // namespace fk
