#include "cuda/bytes.h"

#include "cuda/families.h"

FK_DEFINE_FAMILY(BYTES, Product, bytes)
