// The kernel of csrc/cuda/bytes.h on the emulator: `bytes quick|all [seed]`.
#include "reference.h"
#include "cuda/bytes.h"

using namespace fk;
using reference::Layer;
using reference::LayerSettings;
using reference::Report;

namespace {

constexpr int MULTIPROCESSORS = 2;

void run(const cuda::Product& p) {
  const cuda::Plan plan = cuda::plan_bytes(p, MULTIPROCESSORS);
  cuda::with_bytes(p, [&](auto* kernel) {
    emulator::launch(dim3(plan.blocks[0], plan.blocks[1]), dim3(plan.threads), plan.shared,
                     [=] { kernel(p, plan.tiles); });
    return 0;
  });
}

void check(Report& report, const LayerSettings& settings, int order) {
  Layer layer(settings);
  const cuda::Product p = layer.product();
  if (const char* reason = cuda::bytes_refuses(p)) return report.expect(false, settings.text(), reason);
  report.check(layer, order, [&] { run(p); });
}

struct Kind {
  int code;
  bool resident;
};
constexpr Kind KINDS[] = {{SIGN_CODE, false},   {SIGN_CODE, true},    {CONSTANT_CODE, true}, {UNIFORM_CODE, false},
                          {UNIFORM_CODE, true}, {NORMAL_CODE, false}, {NORMAL_CODE, true}};

LayerSettings settings_of(const Kind& kind, int rows, int cols, int pixels, int dtype, bool integers, unsigned seed) {
  LayerSettings settings;
  settings.weight.code = kind.code, settings.weight.resident = kind.resident;
  settings.weight.rows = rows, settings.weight.cols = cols;
  settings.weight.integers = integers, settings.weight.seed = seed;
  settings.pixels = pixels, settings.dtype = dtype;
  return settings;
}

// Rows that fill no tile, fewer than one, columns that fill no slice, more than one block and slice a warp.
void shapes(Report& report, const Kind& kind, bool all, unsigned seed) {
  const int sizes[][2] = {{37, 1136}, {5, 128}, {16, 512}, {100, 624}, {21, 9072}};
  for (const auto& size : sizes) {
    for (int pixels = 1; pixels <= 4; ++pixels) {
      for (const int dtype : {BFLOAT16, FLOAT16}) {
        for (const bool integers : {true, false}) {
          const bool few = size[1] < 1000 && (pixels + dtype + integers) % 2 == 0;
          const bool first = size[0] == 37 && pixels % 2 == dtype % 2;
          if (!all && !few && !first) continue;
          if (size[1] > 9000 && (!all || pixels % 3 != 1)) continue;
          LayerSettings settings = settings_of(kind, size[0], size[1], pixels, dtype, integers, seed++);
          settings.gain = pixels % 2, settings.relu = pixels % 4 == 2;
          settings.bias_dtype = pixels == 1 ? -1 : pixels == 2 ? FLOAT32 : dtype;
          settings.x_gap = pixels % 3 == 1 ? 24 : 0, settings.y_gap = pixels % 3 == 2 ? 3 : 0;
          settings.weight.density = pixels == 4 ? 1.0 : 0.4;
          check(report, settings, static_cast<int>(seed % 5));
        }
      }
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && !strcmp(argv[1], "all");
  const unsigned seed = argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1;
  Report report;
  for (const Kind& kind : KINDS) shapes(report, kind, all, seed);
  return report.status("bytes");
}
