// Faults that are put into kernels, one for each run: FK_MUTANT=N leaves the barrier with the number N out,
// FK_MUTANT=rows gives the rows of a block to the next one as well. FK_MUTANT=list prints the numbers of the barriers
// that were passed. Included before everything else, by a program whose kernels' headers ask `keeps` before each
// barrier.
#pragma once
#include <stdlib.h>

#include "emulator.h"

namespace mutants {

const std::string chosen = getenv("FK_MUTANT") ? getenv("FK_MUTANT") : "";
const int left_out = chosen.empty() || !isdigit(chosen[0]) ? -1 : atoi(chosen.c_str());
const bool shared_rows = chosen == "rows";

struct Passed {
  bool barriers[1000] = {};
  ~Passed() {
    if (chosen != "list") return;
    printf("barriers:");
    for (int i = 0; i < 1000; ++i) {
      if (barriers[i]) printf(" %d", i);
    }
    printf("\n");
  }
};
inline Passed passed;

EMULATOR_HIDDEN inline bool keeps(int barrier) {
  passed.barriers[barrier] = true;
  return barrier != left_out;
}
EMULATOR_HIDDEN inline dim3 block_index() {
  dim3 index = emulator::block_index();
  if (shared_rows) index.x /= 2;
  return index;
}

}  // namespace mutants

#undef blockIdx
#define blockIdx mutants::block_index()
