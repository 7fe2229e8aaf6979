#include "cpu/words/read_rows.h"

#include "cpu/words/row_block.h"

namespace fk::FK_ISA_NS {

void read_rows(const Frozen& f, int64_t row0, int64_t rows, uint32_t* keep, uint32_t* sign) {
  const size_t bytes = static_cast<size_t>(4 * f.words * VL);
  if (f.code != SIGN_CODE) memset(sign, 0, bytes);
  RowBlock block(f, row0, rows, VL);
  block.next_keep(f.words, keep);
  if (f.code == SIGN_CODE) block.next_draw(f.words, sign);
  block.prefetch_following(0, f.words);
  vu32::set(0).store(keep + f.words * VL);
  vu32::set(0).store(sign + f.words * VL);
}

}  // namespace fk::FK_ISA_NS
