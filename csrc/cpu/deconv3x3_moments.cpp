// deconv3x3_moments: y = conv_transpose2d(unpool(relu(scale * x + shift)), weight) and the mean and variance of y; and
// its gradients (SPEC sections 6 and 8, identities 7 to 9). In training a layer of the segmentation network is this one
// op: batch normalisation and ReLU happen where the next layer reads y, the unpooled map and the normalised one never
// exist, and what is kept for the gradients is y and x. By winograd in float, whatever the maps' dtype.
#include "cpu/deconv3x3_moments.h"

#include "cpu/row_sums.h"
#include "cpu/variants.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

using Forward = void (*)(const Deconv3x3MomentsParams&, const Parallel&);
using Backward = void (*)(const Deconv3x3MomentsBackwardParams&, const Parallel&);
using BackwardScore = void (*)(const Deconv3x3MomentsBackwardScoreParams&, const Parallel&);

constexpr Variant<Forward> kForward[] = {{Isa::plain, deconv3x3_moments_plain},
                                         {Isa::avx2, DDN_AVX2(deconv3x3_moments_avx2)},
                                         {Isa::avx512, DDN_AVX512(deconv3x3_moments_avx512)}};
constexpr Variant<Backward> kBackward[] = {{Isa::plain, deconv3x3_moments_backward_plain},
                                           {Isa::avx2, DDN_AVX2(deconv3x3_moments_backward_avx2)},
                                           {Isa::avx512, DDN_AVX512(deconv3x3_moments_backward_avx512)}};
constexpr Variant<BackwardScore> kBackwardScore[] = {
    {Isa::plain, deconv3x3_moments_backward_score_plain},
    {Isa::avx2, DDN_AVX2(deconv3x3_moments_backward_score_avx2)},
    {Isa::avx512, DDN_AVX512(deconv3x3_moments_backward_score_avx512)}};

// The gradients of scale and shift from the sums of the rows of x.
void add_up(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel) {
  const RowSums sums{p.rows, p.maps * (p.switches ? p.height / 2 : p.height), 2, p.in_channels};
  float* const to[] = {p.grad_shift, p.grad_scale};
  sums.store_totals(to, parallel);
}

}  // namespace

void deconv3x3_moments(const Deconv3x3MomentsParams& p, const Parallel& parallel) {
  best_variant(kForward, isa())(p, parallel);
  const RowSums sums{p.rows, p.maps * p.height, 2, p.out_channels};
  parallel(p.out_channels, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const double mean = sums.total(0, c) / static_cast<double>(sums.rows);
      double squares = sums.total(1, c);  // around each row's own mean; now around the mean of all
      for (int64_t row = 0; row < sums.rows; ++row) {
        const double off = sums.at(row, 0, c) - mean;
        squares += off * off * static_cast<double>(p.width);
      }
      p.mean[c] = static_cast<float>(mean);
      p.var[c] = static_cast<float>(squares / static_cast<double>(sums.rows * p.width));
    }
  });
}

void deconv3x3_moments_backward(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel) {
  best_variant(kBackward, isa())(p, parallel);
  add_up(p, parallel);
}

void deconv3x3_moments_backward_score(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel) {
  best_variant(kBackwardScore, isa())(p, parallel);
  add_up(p.layer, parallel);
}

}  // namespace ddn::cpu
