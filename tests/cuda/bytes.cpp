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

void check(Report& report, Layer& layer, int order) {
  const cuda::Product p = layer.product();
  if (const char* reason = cuda::bytes_refuses(p)) return report.expect(false, layer.settings.text(), reason);
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
  const int sizes[][2] = {{37, 1136}, {5, 128}, {1, 1144}, {16, 512}, {100, 624}, {21, 9072}};
  for (const auto& size : sizes) {
    // resident bytes are loaded by 16, and drawn ones must be served alike
    if (size[1] % 16 && (kind.code == UNIFORM_CODE || kind.code == NORMAL_CODE)) continue;
    for (int pixels = 1; pixels <= 4; ++pixels) {
      for (const int dtype : {BFLOAT16, FLOAT16}) {
        for (const bool integers : {true, false}) {
          const bool few = size[1] < 1000 && (pixels + dtype + integers) % 2 == 0;
          const bool first = (size[0] == 37 || size[0] == 1) && pixels % 2 == dtype % 2;
          if (!all && !few && !first) continue;
          if (size[1] > 9000 && (!all || pixels % 3 != 1)) continue;
          LayerSettings settings = settings_of(kind, size[0], size[1], pixels, dtype, integers, seed++);
          settings.gain = pixels % 2, settings.relu = pixels % 4 == 2;
          settings.bias_dtype = pixels == 1 ? -1 : pixels == 2 ? FLOAT32 : dtype;
          settings.x_gap = pixels % 3 == 1 ? 24 : 0, settings.y_gap = pixels % 3 == 2 ? 3 : 0;
          settings.weight.density = pixels == 4 ? 1.0 : 0.4;
          Layer layer(settings);
          check(report, layer, static_cast<int>(seed % 5));
        }
      }
    }
  }
}

void write_input(Layer& layer, int pixel, int column, double value) {
  reference::write(layer.x.data(), layer.settings.dtype, pixel * int64_t{layer.inputs} + column, value);
}
double input(const Layer& layer, int pixel, int column) {
  return reference::read(layer.x.data(), layer.settings.dtype, pixel * int64_t{layer.inputs} + column);
}
void drop_column(Layer& layer, int column) {
  for (int row = 0; row < layer.weight.rows; ++row)
    layer.weight.keep.as<uint32_t>()[row * layer.weight.words + column / 32] &= ~(1u << beta(column));
}

// An input of each slice is 1000 times what it was; nothing else may get worse where its weights are dropped.
void outliers(Report& report, const Kind& kind, int dtype, bool dropped, unsigned seed) {
  Layer layer(settings_of(kind, 20, 1136, 4, dtype, false, seed));
  for (const int column : {17, 1000, 1130}) {
    for (int pixel = 0; pixel < 4; ++pixel) write_input(layer, pixel, column, 1000 * input(layer, pixel, column));
    if (dropped) drop_column(layer, column);
  }
  check(report, layer, 0);
}

// Inputs that are powers of two larger or smaller: exact results stay exact.
void ranges(Report& report, const Kind& kind, unsigned seed) {
  const int exponents[][2] = {{BFLOAT16, 100}, {BFLOAT16, -90}, {FLOAT16, 6}, {FLOAT16, -18}};
  for (const auto& [dtype, exponent] : exponents) {
    Layer layer(settings_of(kind, 16, 640, 2, dtype, true, seed));
    for (int pixel = 0; pixel < 2; ++pixel)
      for (int column = 0; column < 640; ++column)
        write_input(layer, pixel, column, column % 5 ? 0 : std::ldexp(input(layer, pixel, column) / 4, exponent));
    check(report, layer, 0);
  }
}

// An infinity or NaN makes all results of its pixel NaN, with no trace in the others.
void not_finite(Report& report, const Kind& kind, double value, unsigned seed) {
  Layer layer(settings_of(kind, 33, 640, 3, seed % 2 ? BFLOAT16 : FLOAT16, true, seed));
  const cuda::Product p = layer.product();
  write_input(layer, 1, 600, value);
  layer.clear();
  run(p);
  bool good = true;
  for (int row = 0; row < 33; ++row) {
    good &= std::isnan(layer.got(1, row));
    for (const int pixel : {0, 2})
      good &= reference::excess(layer.got(pixel, row), layer.wanted(pixel, row), p.dtype, true) == 0;
  }
  report.expect(good, layer.settings.text(), "an input that is not finite");
}

void draws(Report& report, unsigned seed) {
  reference::Draws random(seed);
  bool good = true;
  for (int i = 0; i < 100; ++i) {
    uint32_t header[HEADER_WORDS];
    for (uint32_t& word : header) word = random.bits();
    const uint32_t column = random.bits(), row = random.bits(), purpose = i % 2 ? BYTE_PURPOSE : SIGN_PURPOSE;
    const cuda::Draws calls(reinterpret_cast<int32_t*>(header), purpose);
    const uint4 got = calls.finish(calls.begin_column(column), calls.begin_row(row));
    const Words4 wanted =
        philox(column, row, purpose | header[GENERATION] << 8, header[STREAM], header[SEED_LO], header[SEED_HI]);
    good &= got.x == wanted.x[0] && got.y == wanted.x[1] && got.z == wanted.x[2] && got.w == wanted.x[3];
  }
  report.expect(good, "draws", "other bits than the format's");
}

void refusals(Report& report) {
  const Layer layer(settings_of({UNIFORM_CODE, true}, 16, 128, 2, BFLOAT16, true, 1));
  const cuda::Product served = layer.product();
  const auto expect = [&](bool refused, const char* what, const auto& change) {
    cuda::Product p = served;
    change(p);
    report.expect((cuda::bytes_refuses(p) != nullptr) == refused, "refusals", what);
  };
  expect(false, "served", [](cuda::Product&) {});
  expect(true, "transposed", [](cuda::Product& p) { p.transposed = true; });
  expect(true, "float32", [](cuda::Product& p) { p.dtype = FLOAT32; });
  expect(true, "stored", [](cuda::Product& p) { p.code = STORED_CODE; });
  expect(true, "pixels", [](cuda::Product& p) { p.pixels = 5; });
  expect(true, "words", [](cuda::Product& p) { p.cols = 96, p.words = 3; });
  expect(true, "columns", [](cuda::Product& p) { p.cols = 124; });
  expect(true, "bytes", [](cuda::Product& p) { p.cols = 120; });
  expect(true, "drawn bytes", [](cuda::Product& p) { p.cols = 120, p.bytes = nullptr; });
  expect(true, "stride", [](cuda::Product& p) { p.x_stride = 132; });
  expect(true, "inputs", [](cuda::Product& p) { p.x = static_cast<const uint8_t*>(p.x) + 2; });
  expect(true, "planes", [](cuda::Product& p) { ++p.keep; });
  expect(true, "size", [](cuda::Product& p) { p.rows = 1 << 28; });
}

// Blocks have all rows once, and no more of a multiprocessor than there is.
void plans(Report& report) {
  for (const Kind& kind : KINDS) {
    cuda::Product p = {};
    p.code = kind.code;
    for (const int rows : {1, 16, 17, 1000, 4096, 16384, 151936}) {
      for (const int cols : {128, 640, 4096, 8192, 11008, 28672}) {
        for (int pixels = 1; pixels <= 4; ++pixels) {
          p.rows = rows, p.cols = cols, p.words = cuda::divide_up(cols, 32), p.pixels = pixels;
          const cuda::Plan plan = cuda::plan_bytes(p, 132);
          const int block_rows = 16 * plan.tiles, most_threads = pixels > 2 ? 256 : 512;
          const bool good = plan.shared > 0 && plan.shared <= cuda::SHARED_LIMIT && plan.threads % 32 == 0 &&
                            plan.threads <= most_threads && plan.blocks[0] == cuda::divide_up(rows, block_rows);
          report.expect(good, "plan", std::to_string(rows) + " x " + std::to_string(cols));
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
  for (const Kind& kind : KINDS) {
    for (unsigned i = 0; i < (all ? 4 : 1); ++i) shapes(report, kind, all, seed + 1000 * i);
    for (const int dtype : {BFLOAT16, FLOAT16})
      for (const bool dropped : {true, false}) outliers(report, kind, dtype, dropped, seed + dtype);
    ranges(report, kind, seed);
    not_finite(report, kind, INFINITY, seed);
    not_finite(report, kind, -NAN, seed + 1);
  }
  draws(report, seed);
  refusals(report);
  plans(report);
  return report.status("bytes");
}
