// seg_score: the two seg-scores of relu(scale * x + shift), a 1x1 convolution, and its gradients (SPEC section 6). In
// training batch normalisation and ReLU before it happen where x is read: the normalised map never exists. Bound by
// reading x: forward x once, backward x once and its gradient written.
#include "cpu/seg_score.h"

#include "cpu/row_sums.h"
#include "cpu/variants.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

using Forward = void (*)(const SegScoreParams&, int64_t, int64_t);
using Backward = void (*)(const SegScoreBackwardParams&, int64_t, int64_t);

constexpr Variant<Forward> kForward[] = {
    {Isa::plain, seg_score_plain}, {Isa::avx2, DDN_AVX2(seg_score_avx2)}, {Isa::avx512, DDN_AVX512(seg_score_avx512)}};
constexpr Variant<Backward> kBackward[] = {{Isa::plain, seg_score_backward_plain},
                                           {Isa::avx2, DDN_AVX2(seg_score_backward_avx2)},
                                           {Isa::avx512, DDN_AVX512(seg_score_backward_avx512)}};

}  // namespace

void seg_score(const SegScoreParams& p, const Parallel& parallel) {
  const Forward rows = best_variant(kForward, isa());
  parallel(p.rows, [&](int64_t begin, int64_t end) { rows(p, begin, end); });
}

void seg_score_backward(const SegScoreBackwardParams& p, const Parallel& parallel) {
  const Backward rows = best_variant(kBackward, isa());
  parallel(p.rows, [&](int64_t begin, int64_t end) { rows(p, begin, end); });
  const RowSums sums{p.sums, p.rows, 4, p.channels};
  float* const to[] = {p.grad_shift, p.grad_scale, p.grad_weight, p.grad_weight + p.channels};
  sums.store_totals(to, parallel);
  double of_bias[2] = {};
  for (int64_t j = 0; j < p.rows * p.width; ++j)
    for (int k = 0; k < 2; ++k) of_bias[k] += p.grad_y[2 * j + k];
  for (int k = 0; k < 2; ++k) p.grad_bias[k] = static_cast<float>(of_bias[k]);
}

}  // namespace ddn::cpu
