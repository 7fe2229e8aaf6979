#include "cuda/stored.h"

#include "cuda/families.h"

FK_DEFINE_FAMILY(STORED, Product, stored)
