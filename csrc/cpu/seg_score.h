// The variants of seg_score and its gradients; seg_score.cpp chooses. Each computes rows [begin, end).
#pragma once
#include "params.h"

namespace ddn::cpu {

void seg_score_plain(const SegScoreParams& p, int64_t begin, int64_t end);
void seg_score_avx2(const SegScoreParams& p, int64_t begin, int64_t end);
void seg_score_avx512(const SegScoreParams& p, int64_t begin, int64_t end);

// They leave sums of rows behind, which seg_score.cpp adds up.
void seg_score_backward_plain(const SegScoreBackwardParams& p, int64_t begin, int64_t end);
void seg_score_backward_avx2(const SegScoreBackwardParams& p, int64_t begin, int64_t end);
void seg_score_backward_avx512(const SegScoreBackwardParams& p, int64_t begin, int64_t end);

}  // namespace ddn::cpu
