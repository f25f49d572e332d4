#include "cpu/class_gate_rows.h"

namespace ddn::cpu::avx2 {
void row_sums(const GateSums& sums, int64_t begin, int64_t end) {
  sum_rows(sums, begin, end);
}
}  // namespace ddn::cpu::avx2
