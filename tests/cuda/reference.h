// What kernels are compared with: weights of the format one at a time, layers of random tensors, products in float64.
#pragma once
#include "emulator.h"
#include "cuda/product.h"

namespace reference {

using namespace fk;

// On the heap and of exactly its size, so that the address sanitizer guards both ends. Holds NaN.
class Memory {
 public:
  explicit Memory(size_t bytes = 0) : bytes_(new uint8_t[bytes]), size_(bytes) { clear(); }
  // The thread sanitizer remembers four accesses of a word: they must be the kernel's.
  EMULATOR_HIDDEN void clear() {
    for (size_t i = 0; i < size_; ++i) bytes_[i] = i % 2 ? 0x7F : 0xFF;
  }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(bytes_.get());
  }
  void* data() const { return bytes_.get(); }
  size_t size() const { return size_; }
  bool holds_nan(size_t at) const { return bytes_[at] == (at % 2 ? 0x7F : 0xFF); }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  size_t size_;
};
template <class T>
Memory memory_of(const std::vector<T>& values) {
  Memory memory(values.size() * sizeof(T));
  std::copy(values.begin(), values.end(), memory.as<T>());
  return memory;
}

inline size_t element_bytes(int dtype) { return dtype == FLOAT32 ? 4 : dtype == INT8 ? 1 : 2; }
inline double read(const void* from, int dtype, int64_t at) {
  if (dtype == FLOAT32) return static_cast<const float*>(from)[at];
  if (dtype == INT8) return static_cast<const int8_t*>(from)[at];
  const uint16_t half = static_cast<const uint16_t*>(from)[at];
  return dtype == BFLOAT16 ? emulator::from_bfloat16(half) : emulator::from_float16(half);
}
inline void write(void* to, int dtype, int64_t at, double value) {
  const float single = static_cast<float>(value);
  if (dtype == FLOAT32) static_cast<float*>(to)[at] = single;
  if (dtype == INT8) static_cast<int8_t*>(to)[at] = static_cast<int8_t>(value);
  if (dtype == BFLOAT16) static_cast<uint16_t*>(to)[at] = emulator::to_bfloat16(single);
  if (dtype == FLOAT16) static_cast<uint16_t*>(to)[at] = emulator::to_float16(single);
}
// The value that the dtype makes of a number.
inline double rounded(double value, int dtype) {
  uint32_t element;
  write(&element, dtype, 0, value);
  return read(&element, dtype, 0);
}
// Half a step of the dtype at a number.
inline double half_step(double value, int dtype) {
  const double part = dtype == FLOAT32 ? 0x1p-24 : dtype == BFLOAT16 ? 0x1p-8 : 0x1p-11;
  const double smallest = dtype == FLOAT16 ? 0x1p-25 : 0;
  return std::max(part * std::abs(value), smallest);
}

struct Draws {
  std::mt19937 random;
  explicit Draws(unsigned seed) : random(seed) {}
  uint32_t bits() { return static_cast<uint32_t>(random()); }
  bool chance(double probability) { return bits() < probability * 0x1p32; }
  double integer() { return static_cast<int>(bits() % 9) - 4; }
  double normal() { return std::normal_distribution<double>()(random); }
  double value(bool integers) { return integers ? integer() : normal(); }
};

struct WeightSettings {
  int rows = 16, cols = 64, code = SIGN_CODE;
  bool resident = true;  // sign words or bytes in memory, else the kernel draws them
  double density = 0.5;
  bool integers = true;  // a scale and stored values of which sums are exact
  int value_dtype = FLOAT32;
  bool row_scale = false;
  unsigned seed = 1;
};

// A format tensor: what a kernel reads, and each weight as a number.
class Weight {
 public:
  explicit Weight(const WeightSettings& settings)
      : rows(settings.rows), cols(settings.cols), words(cuda::divide_up(cols, 32)), values_(int64_t{rows} * cols) {
    Draws draws(settings.seed);
    const uint32_t key0 = draws.bits(), key1 = draws.bits(), stream = draws.bits(), generation = draws.bits() >> 8;
    const bool stored = settings.code == STORED_CODE;
    const float scale = stored ? 1.0f : settings.integers ? 0.5f : 0.0421f;
    header = memory_of(std::vector<uint32_t>{key0, key1, stream, generation, 0, 0, emulator::cast<uint32_t>(scale),
                                             static_cast<uint32_t>(settings.code)});
    std::vector<float> row_scales;
    std::vector<uint32_t> keep_words, sign_words;
    std::vector<uint8_t> drawn_bytes;
    std::vector<int64_t> places;
    std::vector<double> kept_values;
    for (int row = 0; row < rows; ++row) {
      if (settings.row_scale)
        row_scales.push_back(static_cast<float>(settings.integers ? 0.5 * (1 + row % 4) : std::abs(draws.normal())));
      for (int word = 0; word < words; ++word) {
        if (word % CHUNK_WORDS == 0) places.push_back(static_cast<int64_t>(kept_values.size()));
        const uint32_t signs = sign_word(word, row, stream, generation, key0, key1);
        uint32_t keep_word = 0;
        // by bit, which is stream order
        for (int bit = 0; bit < 32; ++bit) {
          const int column = 32 * word + column_of_bit(bit);
          if (column >= cols || !draws.chance(settings.density)) continue;
          keep_word |= 1u << bit;
          if (stored) kept_values.push_back(stored_value(settings, draws));
          const uint32_t draw =
              settings.code == SIGN_CODE ? signs >> bit & 1 : draw_byte(column, row, stream, generation, key0, key1);
          values_[int64_t{row} * cols + column] =
              stored ? kept_values.back() * (row_scales.empty() ? 1.0f : row_scales.back())
                     : static_cast<double>(code_value(settings.code, draw)) * scale;
        }
        keep_words.push_back(keep_word);
        sign_words.push_back(signs);
      }
      for (int column = 0; column < cols; ++column)
        drawn_bytes.push_back(static_cast<uint8_t>(draw_byte(column, row, stream, generation, key0, key1)));
    }
    places.push_back(static_cast<int64_t>(kept_values.size()));
    keep = memory_of(keep_words);
    if (settings.resident && settings.code == SIGN_CODE) sign = memory_of(sign_words);
    if (settings.resident && (settings.code == UNIFORM_CODE || settings.code == NORMAL_CODE))
      bytes = memory_of(drawn_bytes);
    if (!stored) return;
    values = Memory(kept_values.size() * element_bytes(settings.value_dtype));
    for (size_t i = 0; i < kept_values.size(); ++i) write(values.data(), settings.value_dtype, i, kept_values[i]);
    offsets = memory_of(places);
    row_scale = memory_of(row_scales);
  }

  double at(int row, int column) const { return values_[int64_t{row} * cols + column]; }
  bool kept(int row, int column) const { return keep.as<uint32_t>()[row * words + column / 32] >> beta(column) & 1; }

  // A step of a search may have written it just before.
  void in_flight() const {
    for (const Memory* memory : {&header, &keep, &sign, &bytes, &values, &offsets, &row_scale})
      emulator::in_flight(memory->data(), memory->size());
  }

  const int rows, cols, words;
  Memory header, keep, sign, bytes, values, offsets, row_scale;  // of size 0: a kernel is given null

 private:
  static double stored_value(const WeightSettings& settings, Draws& draws) {
    if (settings.value_dtype == INT8) return static_cast<int8_t>(draws.bits());
    return rounded(settings.integers ? draws.integer() : 0.05 * draws.normal(), settings.value_dtype);
  }
  std::vector<double> values_;
};

template <class T>
const T* or_null(const Memory& memory) {
  return memory.size() ? memory.as<T>() : nullptr;
}

// A sum in float64, and the sum of its terms' sizes.
struct Sum {
  double value = 0, size = 0;
  bool unspecified = false;  // an input that is not finite met a weight that is dropped
  void add(bool kept, double weight, double input) {
    unspecified |= !kept && !std::isfinite(input);
    if (!kept) return;
    value += weight * input;
    size += std::abs(weight * input);
  }
  void finish(const double* gain, const double* bias, bool relu) {
    if (gain) value *= *gain, size *= std::abs(*gain);
    if (bias) value += *bias, size += std::abs(*bias);
    if (relu && value < 0) value = 0;
  }
};

// How many times what is allowed the error is: a correctly rounded result of a sum in float32, twice. Exact: of the
// rounded sum, bit for bit but for the sign of zero.
inline double excess(double got, const Sum& wanted, int dtype, bool exact) {
  if (wanted.unspecified) return 0;
  if (std::isnan(wanted.value)) return std::isnan(got) ? 0 : INFINITY;
  const double nearest = rounded(wanted.value, dtype);
  if (exact || std::isinf(nearest)) return got == nearest ? 0 : INFINITY;
  const double allowed = 2 * (half_step(wanted.value, dtype) + 0x1p-23 * wanted.size);
  const double error = std::abs(got - wanted.value);
  return std::isnan(got) ? INFINITY : error == 0 ? 0 : error / allowed;
}

struct LayerSettings {
  WeightSettings weight;
  int pixels = 1, dtype = BFLOAT16;
  bool transposed = false, relu = false, gain = false;
  int bias_dtype = -1;       // none
  int x_gap = 0, y_gap = 0;  // elements between pixels
  double not_finite = 0;     // an infinity or NaN that stands in this part of the inputs' columns
  std::string text() const {
    char line[200];
    snprintf(line, sizeof line,
             "rows %d cols %d pixels %d dtype %d code %d%s value %d density %g%s%s%s%s bias %d gaps %d %d%s seed %u",
             weight.rows, weight.cols, pixels, dtype, weight.code, weight.resident ? "" : " drawn", weight.value_dtype,
             weight.density, weight.integers ? " integers" : "", transposed ? " transposed" : "", relu ? " relu" : "",
             gain ? " gain" : "", bias_dtype, x_gap, y_gap, weight.row_scale ? " row scale" : "", weight.seed);
    return line;
  }
};

// A linear layer with random inputs, and its result.
class Layer {
 public:
  explicit Layer(const LayerSettings& s)
      : settings(s),
        weight(s.weight),
        inputs(s.transposed ? s.weight.rows : s.weight.cols),
        channels(s.transposed ? s.weight.cols : s.weight.rows),
        x(element_bytes(s.dtype) * ((s.pixels - 1) * int64_t{inputs + s.x_gap} + inputs)),
        y(element_bytes(s.dtype) * ((s.pixels - 1) * int64_t{channels + s.y_gap} + channels)),
        gain(s.gain ? 4 * channels : 0),
        bias(s.bias_dtype < 0 ? 0 : element_bytes(s.bias_dtype) * channels) {
    Draws draws(s.weight.seed + 1000);
    const double no_numbers[] = {INFINITY, -INFINITY, NAN};
    for (int pixel = 0; pixel < s.pixels; ++pixel)
      for (int i = 0; i < inputs; ++i)
        write(x.data(), s.dtype, pixel * int64_t{inputs + s.x_gap} + i,
              draws.chance(s.not_finite) ? no_numbers[draws.bits() % 3] : draws.value(s.weight.integers));
    for (int i = 0; i < channels && s.gain; ++i)
      gain.as<float>()[i] = static_cast<float>(s.weight.integers ? std::ldexp(1, i % 3 - 1) : draws.normal());
    for (int i = 0; i < channels && s.bias_dtype >= 0; ++i)
      write(bias.data(), s.bias_dtype, i, draws.value(s.weight.integers));
  }

  cuda::Product product() const {
    cuda::Product p = {};
    p.x = x.data(), p.y = y.data();
    p.x_stride = inputs + settings.x_gap, p.y_stride = channels + settings.y_gap;
    p.header = weight.header.as<int32_t>();
    p.keep = weight.keep.as<uint32_t>(), p.sign = or_null<uint32_t>(weight.sign);
    p.bytes = or_null<uint8_t>(weight.bytes);
    // Empty where nothing is kept: still no null.
    if (weight.offsets.size()) p.values = weight.values.data();
    p.offsets = or_null<int64_t>(weight.offsets), p.row_scale = or_null<float>(weight.row_scale);
    p.gain = or_null<float>(gain), p.bias = or_null<uint8_t>(bias);
    p.rows = weight.rows, p.cols = weight.cols, p.words = weight.words, p.pixels = settings.pixels;
    p.code = settings.weight.code, p.dtype = settings.dtype, p.bias_dtype = std::max(settings.bias_dtype, 0);
    p.value_dtype = settings.weight.value_dtype;
    p.relu = settings.relu, p.transposed = settings.transposed;
    return p;
  }

  Sum wanted(int pixel, int channel) const {
    Sum sum;
    for (int i = 0; i < inputs; ++i) {
      const int row = settings.transposed ? i : channel, column = settings.transposed ? channel : i;
      sum.add(weight.kept(row, column), weight.at(row, column),
              read(x.data(), settings.dtype, pixel * int64_t{inputs + settings.x_gap} + i));
    }
    const double gain_here = settings.gain ? gain.as<float>()[channel] : 1;
    const double bias_here = settings.bias_dtype < 0 ? 0 : read(bias.data(), settings.bias_dtype, channel);
    sum.finish(&gain_here, &bias_here, settings.relu);
    return sum;
  }
  double got(int pixel, int channel) const {
    return read(y.data(), settings.dtype, pixel * int64_t{channels + settings.y_gap} + channel);
  }
  // Elements between pixels are not the kernel's.
  bool gaps_untouched() const {
    const size_t size = element_bytes(settings.dtype), stride = channels + settings.y_gap;
    for (size_t at = 0; at < y.size(); ++at)
      if (at / size % stride >= static_cast<size_t>(channels) && !y.holds_nan(at)) return false;
    return true;
  }
  void clear() { y.clear(); }

  const LayerSettings settings;
  const Weight weight;
  const int inputs, channels;
  Memory x, y, gain, bias;
};

// Counts cases, prints those that fail, and makes the exit status.
class Report {
 public:
  void expect(bool good, const std::string& name, const std::string& what) {
    ++cases_;
    if (good) return;
    ++failures_;
    printf("FAILED %s: %s\n", name.c_str(), what.c_str());
  }
  // Runs `body`, which fills y, in a warp order, and compares all of y.
  template <class Body>
  void check(Layer& layer, int order, const Body& body) {
    const std::string name = layer.settings.text() + " order " + std::to_string(order);
    layer.clear();
    emulator::set_order(order);
    layer.weight.in_flight();
    emulator::in_flight(layer.x.data(), layer.x.size());
    emulator::in_flight(layer.y.data(), layer.y.size());
    try {
      body();
    } catch (const std::exception& error) {
      return expect(false, name, error.what());
    }
    if (!layer.gaps_untouched()) return expect(false, name, "wrote between pixels");
    for (int pixel = 0; pixel < layer.settings.pixels; ++pixel) {
      for (int channel = 0; channel < layer.channels; ++channel) {
        const Sum wanted = layer.wanted(pixel, channel);
        const double got = layer.got(pixel, channel);
        const double times = excess(got, wanted, layer.settings.dtype, layer.settings.weight.integers);
        worst_ = std::max(worst_, times);
        if (times <= 1) continue;
        char what[120];
        snprintf(what, sizeof what, "pixel %d channel %d: got %.9g, wanted %.9g", pixel, channel, got, wanted.value);
        return expect(false, name, what);
      }
    }
    expect(true, name, "");
  }
  // Prints the summary; for `return` of main.
  int status(const char* family) const {
    printf("%s: %d cases, %d failed, worst error %.2f of what is allowed\n", family, cases_, failures_, worst_);
    return failures_ || !cases_;
  }

 protected:
  double worst_ = 0;

 private:
  int cases_ = 0, failures_ = 0;
};

}  // namespace reference
