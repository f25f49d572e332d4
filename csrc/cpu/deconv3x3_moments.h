// The variants of deconv3x3_moments and its gradients; deconv3x3_moments.cpp chooses. Each is compiled with its own
// flags. They leave sums of rows behind, which it adds up.
#pragma once
#include "cpu/parallel.h"
#include "params.h"

namespace ddn::cpu {

void deconv3x3_moments_plain(const Deconv3x3MomentsParams& p, const Parallel& parallel);
void deconv3x3_moments_avx2(const Deconv3x3MomentsParams& p, const Parallel& parallel);
void deconv3x3_moments_avx512(const Deconv3x3MomentsParams& p, const Parallel& parallel);

void deconv3x3_moments_backward_plain(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel);
void deconv3x3_moments_backward_avx2(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel);
void deconv3x3_moments_backward_avx512(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel);

void deconv3x3_moments_backward_score_plain(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel);
void deconv3x3_moments_backward_score_avx2(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel);
void deconv3x3_moments_backward_score_avx512(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel);

}  // namespace ddn::cpu
