// Convolutions on the emulator: `convolve quick|all [seed]`.
#include "emulator.h"
#include "cuda/convolve.h"
#include "convolution.h"

using namespace fk;
using cuda::Convolution;
using reference::ConvolutionSettings;
using reference::Shape;

// Both shapes of tiles serve every case.
static const char* run(const Convolution& c, bool large) {
  if (const char* reason = cuda::convolve_refuses(c)) return reason;
  const cuda::Plan plan = cuda::plan_tiles(c, large);
  return cuda::with_tiles(c, large, [&](auto* kernel) { return cuda::launch(kernel, plan, {4, false}, nullptr, c); });
}

// Rows that end inside of a tile, words that end inside of a step and of a word, pixels of two samples in one tile.
static const Shape SHAPES[] = {
    {2, 8, {5, 7}, 33, {3, 3}, {1, 1}, {1, 1}, {1, 1}},   {1, 64, {7, 7}, 40, {3, 3}, {1, 1}, {1, 1}, {1, 1}},
    {3, 24, {6, 5}, 17, {3, 3}, {2, 2}, {1, 1}, {1, 1}},  {1, 128, {5, 4}, 32, {1, 1}, {2, 2}, {0, 0}, {1, 1}},
    {1, 16, {9, 3}, 8, {5, 3}, {1, 2}, {4, 1}, {2, 1}},   {1, 8, {4, 9}, 3, {1, 32}, {1, 1}, {0, 16}, {1, 1}},
    {5, 200, {1, 1}, 64, {3, 3}, {1, 1}, {1, 1}, {1, 1}}, {1, 8, {6, 6}, 1, {2, 2}, {1, 1}, {0, 0}, {3, 3}},
    {1, 640, {3, 3}, 20, {3, 3}, {3, 3}, {1, 1}, {1, 1}},
};
static const Shape MANY_PIXELS = {9, 8, {21, 22}, 70, {3, 3}, {1, 1}, {1, 1}, {1, 1}};

// What is not served.
static void check_refusals(reference::ConvolutionReport& report, const Convolution& c) {
  const auto check = [&](const char* name, auto change) {
    report.check_refusal(name, c, cuda::convolve_refuses, change);
  };
  check("uniform codes", [](Convolution& c) { c.weight.code = UNIFORM_CODE; });
  check("the transpose", [](Convolution& c) { c.weight.transposed = true; });
  check("channels", [](Convolution& c) { c.channels = 12; });
  check("taps", [](Convolution& c) { c.taps[0] = 11; });
  check("inputs that begin between 16 bytes",
        [](Convolution& c) { c.weight.x = static_cast<const uint8_t*>(c.weight.x) + 8; });
  check("lines that begin between 16 bytes", [](Convolution& c) { c.x_stride[2] += 4; });
  check("channels apart", [](Convolution& c) { c.x_stride[1] = 8; });
  check("results of channels apart", [](Convolution& c) { c.y_stride[1] = 8; });
  check("pixels that do not lie evenly", [](Convolution& c) { c.y_stride[2] += 8; });
  check("far inputs", [](Convolution& c) { c.x_stride[0] = int64_t{1} << 30; });
}

int main(int count, char** arguments) {
  const bool all = count > 1 && !strcmp(arguments[1], "all");
  const unsigned seed = count > 2 ? atoi(arguments[2]) : 1;
  reference::ConvolutionReport report;
  unsigned number = seed;
  for (const Shape& shape : SHAPES) {
    for (int kind = 0; kind < 3; ++kind) {  // planes, drawn signs, the constant code
      for (int dtype = 0; dtype < 3; ++dtype) {
        for (int integers = 0; integers < 2; ++integers) {
          ++number;
          if (!all && (integers ? number / 2 % 2 : number / 2 % 5 > 0)) continue;
          ConvolutionSettings s = settings_of(shape, dtype, integers, number);
          s.weight.code = kind == 2 ? CONSTANT_CODE : SIGN_CODE;
          s.weight.resident = kind == 0;
          s.gain = number % 2, s.relu = number % 3 == 0, s.bias_dtype = static_cast<int>(number % 4) - 1;
          s.x_gap = number % 5 ? 0 : 8, s.y_gap = number % 7 ? 0 : static_cast<int>(number % 3) + 1;
          s.not_finite = number % 11 ? 0 : 0.002;
          if (s.not_finite > 0) s.weight.density = 1;
          const bool large = number % 2;
          const auto run_tiles = [&](const Convolution& c) { return run(c, large); };
          report.check(s, all ? 3 : 1, run_tiles);
        }
      }
    }
  }
  if (all) {
    report.check(settings_of(MANY_PIXELS, BFLOAT16, true, ++number), 1, [](const Convolution& c) {
      const cuda::Plan plan = cuda::plan_convolve(c, 4);
      return cuda::with_convolve(c, [&](auto* kernel) { return cuda::launch(kernel, plan, {4, false}, nullptr, c); });
    });
  }
  const reference::ConvolutionLayer served(settings_of(SHAPES[0], BFLOAT16, true, 1));
  check_refusals(report, served.convolution());
  return report.status("convolve");
}
