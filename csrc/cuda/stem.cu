#include "cuda/families.h"
namespace fk::cuda {
const Family<Convolution> STEM = {"stem", [](const Convolution&) { return "stem"; }, nullptr,
                                  []() -> Error { return nullptr; }};
}  // namespace fk::cuda
