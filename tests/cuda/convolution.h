// Convolutions of random tensors, and what they are compared with.
#pragma once
#include "reference.h"
#include "cuda/convolution.h"
#include "cuda/launch.h"

namespace reference {

struct ConvolutionSettings {
  WeightSettings weight;  // its columns come from the taps and channels
  int batch = 1, channels = 8, wide[2] = {5, 6}, taps[2] = {3, 3}, stride[2] = {1, 1}, padding[2] = {1, 1};
  int dilation[2] = {1, 1}, dtype = BFLOAT16;
  bool channels_last = true, relu = false, gain = false;
  int bias_dtype = -1;       // none
  int x_gap = 0, y_gap = 0;  // elements between pixels where channels are last, else between lines
  double not_finite = 0;     // an infinity or NaN that stands in this part of the inputs

  std::string text() const {
    char line[240];
    snprintf(
        line, sizeof line,
        "%d x %d x %d x %d, rows %d, taps %d %d, stride %d %d, padding %d %d, dilation %d %d, dtype %d, code %d%s%s%s"
        "%s%s%s bias %d gaps %d %d seed %u",
        batch, channels, wide[0], wide[1], weight.rows, taps[0], taps[1], stride[0], stride[1], padding[0], padding[1],
        dilation[0], dilation[1], dtype, weight.code, weight.resident ? "" : " drawn",
        weight.integers ? " integers" : "", channels_last ? " last" : "", relu ? " relu" : "", gain ? " gain" : "",
        not_finite > 0 ? " infinities" : "", bias_dtype, x_gap, y_gap, weight.seed);
    return line;
  }
  int narrow(int i) const { return (wide[i] + 2 * padding[i] - dilation[i] * (taps[i] - 1) - 1) / stride[i] + 1; }
  WeightSettings full_weight() const {
    WeightSettings full = weight;
    full.cols = taps[0] * taps[1] * channels;
    return full;
  }
};

struct Shape {
  int batch, channels, wide[2], rows, taps[2], stride[2], padding[2], dilation[2];
};
inline ConvolutionSettings settings_of(const Shape& shape, int dtype, bool integers, unsigned seed) {
  ConvolutionSettings s;
  s.batch = shape.batch, s.channels = shape.channels, s.dtype = dtype;
  for (int i = 0; i < 2; ++i) {
    s.wide[i] = shape.wide[i], s.taps[i] = shape.taps[i], s.stride[i] = shape.stride[i];
    s.padding[i] = shape.padding[i], s.dilation[i] = shape.dilation[i];
  }
  s.weight.rows = shape.rows, s.weight.integers = integers, s.weight.seed = seed;
  return s;
}

class ConvolutionLayer {
 public:
  explicit ConvolutionLayer(const ConvolutionSettings& s)
      : settings(s),
        weight(s.full_weight()),
        gain(s.gain ? 4 * s.weight.rows : 0),
        bias(s.bias_dtype < 0 ? 0 : element_bytes(s.bias_dtype) * s.weight.rows) {
    const int narrow[] = {s.narrow(0), s.narrow(1)};
    x = Memory(element_bytes(s.dtype) * lay(s.channels, s.wide, s.x_gap, x_stride));
    y = Memory(element_bytes(s.dtype) * lay(s.weight.rows, narrow, s.y_gap, y_stride));
    Draws draws(s.weight.seed + 1000);
    const double no_numbers[] = {INFINITY, -INFINITY, NAN};
    for (int sample = 0; sample < s.batch; ++sample)
      for (int h = 0; h < s.wide[0]; ++h)
        for (int w = 0; w < s.wide[1]; ++w)
          for (int channel = 0; channel < s.channels; ++channel)
            write(x.data(), s.dtype, place(x_stride, sample, channel, h, w),
                  draws.chance(s.not_finite) ? no_numbers[draws.bits() % 3] : draws.value(s.weight.integers));
    for (int i = 0; i < s.weight.rows; ++i) {
      if (s.gain)
        gain.as<float>()[i] = static_cast<float>(s.weight.integers ? std::ldexp(1, i % 3 - 1) : draws.normal());
      if (s.bias_dtype >= 0) write(bias.data(), s.bias_dtype, i, draws.value(s.weight.integers));
    }
  }

  cuda::Convolution convolution() const {
    const ConvolutionSettings& s = settings;
    cuda::Convolution c = {};
    cuda::Product& p = c.weight;
    p.x = x.data(), p.y = y.data(), p.header = weight.header.as<int32_t>();
    p.keep = weight.keep.as<uint32_t>(), p.sign = or_null<uint32_t>(weight.sign);
    p.gain = or_null<float>(gain), p.bias = or_null<uint8_t>(bias);
    p.rows = weight.rows, p.cols = weight.cols, p.words = weight.words;
    p.code = s.weight.code, p.dtype = s.dtype, p.bias_dtype = std::max(s.bias_dtype, 0), p.relu = s.relu;
    c.batch = s.batch, c.channels = s.channels;
    for (int i = 0; i < 2; ++i) {
      c.wide[i] = s.wide[i], c.narrow[i] = s.narrow(i), c.taps[i] = s.taps[i];
      c.stride[i] = s.stride[i], c.padding[i] = s.padding[i], c.dilation[i] = s.dilation[i];
    }
    p.pixels = s.batch * c.narrow[0] * c.narrow[1];
    for (int i = 0; i < 4; ++i) c.x_stride[i] = x_stride[i], c.y_stride[i] = y_stride[i];
    return c;
  }

  Sum wanted(int sample, int row, int h, int w) const {
    const ConvolutionSettings& s = settings;
    Sum sum;
    for (int i = 0; i < s.taps[0]; ++i) {
      for (int j = 0; j < s.taps[1]; ++j) {
        const int from_h = h * s.stride[0] - s.padding[0] + i * s.dilation[0];
        const int from_w = w * s.stride[1] - s.padding[1] + j * s.dilation[1];
        if (from_h < 0 || from_h >= s.wide[0] || from_w < 0 || from_w >= s.wide[1]) continue;
        for (int channel = 0; channel < s.channels; ++channel) {
          const int column = (i * s.taps[1] + j) * s.channels + channel;
          sum.add(weight.kept(row, column), weight.at(row, column),
                  read(x.data(), s.dtype, place(x_stride, sample, channel, from_h, from_w)));
        }
      }
    }
    const double gain_here = s.gain ? gain.as<float>()[row] : 1;
    const double bias_here = s.bias_dtype < 0 ? 0 : read(bias.data(), s.bias_dtype, row);
    sum.finish(&gain_here, &bias_here, s.relu);
    return sum;
  }

  // What is wrong with y, or nothing. `worst` is the largest error as a part of what is allowed.
  std::string compare(double& worst) const {
    const ConvolutionSettings& s = settings;
    std::vector<bool> is_result(y.size() / element_bytes(s.dtype));
    for (int sample = 0; sample < s.batch; ++sample)
      for (int row = 0; row < s.weight.rows; ++row)
        for (int h = 0; h < s.narrow(0); ++h)
          for (int w = 0; w < s.narrow(1); ++w) {
            const int64_t at = place(y_stride, sample, row, h, w);
            is_result[at] = true;
            const Sum sum = wanted(sample, row, h, w);
            const double got = read(y.data(), s.dtype, at), times = excess(got, sum, s.dtype, s.weight.integers);
            worst = std::max(worst, times);
            if (times <= 1) continue;
            char what[120];
            snprintf(what, sizeof what, "sample %d row %d pixel %d %d: got %.9g, wanted %.9g", sample, row, h, w, got,
                     sum.value);
            return what;
          }
    for (size_t byte = 0; byte < y.size(); ++byte)
      if (!is_result[byte / element_bytes(s.dtype)] && !y.holds_nan(byte)) return "wrote between pixels";
    return "";
  }
  void clear() { y.clear(); }

  const ConvolutionSettings settings;
  const Weight weight;
  Memory x, y, gain, bias;
  int64_t x_stride[4], y_stride[4];

 private:
  static int64_t place(const int64_t (&stride)[4], int sample, int channel, int h, int w) {
    return sample * stride[0] + channel * stride[1] + h * stride[2] + w * stride[3];
  }
  // Strides of a tensor, and how many elements it takes.
  int64_t lay(int channels, const int (&size)[2], int gap, int64_t (&stride)[4]) const {
    if (settings.channels_last) {
      stride[1] = 1, stride[3] = channels + gap, stride[2] = size[1] * stride[3], stride[0] = size[0] * stride[2];
    } else {
      stride[3] = 1, stride[2] = size[1] + gap, stride[1] = size[0] * stride[2], stride[0] = channels * stride[1];
    }
    return place(stride, settings.batch - 1, channels - 1, size[0] - 1, size[1] - 1) + 1;
  }
};

class ConvolutionReport : public Report {
 public:
  // Runs `launch_it(convolution)`, which returns what is wrong or null, in warp orders and compares.
  template <class Launch>
  void check(const ConvolutionSettings& settings, int orders, const Launch& launch_it) {
    ConvolutionLayer layer(settings);
    for (int order = 0; order < orders; ++order) {
      layer.clear();
      emulator::set_order(order + (order > 1 ? settings.weight.seed : 0));
      layer.weight.in_flight();
      emulator::in_flight(layer.x.data(), layer.x.size());
      emulator::in_flight(layer.y.data(), layer.y.size());
      std::string wrong;
      try {
        const char* const refused = launch_it(layer.convolution());
        wrong = refused ? refused : layer.compare(worst_);
      } catch (const std::exception& error) {
        wrong = error.what();
      }
      expect(wrong.empty(), settings.text() + " order " + std::to_string(order), wrong);
    }
  }
  // A layer that `change` makes of one that is served is refused.
  template <class Refuses, class Change>
  void check_refusal(const char* name, cuda::Convolution c, const Refuses& refuses, const Change& change) {
    expect(!refuses(c), name, "is refused before it is changed");
    change(c);
    expect(refuses(c), name, "is not refused");
  }
};

}  // namespace reference
