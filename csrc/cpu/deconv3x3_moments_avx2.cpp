#include "cpu/deconv3x3_moments_float.h"

namespace ddn::cpu {

void deconv3x3_moments_avx2(const Deconv3x3MomentsParams& p, const Parallel& parallel) {
  run_moments(p, parallel);
}

void deconv3x3_moments_backward_avx2(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel) {
  run_moments_backward(p, parallel);
}

void deconv3x3_moments_backward_score_avx2(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel) {
  run_moments_backward_score(p, parallel);
}

}  // namespace ddn::cpu
