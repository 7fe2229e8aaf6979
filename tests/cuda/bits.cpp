// The kernels of csrc/cuda/bits.h on the emulator: `bits quick|all [seed]`.
#include "emulator.h"
#include "cuda/bits.h"
#include "reference.h"

using namespace fk;
using reference::LayerSettings;

namespace {

struct Suite {
  reference::Report report;
  unsigned seed;
  bool all;
  int cases = 0;

  void run(LayerSettings settings, int multiprocessors = 2) {
    settings.weight.seed = seed + cases;
    reference::Layer layer(settings);
    const cuda::Product p = layer.product();
    const char* const refused = cuda::bits_refuses(p);
    if (refused) return report.expect(false, settings.text(), refused);
    const cuda::Plan plan = cuda::plan_bits(p, multiprocessors);
    // one warp order of three, which differ from case to case, or all of them
    for (int order = all ? 0 : cases % 3; order < (all ? 3 : cases % 3 + 1); ++order)
      report.check(layer, order, [&] {
        cuda::with_bits(p, [&](auto kernel) {
          emulator::launch(dim3(plan.blocks[0], plan.blocks[1]), dim3(plan.threads), plan.shared,
                           [&] { kernel(p, plan.tiles); });
        });
      });
    ++cases;
  }

  void refuse(const LayerSettings& settings) {
    reference::Layer layer(settings);
    report.expect(cuda::bits_refuses(layer.product()), settings.text(), "served");
  }
};

LayerSettings layer_of(int rows, int cols, int pixels, int dtype, bool transposed) {
  LayerSettings settings;
  settings.weight.rows = rows, settings.weight.cols = cols;
  settings.pixels = pixels, settings.dtype = dtype, settings.transposed = transposed;
  return settings;
}

// Integers, whose sums are exact, and random inputs, in each residency; `transposed` adds rows and columns of any
// number.
void every_kernel(Suite& suite) {
  for (const bool transposed : {false, true})
    for (const int dtype : {FLOAT32, BFLOAT16, FLOAT16})
      for (const int pixels : {1, dtype == FLOAT32 ? 2 : 8, dtype == FLOAT32 ? 5 : 16})
        for (const int residency : {0, 1, 2}) {
          LayerSettings settings = layer_of(37, transposed ? 150 : 640, pixels, dtype, transposed);
          settings.weight.code = residency == 2 ? CONSTANT_CODE : SIGN_CODE;
          settings.weight.resident = residency == 1;
          settings.weight.integers = pixels != 1;
          suite.run(settings);
        }
}

void shapes(Suite& suite) {
  for (const int rows : {1, 7, 15, 16, 17, 100}) {
    suite.run(layer_of(rows, 128, 3, BFLOAT16, false), 1);
    suite.run(layer_of(rows, 33, 3, BFLOAT16, true));
  }
  for (const int cols : {104, 120, 2040, 4600}) suite.run(layer_of(20, cols, 2, FLOAT16, false));
  for (const int cols : {100, 2036}) suite.run(layer_of(20, cols, 2, FLOAT32, false));
  for (const int cols : {1, 31, 128, 129}) suite.run(layer_of(40, cols, 2, FLOAT32, true));
  suite.run(layer_of(100, 4600, 2, FLOAT16, false), 1);
  // more slices, and more runs of rows, than warps
  for (const bool drawn : {false, true}) {
    const int dtype = drawn ? FLOAT32 : BFLOAT16, pixels = drawn ? 2 : 9;
    LayerSettings wide = layer_of(70, 512 * 17, pixels, dtype, false),
                  high = layer_of(512 * 17, 5, pixels, dtype, true);
    wide.weight.resident = high.weight.resident = !drawn;
    suite.run(wide, 1), suite.run(high);
  }
}

void epilogues(Suite& suite) {
  for (const bool transposed : {false, true})
    for (const int dtype : {FLOAT32, BFLOAT16, FLOAT16}) {
      LayerSettings settings = layer_of(50, 256, 2, dtype, transposed);
      settings.gain = settings.relu = true;
      settings.bias_dtype = dtype;
      settings.x_gap = 8, settings.y_gap = 3;
      suite.run(settings);
      settings.gain = false, settings.bias_dtype = FLOAT32;
      settings.x_gap = transposed ? 3 : 16;
      suite.run(settings);
      settings = layer_of(50, 256, 2, dtype, transposed);
      settings.not_finite = 0.01, settings.weight.density = 1;
      suite.run(settings);
      settings.weight.density = 0.95, settings.weight.resident = false;
      suite.run(settings);
    }
}

void random_layers(Suite& suite, int count) {
  reference::Draws draws(suite.seed);
  for (int i = 0; i < count; ++i) {
    const bool transposed = draws.chance(0.5);
    const int dtype = static_cast<int>(draws.bits() % 3);
    const int cols = transposed ? 1 + draws.bits() % 400 : 128 * (1 + draws.bits() % 24) - 8 * (draws.bits() % 4);
    LayerSettings settings =
        layer_of(1 + draws.bits() % 150, cols, 1 + draws.bits() % (dtype == FLOAT32 ? 5 : 16), dtype, transposed);
    settings.weight.code = draws.chance(0.2) ? CONSTANT_CODE : SIGN_CODE;
    settings.weight.resident = draws.chance(0.5);
    settings.weight.integers = draws.chance(0.5);
    settings.weight.density = draws.chance(0.2) ? 0 : 0.3;
    settings.gain = draws.chance(0.3), settings.relu = draws.chance(0.3);
    settings.bias_dtype = draws.chance(0.3) ? FLOAT32 : -1;
    settings.x_gap = 8 * (draws.bits() % 2), settings.y_gap = draws.bits() % 3;
    suite.run(settings, 1 + draws.bits() % 3);
  }
}

void refusals(Suite& suite) {
  suite.refuse(layer_of(16, 128, 17, BFLOAT16, false));
  suite.refuse(layer_of(16, 128, 6, FLOAT32, true));
  suite.refuse(layer_of(16, 100, 2, BFLOAT16, false));
  suite.refuse(layer_of(16, 96, 2, BFLOAT16, false));
  LayerSettings settings = layer_of(16, 128, 2, BFLOAT16, false);
  settings.x_gap = 1;
  suite.refuse(settings);
  settings = layer_of(16, 128, 2, BFLOAT16, false);
  settings.weight.code = UNIFORM_CODE;
  suite.refuse(settings);
}

}  // namespace

int main(int argc, char** argv) {
  Suite suite;
  suite.all = argc > 1 && std::string(argv[1]) == "all";
  suite.seed = argc > 2 ? std::stoul(argv[2]) : 1;
  every_kernel(suite);
  shapes(suite);
  epilogues(suite);
  refusals(suite);
  random_layers(suite, suite.all ? 200 : 20);
  return suite.report.status("bits");
}
