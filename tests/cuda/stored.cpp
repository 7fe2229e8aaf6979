// Stored weights of few pixels: kernels on the emulator, against each weight of the format. stored quick|all [seed]
#include "intrinsics.h"
#include "cuda/stored.h"
#include "reference.h"

#include <cstdlib>

namespace {

using namespace fk;
using namespace fk::cuda;

reference::Report report;

void run(const reference::LayerSettings& settings, int order, int multiprocessors) {
  reference::Layer layer(settings);
  const Product p = layer.product();
  if (const char* reason = stored_refuses(p)) return report.expect(false, settings.text(), reason);
  const Plan plan = plan_stored(p, multiprocessors);
  report.check(layer, order, [&] {
    with_stored(p, [&](auto* kernel) {
      emulator::launch(dim3(plan.blocks[0], plan.blocks[1]), dim3(plan.threads), plan.shared,
                       [&] { kernel(p, plan.tiles); });
    });
  });
}

reference::LayerSettings layer_of(bool transposed, int rows, int cols, int pixels, int value_dtype, int dtype) {
  reference::LayerSettings s;
  s.weight.code = STORED_CODE;
  s.weight.rows = rows, s.weight.cols = cols, s.weight.value_dtype = value_dtype;
  s.weight.row_scale = value_dtype == INT8;
  s.weight.density = 0.2;
  s.pixels = pixels, s.dtype = dtype, s.transposed = transposed;
  return s;
}

// What a layer may have beside its weight.
void add_extras(reference::LayerSettings& s, reference::Draws& draws) {
  s.relu = draws.chance(0.3), s.gain = draws.chance(0.5);
  if (draws.chance(0.5)) s.bias_dtype = static_cast<int>(draws.bits() % 3);
  s.x_gap = draws.chance(0.5) ? static_cast<int>(draws.bits() % 9) : 0;
  s.y_gap = draws.chance(0.5) ? static_cast<int>(draws.bits() % 9) : 0;
  s.weight.integers = draws.chance(0.5);
  s.weight.seed = draws.bits() % 10000;
}

// Each instance, over a part of a word, parts of a chunk and several, blocks of many rows and many warps a row.
void each_instance(reference::Draws& draws, int rounds) {
  const int shapes[][2] = {{5, 70}, {37, 1056}, {3, 2500}, {70, 33}, {17, 1}, {1, 3100}, {33, 5200}};
  const int machines[] = {1, 2, 6};
  int shape = 0, machine = 0;
  for (int round = 0; round < rounds; ++round) {
    for (int transposed = 0; transposed < 2; ++transposed) {
      for (int value_dtype = FLOAT32; value_dtype <= INT8; ++value_dtype) {
        for (const int pixels : {1, 2, 3, 4, 7, 8}) {
          const int* const size = shapes[shape++ % 7];
          const int dtype = static_cast<int>(draws.bits() % 3);
          reference::LayerSettings s = layer_of(transposed, size[0], size[1], pixels, value_dtype, dtype);
          add_extras(s, draws);
          run(s, round + shape % 3, machines[machine++ / 5 % 3]);
        }
      }
    }
  }
}

// Nothing, little and everything kept: words of no bits, words of 32.
void each_density(reference::Draws& draws) {
  for (int transposed = 0; transposed < 2; ++transposed) {
    for (const double density : {0.0, 0.01, 0.5, 1.0}) {
      reference::LayerSettings s = layer_of(transposed, 19, 1100, 2, BFLOAT16, FLOAT32);
      add_extras(s, draws);
      s.weight.density = density;
      run(s, 2, 2);
    }
  }
}

// Inputs that are not finite pass where a weight is kept, and nowhere else.
void not_finite(reference::Draws& draws, int count) {
  for (int i = 0; i < count; ++i) {
    const int dtype = static_cast<int>(draws.bits() % 3), value_dtype = static_cast<int>(draws.bits() % 4);
    reference::LayerSettings s = layer_of(i % 2, 21, 1300, 1 + i % 5, value_dtype, dtype);
    add_extras(s, draws);
    s.relu = false;
    s.not_finite = 0.01;
    run(s, i, 1 + i % 3);
  }
}

// More columns than the shared memory of a block holds.
void many_columns(reference::Draws& draws, bool all) {
  reference::LayerSettings s = layer_of(false, 3, 6200, 4, FLOAT16, BFLOAT16);
  run(s, 1, 1);
  run(layer_of(false, 18, 7300, 6, INT8, FLOAT32), 2, 1);
  run(layer_of(true, 3, 7300, 3, FLOAT32, FLOAT16), 1, 20);
  if (!all) return;
  for (int i = 0; i < 6; ++i) {
    s = layer_of(false, 2 + 9 * i, 26000, 1 + i % 4, FLOAT32 + i % 4, i % 3);
    add_extras(s, draws);
    run(s, i, 1 + i / 2);
  }
}

void refusals() {
  const reference::Layer layer(layer_of(false, 3, 40, 1, FLOAT32, FLOAT32));
  Product p = layer.product();
  const auto refuses = [&](const char* name) {
    report.expect(stored_refuses(p) != nullptr, name, "is not refused");
    p = layer.product();
  };
  report.expect(stored_refuses(p) == nullptr, "a packed weight", "is refused");
  p.code = SIGN_CODE, refuses("a drawn code");
  p.offsets = nullptr, refuses("values that are not packed");
  p.values = static_cast<const float*>(p.values) + 1, refuses("values that are not aligned");
  p.pixels = 9, refuses("nine pixels");
}

}  // namespace

int main(int argc, char** argv) {
  const bool all = argc > 1 && !strcmp(argv[1], "all");
  reference::Draws draws(argc > 2 ? static_cast<unsigned>(atoi(argv[2])) : 1);
  refusals();
  each_instance(draws, all ? 12 : 1);
  each_density(draws);
  not_finite(draws, all ? 60 : 6);
  many_columns(draws, all);
  return report.status("stored");
}
