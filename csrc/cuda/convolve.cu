#include "cuda/convolve.h"

#include "cuda/families.h"

FK_DEFINE_FAMILY(CONVOLVE, Convolution, convolve)
