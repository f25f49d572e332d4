#include "cpu/seg_score.h"
#include "cpu/seg_score_rows.h"

namespace ddn::cpu {

void seg_score_avx2(const SegScoreParams& p, int64_t begin, int64_t end) {
  run_seg_score(p, begin, end);
}

void seg_score_backward_avx2(const SegScoreBackwardParams& p, int64_t begin, int64_t end) {
  run_seg_score_backward(p, begin, end);
}

}  // namespace ddn::cpu
