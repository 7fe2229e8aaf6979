#include "lib/layers.h"

#include <math.h>
#include <string.h>

#include <algorithm>

#include "cpu/conv/kernels.h"
#include "lib/error.h"
#include "lib/kernels.h"

FK_KERNEL_TABLE(fk::ConvKernels, conv_kernels)
FK_KERNEL_TABLE(fk::LibraryKernels, library_kernels)

namespace fk::lib {

namespace {

constexpr int64_t LARGEST = int64_t{1} << 40;  // of a size, a stride, a padding or a dilation

long long ll(int64_t value) { return static_cast<long long>(value); }

int64_t elements(const int64_t* shape, int64_t dims, const char* what) {
  // A size of 0 does not let others be large: strides multiply them.
  int64_t count = 1, positive = 1;
  for (int64_t i = 0; i < dims; ++i) {
    if (__builtin_mul_overflow(positive, std::max<int64_t>(shape[i], 1), &positive) || positive > LARGEST) {
      fail(FROZEN_ARGUMENT, "%s: more than 2^40 elements", what);
    }
    count *= shape[i];
  }
  return count;
}

// Both sides of a product and what happens to its sums.
struct Product {
  Geometry geometry;
  Activations x, y;
  int64_t x_count, y_count;
  int64_t channels, positions;  // of y: [batch][channel][position], or [position][channel] of a linear layer
  bool channels_last;
};

// What the kernel's epilogue would do, of sums that several calls made.
void finish(const Product& p, float* y, const Ends& ends) {
  for (int64_t i = 0; i < p.y_count; ++i) {
    const int64_t channel = p.channels_last ? i % p.channels : i / p.positions % p.channels;
    float value = y[i];
    if (ends.gain) value *= ends.gain[channel];
    if (ends.bias) value += ends.bias[channel];
    y[i] = ends.relu && value <= 0 ? 0.0f : value;
  }
}

void require_apart(const Product& p) {
  const auto x = reinterpret_cast<uintptr_t>(p.x.data), y = reinterpret_cast<uintptr_t>(p.y.data);
  if (x < y + sizeof(float) * static_cast<size_t>(p.y_count) &&
      y < x + sizeof(float) * static_cast<size_t>(p.x_count)) {
    fail(FROZEN_ARGUMENT, "x and y share memory, expected y to be no part of x");
  }
}

void run(const Weight& weight, Product& p, const Ends& ends, int threads) {
  if (!p.y_count) return;
  require_apart(p);
  const auto convolve = active_conv_kernels().convolve;
  const float* row_scale = weight.record.code == SIGNS_CODE ? weight.row_scale.data() : nullptr;
  float* const y = static_cast<float*>(p.y.data);
  if (weight.coats.empty()) {
    std::vector<float> product;
    const float* gain = ends.gain ? ends.gain : row_scale;
    if (ends.gain && row_scale) {
      for (int64_t i = 0; i < weight.record.rows; ++i) product.push_back(ends.gain[i] * row_scale[i]);
      gain = product.data();
    }
    const Epilogue epilogue{ends.bias, FLOAT32, 1, gain, 1, ends.relu};
    return convolve(weight.frozen(), p.geometry, p.x, p.y, epilogue, threads);
  }
  const Epilogue epilogue{nullptr, FLOAT32, 1, row_scale, 1, false};
  convolve(weight.frozen(), p.geometry, p.x, p.y, epilogue, threads);
  // The first coat has carried what is infinite or NaN; zero times infinity would make NaN of it.
  const Block<float> finite(p.x_count), part(p.y_count);
  const float* const x = static_cast<const float*>(p.x.data);
  for (int64_t i = 0; i < p.x_count; ++i) finite.data()[i] = isfinite(x[i]) ? x[i] : 0.0f;
  Activations from = p.x, to = p.y;
  from.data = finite.data(), to.data = part.data();
  for (size_t coat = 1; coat <= weight.coats.size(); ++coat) {
    convolve(weight.frozen(coat), p.geometry, from, to, epilogue, threads);
    for (int64_t i = 0; i < p.y_count; ++i) y[i] += part.data()[i];
  }
  finish(p, y, ends);
}

void check_conv(const Weight& weight, const frozen_conv& conv, const int64_t* x_shape) {
  const Record& record = weight.record;
  const std::string called = shown(record.name);
  if (conv.dims < 1 || conv.dims > 3 || static_cast<size_t>(conv.dims) + 2 != record.shape.size()) {
    fail(FROZEN_ARGUMENT, "%s: dims is %d, expected 1 to 3 and 2 less than the %zu of the weight's shape %s",
         called.c_str(), conv.dims, record.shape.size(), shape_text(record.shape).c_str());
  }
  if (conv.groups < 1 || record.rows % conv.groups) {
    fail(FROZEN_ARGUMENT, "%s: groups is %lld, expected a divisor of the %lld output channels", called.c_str(),
         ll(conv.groups), ll(record.rows));
  }
  if (x_shape[0] < 0 || x_shape[0] > LARGEST) {
    fail(FROZEN_ARGUMENT, "%s: batch is %lld, expected 0 to 2^40", called.c_str(), ll(x_shape[0]));
  }
  int64_t channels = 0;
  if (__builtin_mul_overflow(record.shape[1], conv.groups, &channels) || x_shape[1] != channels) {
    fail(FROZEN_ARGUMENT, "%s: x has %lld channels, expected %lld (shape %s, %lld groups)", called.c_str(),
         ll(x_shape[1]), ll(channels), shape_text(record.shape).c_str(), ll(conv.groups));
  }
  for (int i = 0; i < conv.dims; ++i) {
    if (conv.stride[i] < 1 || conv.stride[i] > LARGEST || conv.dilation[i] < 1 || conv.dilation[i] > LARGEST ||
        conv.padding[i] < 0 || conv.padding[i] > LARGEST || x_shape[2 + i] < 0 || x_shape[2 + i] > LARGEST) {
      fail(FROZEN_ARGUMENT,
           "%s: dimension %d: size %lld, stride %lld, padding %lld, dilation %lld; expected size and padding of 0 or "
           "more, stride and dilation of 1 or more",
           called.c_str(), i, ll(x_shape[2 + i]), ll(conv.stride[i]), ll(conv.padding[i]), ll(conv.dilation[i]));
    }
  }
}

Geometry geometry_of(const Weight& weight, const frozen_conv& conv, const int64_t* x_shape, const int64_t* y_shape) {
  const int missing = 3 - conv.dims;
  Geometry g{x_shape[0], conv.groups, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};
  for (int i = 0; i < conv.dims; ++i) {
    const int d = missing + i;
    const size_t at = static_cast<size_t>(2 + i);
    g.wide[d] = x_shape[at], g.narrow[d] = y_shape[at], g.taps[d] = weight.record.shape[at];
    g.stride[d] = conv.stride[i], g.padding[d] = conv.padding[i], g.dilation[d] = conv.dilation[i];
  }
  if (!within_bounds(g)) {
    const auto list = [&](const int64_t* of) { return shape_text({of, of + conv.dims}); };
    fail(FROZEN_ARGUMENT, "%s: size %s, stride %s, padding %s, dilation %s: a padded input of more than 2^31 positions",
         shown(weight.record.name).c_str(), list(x_shape + 2).c_str(), list(conv.stride).c_str(),
         list(conv.padding).c_str(), list(conv.dilation).c_str());
  }
  return g;
}

void check_not_empty(const Record& record) {
  if (record.rows && record.cols) return;
  fail(FROZEN_ARGUMENT, "%s: its shape %s has no weights", shown(record.name).c_str(),
       shape_text(record.shape).c_str());
}

// Kept values of a row of a stored weight.
void stored_row(const Frozen& f, int64_t row, float* to) {
  const uint32_t* const plane = f.keep + row * f.words;
  int64_t at = f.offsets[row * f.chunks()];
  const float scale = f.row_scale ? f.row_scale[row] : 1.0f;
  for (int64_t k = 0; k < f.cols; ++k) to[k] = 0.0f;
  for (int64_t w = 0; w < f.words; ++w) {
    for (uint32_t rest = plane[w]; rest; rest &= rest - 1, ++at) {
      const int64_t k = 32 * w + column_of_bit(__builtin_ctz(rest));
      uint32_t bits = 0;
      float value = 0;
      if (f.value_dtype == FLOAT32) {
        value = static_cast<const float*>(f.values)[at];
      } else if (f.value_dtype == INT8) {
        value = static_cast<float>(static_cast<const int8_t*>(f.values)[at]) * scale;
      } else if (f.value_dtype == BFLOAT16) {
        bits = static_cast<uint32_t>(static_cast<const uint16_t*>(f.values)[at]) << 16;
        memcpy(&value, &bits, 4);
      } else {
        const uint32_t half = static_cast<const uint16_t*>(f.values)[at], magnitude = half & 0x7FFFu;
        bits = magnitude >= 0x7C00u ? 0x7F800000u | (magnitude & 0x3FFu) << 13 : (magnitude << 13) + 0x38000000u;
        memcpy(&value, &bits, 4);
        if (magnitude < 0x400u) value = static_cast<float>(magnitude) * 0x1p-24f;
        if (half & 0x8000u) value = -value;
      }
      to[k] = value;
    }
  }
}

}  // namespace

void run_linear(const Weight& weight, const float* x, int64_t batch, float* y, const Ends& ends, int threads) {
  const Record& record = weight.record;
  check_not_empty(record);
  const int64_t x_shape[2] = {batch, record.cols}, y_shape[2] = {batch, record.rows};
  const int64_t x_count = elements(x_shape, 2, "x"), y_count = elements(y_shape, 2, "y");
  Geometry g{1, 1, {1, 1, batch}, {1, 1, batch}, {1, 1, 1}, {1, 1, 1}, {0, 0, 0}, {1, 1, 1}};
  // Inputs are the pixels of one line, as in the Python package: kernels are chosen by strides too.
  const auto side = [&](const float* data, int64_t count, int64_t channels) {
    return Activations{const_cast<float*>(data), FLOAT32, {count, 1, count, count, channels}};
  };
  Product p{g, side(x, x_count, record.cols), side(y, y_count, record.rows), x_count, y_count, record.rows, 1, true};
  run(weight, p, ends, threads);
}

std::vector<int64_t> result_shape(const Weight& weight, const frozen_conv& conv, const int64_t* x_shape) {
  check_conv(weight, conv, x_shape);
  check_not_empty(weight.record);
  std::vector<int64_t> shape{x_shape[0], weight.record.rows};
  for (int i = 0; i < conv.dims; ++i) {
    const __int128 reach = __int128{conv.dilation[i]} * (weight.record.shape[static_cast<size_t>(2 + i)] - 1);
    const __int128 left = __int128{x_shape[2 + i]} + 2 * __int128{conv.padding[i]} - reach - 1;
    if (x_shape[2 + i] < 1 || left < 0) {
      fail(FROZEN_ARGUMENT, "%s: dimension %d: size %lld with padding %lld is less than the kernel's reach of %lld",
           shown(weight.record.name).c_str(), i, ll(x_shape[2 + i]), ll(conv.padding[i]),
           ll(static_cast<int64_t>(std::min<__int128>(reach + 1, INT64_MAX))));
    }
    shape.push_back(static_cast<int64_t>(left) / conv.stride[i] + 1);
  }
  elements(x_shape, conv.dims + 2, "x");
  elements(shape.data(), conv.dims + 2, "y");
  geometry_of(weight, conv, x_shape, shape.data());
  return shape;
}

void run_convolution(const Weight& weight, const frozen_conv& conv, const float* x, const int64_t* x_shape, float* y,
                     const std::vector<int64_t>& y_shape, const Ends& ends, int threads) {
  const int missing = 3 - conv.dims;
  const Geometry g = geometry_of(weight, conv, x_shape, y_shape.data());
  Activations from{const_cast<float*>(x), FLOAT32, {}}, to{y, FLOAT32, {}};
  int64_t x_step = 1, y_step = 1;
  for (int i = conv.dims - 1; i >= 0; --i) {
    const int d = missing + i;
    const size_t at = static_cast<size_t>(2 + i);
    from.stride[SPATIAL + d] = x_step, to.stride[SPATIAL + d] = y_step;
    x_step *= x_shape[at], y_step *= y_shape[at];
  }
  from.stride[CHANNEL] = x_step, to.stride[CHANNEL] = y_step;
  from.stride[BATCH] = x_step * x_shape[1], to.stride[BATCH] = y_step * y_shape[1];
  Product p{g,
            from,
            to,
            elements(x_shape, conv.dims + 2, "x"),
            elements(y_shape.data(), conv.dims + 2, "y"),
            weight.record.rows,
            y_step,
            false};
  run(weight, p, ends, threads);
}

void run_embedding(const Weight& weight, const int64_t* indices, int64_t count, int64_t padding, float* y,
                   int threads) {
  const Record& record = weight.record;
  check_not_empty(record);
  for (int64_t i = 0; i < count; ++i) {
    if (indices[i] >= 0 && indices[i] < record.rows) continue;
    fail(FROZEN_ARGUMENT, "%s: indices[%lld] is %lld, expected 0 to %lld", shown(record.name).c_str(), ll(i),
         ll(indices[i]), ll(record.rows - 1));
  }
  const int64_t shape[2] = {count, record.cols}, all = elements(shape, 2, "y");
  if (record.code == STORED_CODE) {
    const Frozen f = weight.frozen();
    for (int64_t i = 0; i < count; ++i) {
      float* const to = y + i * record.cols;
      if (indices[i] == padding) {
        std::fill(to, to + record.cols, 0.0f);
      } else {
        stored_row(f, indices[i], to);
      }
    }
    return;
  }
  const auto read = [&](Frozen f, float* to) {
    active_library_kernels().embedding(f, indices, count, padding, FLOAT32, to, threads);
    if (record.code != SIGNS_CODE || !weight.row_scale.data()) return;
    for (int64_t i = 0; i < all; ++i) to[i] *= weight.row_scale.data()[indices[i / record.cols]];
  };
  if (weight.coats.empty()) return read(weight.frozen(), y);
  // Codes alone are integers, whose sum is exact.
  const Block<float> part(all);
  for (size_t coat = 0; coat <= weight.coats.size(); ++coat) {
    Frozen f = weight.frozen(coat);
    f.scale = 1.0f;
    read(f, coat ? part.data() : y);
    for (int64_t i = 0; coat && i < all; ++i) y[i] += part.data()[i];
  }
  for (int64_t i = 0; i < all; ++i) y[i] *= record.scale;
}

}  // namespace fk::lib
