// Shows that the emulator catches what it is for: `emulator NAME` runs one faulty kernel, and `emulator` alone the
// sound ones. A fault is an exception (exit status 2), a wrong result (3) or a sanitizer's report; 0 says that it was
// missed.
#include "emulator.h"
#include "cuda/device.h"
#include "reference.h"

using namespace fk::cuda;

namespace {

// Each thread passes its number on through shared memory to the thread that stands opposite.
template <bool BARRIER>
FK_KERNEL mirror(int* y) {
  FK_SHARED(int, shared);
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (BARRIER) __syncthreads();
  y[threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
}

// As `mirror`, within each warp.
template <bool BARRIER>
FK_KERNEL mirror_warp(int* y) {
  FK_SHARED(int, shared);
  shared[threadIdx.x] = static_cast<int>(threadIdx.x);
  if (BARRIER) __syncwarp();
  // a shuffle waits for the warp, but orders no memory
  const int offset = __shfl_sync(~0u, 31, 0);
  y[threadIdx.x] = shared[threadIdx.x ^ offset];
}

FK_KERNEL divergent_barrier(int* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    y[threadIdx.x] = 0;
  }
}
FK_KERNEL two_barriers(int* y) {
  if (threadIdx.x < 32) {
    __syncthreads();
    y[threadIdx.x] = 1;
  } else {
    __syncthreads();
  }
}
FK_KERNEL divergent_shuffle(int* y) {
  if (threadIdx.x % 2) y[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
}
FK_KERNEL part_of_warp(int* y) { y[threadIdx.x] = __shfl_sync(0xFFFF, 1, 0); }

FK_KERNEL past_shared(int* y) {
  FK_SHARED(int, shared);
  y[threadIdx.x] = shared[threadIdx.x + 1];
}
FK_KERNEL past_global(const int* x, int* y) { y[threadIdx.x] = x[threadIdx.x + 1]; }
FK_KERNEL misaligned(const uint32_t* x, int* y) { y[threadIdx.x] = static_cast<int>(load_words(x + 1).x); }
FK_KERNEL misaligned_cast(const uint32_t* x, int* y) {
  y[threadIdx.x] = static_cast<int>(reinterpret_cast<const uint2*>(x + 1)->x);
}
FK_KERNEL uninitialised(float* y) {
  FK_SHARED(float, shared);
  y[threadIdx.x] = shared[threadIdx.x];
}
// Both blocks write the same values to the same places, after a barrier each.
FK_KERNEL two_blocks(int* y) {
  __syncthreads();
  y[threadIdx.x] = static_cast<int>(threadIdx.x);
}

// Reads what an earlier kernel writes.
template <bool WAIT>
FK_KERNEL early(const int* x, int* y) {
  if (WAIT) wait_for_inputs();
  y[threadIdx.x] = x[threadIdx.x];
}

template <bool BFLOAT>
FK_KERNEL product_of_halves(const uint16_t* a, const uint16_t* b, float* d) {
  const int group = threadIdx.x / 4, two = threadIdx.x % 4 * 2;
  const auto pair = [](const uint16_t* at, int step) { return at[0] | static_cast<uint32_t>(at[step]) << 16; };
  const uint32_t rows[4] = {pair(a + group * 16 + two, 1), pair(a + (group + 8) * 16 + two, 1),
                            pair(a + group * 16 + two + 8, 1), pair(a + (group + 8) * 16 + two + 8, 1)};
  float sums[4] = {d[group * 8 + two], d[group * 8 + two + 1], d[(group + 8) * 8 + two], d[(group + 8) * 8 + two + 1]};
  multiply<BFLOAT>(sums, rows, pair(b + two * 8 + group, 8), pair(b + (two + 8) * 8 + group, 8));
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + two + i % 2] = sums[i];
}
FK_KERNEL product_of_bytes(const int8_t* a, const int8_t* b, int* d) {
  const int group = threadIdx.x / 4, thread = threadIdx.x % 4;
  const auto four = [](const int8_t* at, int step) {
    uint32_t word = 0;
    for (int i = 0; i < 4; ++i) word |= static_cast<uint32_t>(static_cast<uint8_t>(at[i * step])) << 8 * i;
    return word;
  };
  const uint32_t rows[4] = {four(a + group * 32 + thread * 4, 1), four(a + (group + 8) * 32 + thread * 4, 1),
                            four(a + group * 32 + thread * 4 + 16, 1), four(a + (group + 8) * 32 + thread * 4 + 16, 1)};
  int sums[4] = {};
  multiply_bytes(sums, rows, four(b + thread * 4 * 8 + group, 8), four(b + (thread * 4 + 16) * 8 + group, 8));
  for (int i = 0; i < 4; ++i) d[(group + i / 2 * 8) * 8 + thread * 2 + i % 2] = sums[i];
}

template <bool BFLOAT>
bool halves_match() {
  reference::Draws draws(BFLOAT);
  const int dtype = BFLOAT ? fk::BFLOAT16 : fk::FLOAT16;
  reference::Memory a(2 * 16 * 16), b(2 * 16 * 8), d(4 * 16 * 8);
  for (int i = 0; i < 256; ++i) reference::write(a.data(), dtype, i, draws.integer());
  for (int i = 0; i < 128; ++i) reference::write(b.data(), dtype, i, draws.integer());
  for (int i = 0; i < 128; ++i) d.as<float>()[i] = static_cast<float>(i);
  emulator::launch(1, 32, 0, [&] { product_of_halves<BFLOAT>(a.as<uint16_t>(), b.as<uint16_t>(), d.as<float>()); });
  bool good = true;
  for (int i = 0; i < 128; ++i) {
    double sum = i;
    for (int k = 0; k < 16; ++k)
      sum += reference::read(a.data(), dtype, i / 8 * 16 + k) * reference::read(b.data(), dtype, k * 8 + i % 8);
    good &= d.as<float>()[i] == sum;
  }
  return good;
}
bool bytes_match() {
  reference::Draws draws(2);
  reference::Memory a(16 * 32), b(32 * 8), d(4 * 16 * 8);
  for (int i = 0; i < 512; ++i) a.as<int8_t>()[i] = static_cast<int8_t>(draws.bits());
  for (int i = 0; i < 256; ++i) b.as<int8_t>()[i] = static_cast<int8_t>(draws.bits());
  emulator::launch(1, 32, 0, [&] { product_of_bytes(a.as<int8_t>(), b.as<int8_t>(), d.as<int>()); });
  bool good = true;
  for (int i = 0; i < 128; ++i) {
    int sum = 0;
    for (int k = 0; k < 32; ++k) sum += a.as<int8_t>()[i / 8 * 32 + k] * b.as<int8_t>()[k * 8 + i % 8];
    good &= d.as<int>()[i] == sum;
  }
  return good;
}

// All halves to float32 and back, against the definition, and roundings at and beside the middle of two of them.
bool conversions_match() {
  bool good = true;
  for (int half = 0; half < 0x10000; ++half) {
    const int exponent = half >> 10 & 31, fraction = half & 1023;
    const float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                       : exponent     ? std::ldexp(fraction + 1024.0f, exponent - 25)
                                      : std::ldexp(static_cast<float>(fraction), -24);
    const float value = emulator::from_float16(static_cast<uint16_t>(half)), wanted = half & 0x8000 ? -size : size;
    good &= std::isnan(wanted) ? std::isnan(value) && emulator::to_float16(value) == 0x7FFF
                               : value == wanted && emulator::to_float16(value) == half;
    if (half >= 0x7BFF) continue;
    const float next = emulator::from_float16(static_cast<uint16_t>(half + 1)), middle = (value + next) / 2;
    good &= emulator::to_float16(middle) == half + half % 2;
    good &= emulator::to_float16(std::nextafterf(middle, 0)) == half;
    good &= emulator::to_float16(std::nextafterf(middle, INFINITY)) == half + 1;
  }
  good &= emulator::to_float16(65519.0f) == 0x7BFF && emulator::to_float16(65520.0f) == 0x7C00;
  good &= emulator::to_bfloat16(1 + 0x1p-8f) == 0x3F80 && emulator::to_bfloat16(1 + 0x3p-8f) == 0x3F82;
  good &= emulator::to_bfloat16(-INFINITY) == 0xFF80 && emulator::to_bfloat16(NAN) == 0x7FFF;
  return good;
}

FK_KERNEL intrinsics(int* y) {
  const int lane = static_cast<int>(threadIdx.x % 32);
  bool good = __shfl_sync(~0u, lane, 5) == 5 && __shfl_xor_sync(~0u, lane, 16) == (lane ^ 16);
  good &= __shfl_up_sync(~0u, lane, 3) == (lane < 3 ? lane : lane - 3);
  good &= __shfl_down_sync(~0u, lane, 3) == (lane > 28 ? lane : lane + 3);
  good &= __ballot_sync(~0u, lane % 3 == 0) == 0x49249249 && __reduce_add_sync(~0u, lane) == 496;
  good &= __brev(1) == 0x80000000 && __umulhi(1u << 31, 6) == 3 && __funnelshift_r(0x80000000, 1, 31) == 3;
  good &= permute<0x8D10>(0x33221100, 0x8877F655) == 0x00FF1100 && pick(0xFF00, 0x00FF, 0xF0F0) == 0xF00F;
  y[threadIdx.x] = good;
}

using Run = void (*)(int* y, uint32_t* x);
struct Fault {
  const char* name;
  Run run;
};
// Launches of 64 threads with 256 bytes of shared memory.
template <class Body>
void run(const Body& body, int blocks = 1) {
  emulator::launch(blocks, 64, 256, body);
}
template <class Body>
void run_after(uint32_t* x, const Body& body) {
  emulator::in_flight(x, 64 * 4);
  run(body);
}
const Fault FAULTS[] = {
    {"missing_barrier", [](int* y, uint32_t*) { run([=] { mirror<false>(y); }); }},
    {"missing_warp_barrier", [](int* y, uint32_t*) { run([=] { mirror_warp<false>(y); }); }},
    {"divergent_barrier", [](int* y, uint32_t*) { run([=] { divergent_barrier(y); }); }},
    {"two_barriers", [](int* y, uint32_t*) { run([=] { two_barriers(y); }); }},
    {"divergent_shuffle", [](int* y, uint32_t*) { run([=] { divergent_shuffle(y); }); }},
    {"part_of_warp", [](int* y, uint32_t*) { run([=] { part_of_warp(y); }); }},
    {"past_shared", [](int* y, uint32_t*) { run([=] { past_shared(y); }); }},
    {"past_global", [](int* y, uint32_t* x) { run([=] { past_global(reinterpret_cast<const int*>(x), y); }); }},
    {"misaligned", [](int* y, uint32_t* x) { run([=] { misaligned(x, y); }); }},
    {"misaligned_cast", [](int* y, uint32_t* x) { run([=] { misaligned_cast(x, y); }); }},
    {"two_blocks", [](int* y, uint32_t*) { run([=] { two_blocks(y); }, 2); }},
    {"early", [](int* y, uint32_t* x) { run_after(x, [=] { early<false>(reinterpret_cast<const int*>(x), y); }); }},
};

int sound() {
  reference::Report report;
  reference::Memory x(64 * 4), y(64 * 4);
  for (int order = 0; order < 4; ++order) {
    emulator::set_order(order);
    const std::string name = "order " + std::to_string(order);
    run([&] { mirror<true>(y.as<int>()); });
    bool good = true;
    for (int i = 0; i < 64; ++i) good &= y.as<int>()[i] == 63 - i;
    run([&] { mirror_warp<true>(y.as<int>()); }, 1);
    for (int i = 0; i < 64; ++i) good &= y.as<int>()[i] == (i ^ 31);
    report.expect(good, name, "a barrier");
    run_after(x.as<uint32_t>(), [&] { early<true>(x.as<int>(), y.as<int>()); });
    report.expect(!memcmp(x.data(), y.data(), y.size()), name, "a wait for inputs");
    run([&] { intrinsics(y.as<int>()); });
    report.expect(std::count(y.as<int>(), y.as<int>() + 64, 1) == 64, name, "intrinsics");
    report.expect(halves_match<false>() && halves_match<true>() && bytes_match(), name, "products of matrices");
    run([&] { uninitialised(y.as<float>()); });
    report.expect(std::all_of(y.as<float>(), y.as<float>() + 64, [](float v) { return v != v; }), name, "no NaN");
  }
  report.expect(conversions_match(), "conversions", "wrong");
  return report.status("emulator");
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) return sound();
  for (const Fault& fault : FAULTS) {
    if (std::string(argv[1]) != fault.name) continue;
    try {
      reference::Memory x(64 * 4), before(64 * 4), after(64 * 4);
      emulator::set_order(0);
      fault.run(before.as<int>(), x.as<uint32_t>());
      emulator::set_order(1);
      fault.run(after.as<int>(), x.as<uint32_t>());
      return memcmp(before.data(), after.data(), before.size()) ? 3 : 0;
    } catch (const std::exception& error) {
      puts(error.what());
      return 2;
    }
  }
  return 1;
}
