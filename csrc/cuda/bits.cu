#include "cuda/bits.h"

#include "cuda/families.h"

FK_DEFINE_FAMILY(BITS, Product, bits)
