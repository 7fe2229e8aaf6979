#include "binding/geometry.h"

#include <algorithm>
#include <stdexcept>

namespace fk {

namespace {

void require_at_least(const char* what, int64_t got, int64_t least) {
  if (got >= least) return;
  throw std::invalid_argument(std::string(what) + " is " + std::to_string(got) + ", expected at least " +
                              std::to_string(least));
}

void require_divides(const char* what, int64_t part, const char* of, int64_t whole) {
  if (whole % part == 0) return;
  throw std::invalid_argument(std::string(what) + " = " + std::to_string(part) + " does not divide " + of + " = " +
                              std::to_string(whole));
}

}  // namespace

Activations to_activations(const Side& side) {
  Activations a{pointer<void>(side[0]), to_dtype(static_cast<int>(side[1])), {}};
  for (int d = 0; d < 5; ++d) a.stride[d] = side[2 + d];
  return a;
}

Epilogue to_epilogue(const EpilogueArgs& a) {
  return {
      pointer<const void>(a[0]), to_dtype(static_cast<int>(a[1])), a[2], pointer<const float>(a[3]), a[4], a[5] != 0};
}

void require_within_bounds(Geometry& g) {
  const Geometry given = g;
  if (within_bounds(g)) return;
  std::string said;
  const auto list = [&](const char* what, const int64_t* of) {
    said += std::string(said.empty() ? "" : ", ") + what + " [" + std::to_string(of[0]) + ", " + std::to_string(of[1]) +
            ", " + std::to_string(of[2]) + "]";
  };
  list("size", given.wide), list("kernel", given.taps), list("stride", given.stride);
  list("padding", given.padding), list("dilation", given.dilation);
  throw std::invalid_argument(said + ": a padded input of more than 2^31 positions");
}

Geometry to_geometry(const Frozen& f, const Sizes& sizes) {
  Geometry g{};
  g.batch = sizes[0];
  g.groups = sizes[1];
  require_at_least("batch", g.batch, 0);
  require_at_least("groups", g.groups, 1);
  for (int d = 0; d < 3; ++d) {
    const int64_t* const s = sizes.data() + 2 + 6 * d;
    g.wide[d] = s[0], g.narrow[d] = s[1], g.taps[d] = s[2], g.stride[d] = s[3], g.padding[d] = s[4];
    g.dilation[d] = s[5];
    require_at_least("spatial size", std::min(g.wide[d], g.narrow[d]), 0);
    require_at_least("kernel size", g.taps[d], 1);
    require_at_least("stride", g.stride[d], 1);
    require_at_least("dilation", g.dilation[d], 1);
  }
  require_within_bounds(g);
  require_divides("groups", g.groups, "rows", f.rows);
  require_divides("taps", g.tap_count(), "columns", f.cols);
  return g;
}

}  // namespace fk
