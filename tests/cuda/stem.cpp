// First convolutions on the emulator: `stem quick|all [seed]`.
#include "emulator.h"
#include "cuda/stem.h"
#include "convolution.h"

using namespace fk;
using cuda::Convolution;
using reference::ConvolutionSettings;
using reference::Shape;

static const char* run(const Convolution& c, int multiprocessors) {
  if (const char* reason = cuda::stem_refuses(c)) return reason;
  const cuda::Plan plan = cuda::plan_stem(c, multiprocessors);
  return cuda::with_stem(c, [&](auto* kernel) { return cuda::launch(kernel, plan, {1, false}, nullptr, c); });
}

// Tiles that end outside of the result in each direction, rows of one warp and of more than one block.
static const Shape SHAPES[] = {
    {1, 3, {40, 36}, 64, {7, 7}, {2, 2}, {3, 3}, {1, 1}},  {2, 3, {17, 33}, 32, {3, 3}, {2, 2}, {1, 1}, {1, 1}},
    {2, 3, {9, 19}, 40, {7, 7}, {2, 2}, {3, 3}, {1, 1}},   {3, 1, {8, 8}, 5, {5, 5}, {1, 1}, {2, 2}, {1, 1}},
    {1, 4, {12, 13}, 70, {4, 13}, {1, 3}, {0, 6}, {1, 1}}, {1, 2, {16, 9}, 33, {3, 3}, {1, 2}, {4, 1}, {3, 2}},
    {1, 3, {3, 70}, 130, {1, 1}, {1, 4}, {0, 0}, {1, 1}},
};

// What is not served.
static void check_refusals(reference::ConvolutionReport& report, const Convolution& c) {
  const auto check = [&](const char* name, auto change) { report.check_refusal(name, c, cuda::stem_refuses, change); };
  check("normal codes", [](Convolution& c) { c.weight.code = NORMAL_CODE; });
  check("the transpose", [](Convolution& c) { c.weight.transposed = true; });
  check("channels", [](Convolution& c) { c.channels = 5; });
  check("taps", [](Convolution& c) { c.taps[0] = 8; });
  check("far taps", [](Convolution& c) { c.dilation[0] = 100; });
  check("taps so far that their distance is no int", [](Convolution& c) { c.dilation[0] = c.dilation[1] = 1 << 24; });
  check("far results", [](Convolution& c) { c.y_stride[0] = int64_t{1} << 30; });
}

int main(int count, char** arguments) {
  const bool all = count > 1 && !strcmp(arguments[1], "all");
  reference::ConvolutionReport report;
  unsigned number = count > 2 ? atoi(arguments[2]) : 1;
  for (const Shape& shape : SHAPES) {
    for (int kind = 0; kind < 3; ++kind) {  // planes, drawn signs, the constant code
      for (int dtype = 0; dtype < 3; ++dtype) {
        for (int last = 0; last < 2; ++last) {
          for (int integers = 0; integers < 2; ++integers) {
            ++number;
            if (!all && number % 5) continue;
            ConvolutionSettings s = settings_of(shape, dtype, integers, number);
            s.channels_last = last;
            s.weight.code = kind == 2 ? CONSTANT_CODE : SIGN_CODE;
            s.weight.resident = kind == 0;
            s.gain = number % 2, s.relu = number % 3 == 0, s.bias_dtype = static_cast<int>(number / 2 % 4) - 1;
            s.x_gap = number % 7 ? 0 : 3, s.y_gap = number % 6 ? 0 : static_cast<int>(number / 6 % 3) + 1;
            s.not_finite = number % 11 ? 0 : 0.001;
            if (s.not_finite > 0) s.weight.density = 1;
            report.check(s, all ? 3 : 1, [&](const Convolution& c) { return run(c, number % 4 ? 1 : 100); });
          }
        }
      }
    }
  }
  const reference::ConvolutionLayer served(settings_of(SHAPES[2], BFLOAT16, true, 1));
  check_refusals(report, served.convolution());
  return report.status("stem");
}
