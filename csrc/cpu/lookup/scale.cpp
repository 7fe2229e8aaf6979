#include "cpu/lookup/scale.h"

#include <cmath>
#include <numeric>

#include "cpu/core/parallel.h"
#include "cpu/core/scratch.h"

#if FK_USES_LOOKUP
namespace fk::FK_ISA_NS {

namespace {

// Units may cost as much as torch loses by rounding: of a result 1e-8 times the root of the number of its products
// (measured: 2.4e-7 with 576, 6.5e-7 with 4608).
constexpr double ROUNDING = 1e-8;

// A line of the source: for each chunk the largest sum of sizes of a pixel, and the sum of all sizes.
class LineMeasure {
 public:
  LineMeasure(const Call& c, const LookupShape& shape) : c_(c), shape_(shape) {}

  // Line `line` of all groups, images and planes.
  void measure(int64_t line, float* largest, float* sum) const {
    const Geometry& g = c_.g;
    const int64_t* const stride = c_.wide.stride;
    const int64_t y = line % g.wide[1], z = line / g.wide[1] % g.wide[0], image = line / g.wide[1] / g.wide[0];
    const int64_t offset = image % g.batch * stride[BATCH] + z * stride[SPATIAL] + y * stride[SPATIAL + 1] +
                           image / g.batch * c_.layer.channels * stride[CHANNEL];
    with_dtype(c_.wide.dtype, [&](auto dtype) {
      const auto* source = static_cast<const typename Element<dtype>::Type*>(c_.wide.data) + offset;
      *sum = stride[CHANNEL] == 1 ? by_pixel<dtype>(source, largest) : by_channel<dtype>(source, largest);
    });
  }

 private:
  int64_t channels_of(int64_t chunk) const {
    return std::min(TRIPLE * shape_.chunk, shape_.channels - TRIPLE * shape_.chunk * chunk);
  }

  template <int DTYPE>
  float by_pixel(const typename Element<DTYPE>::Type* source, float* largest) const {
    const int64_t width = c_.g.wide[2], chunks = shape_.chunks(), next = c_.wide.stride[SPATIAL + 2];
    Scratch scratch(4 * c_.layer.channels);
    float* const staged = scratch.take<float>(c_.layer.channels);
    float whole = 0.0f;
    std::fill_n(largest, chunks, 0.0f);
    for (int64_t x = 0; x < width; ++x, source += next) {
      const float* inputs = staged;
      if constexpr (DTYPE == FLOAT32) {
        inputs = source;
      } else {
        read<DTYPE>(source, 1, c_.layer.channels, staged);
      }
      for (int64_t chunk = 0; chunk < chunks; ++chunk, inputs += TRIPLE * shape_.chunk) {
        const float sum = sum_of_sizes(inputs, channels_of(chunk));
        largest[chunk] = std::max(largest[chunk], sum);
        whole += sum;
      }
    }
    return whole;
  }

  template <int DTYPE>
  float by_channel(const typename Element<DTYPE>::Type* source, float* largest) const {
    const int64_t width = c_.g.wide[2], lanes = round_up(width, VL);
    Scratch scratch(8 * lanes);
    float* const staged = scratch.take<float>(lanes);
    float* const sums = scratch.take<float>(lanes);
    float whole = 0.0f;
    std::fill_n(staged, lanes, 0.0f);
    for (int64_t chunk = 0; chunk < shape_.chunks(); ++chunk) {
      std::fill_n(sums, lanes, 0.0f);
      for (int64_t i = 0; i < channels_of(chunk); ++i, source += c_.wide.stride[CHANNEL]) {
        read<DTYPE>(source, c_.wide.stride[SPATIAL + 2], width, staged);
        add_sizes(staged, lanes, sums);
      }
      largest[chunk] = width ? *std::max_element(sums, sums + width) : 0.0f;
      whole = std::accumulate(sums, sums + width, whole);
    }
    return whole;
  }

  const Call& c_;
  const LookupShape& shape_;
};

}  // namespace

ImageScales::ImageScales(const Call& c, const LookupShape& shape)
    : batches_(c.g.batch), chunks_(static_cast<size_t>(shape.chunks())) {
  const int64_t lines = c.g.wide[0] * c.g.wide[1], images = c.layer.groups * batches_;
  std::vector<float> largest(static_cast<size_t>(images * lines) * chunks_);
  std::vector<float> sums(static_cast<size_t>(images * lines));
  const LineMeasure measure(c, shape);
  parallel_for(c.threads, images * lines, [&](int64_t i) {
    measure.measure(i, largest.data() + static_cast<size_t>(i) * chunks_, sums.data() + i);
  });
  const double taps = static_cast<double>(c.layer.taps), pixels = static_cast<double>(lines * c.g.wide[2]);
  for (int64_t image = 0; image < images; ++image) {
    double sum = 0, noise = 0;
    for (int64_t line = 0; line < lines; ++line) {
      sum += static_cast<double>(sums[static_cast<size_t>(image * lines + line)]);
    }
    bool suits = std::isfinite(sum);
    for (size_t chunk = 0; chunk < chunks_; ++chunk) {
      float most = 0.0f;
      for (int64_t line = 0; line < lines; ++line) {
        most = std::max(most, largest[static_cast<size_t>(image * lines + line) * chunks_ + chunk]);
      }
      const float bound = static_cast<float>(taps) * most;
      suits = suits && has_scale(bound);
      scales_.push_back(suits ? scale_of(bound) : Scale{1.0f, 1.0f});
      const double unit = bound > 0.0f ? static_cast<double>(scales_.back().unit) : 0.0;
      noise += taps * static_cast<double>(shape.groups_of(static_cast<int64_t>(chunk))) * unit * unit / 12;
    }
    // The mean square of what rounding adds to a result, and the most that it may be: of a mean square of results that
    // is taken from the mean size of inputs, which a few large ones hardly raise.
    const double mean = sum / pixels, most_noise = ROUNDING * taps * mean;
    suits_.push_back(suits && noise <= most_noise * most_noise);
  }
}

}  // namespace fk::FK_ISA_NS
#endif
