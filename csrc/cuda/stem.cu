#include "cuda/stem.h"

#include "cuda/families.h"

FK_DEFINE_FAMILY(STEM, Convolution, stem)
