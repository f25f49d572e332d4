#include "cpu/merge_rows.h"

namespace ddn::cpu::avx512 {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  merge_rows<float>(p, taps, begin, end);
}
}  // namespace ddn::cpu::avx512
