// deconv3x3_moments and its gradients in float, by winograd; what deconv3x3_moments.cpp chooses among.
#pragma once
#include "cpu/conv3x3_stage.h"
#include "cpu/deconv3x3_io.h"
#include "cpu/deconv3x3_moments.h"
#include "cpu/deconv3x3_weight_gradient.h"

namespace ddn::cpu {
namespace {

template <bool Backward>
float* pack_weights(const DeconvWeights& weights, const Parallel& parallel) {
  float* packed = static_cast<float*>(scratch(Scratch::weights, weights.packed_floats() * sizeof(float)));
  parallel(weights.in_blocks() * weights.out_blocks(), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) weights.template pack<Backward>(pair, packed);
  });
  return packed;
}

// One layer without bias and ReLU between the given ways in and out.
template <class In, class Out>
void run_layer(const In& in, const Out& out, const float* packed, int64_t maps, int64_t in_channels,
               int64_t out_channels, const Parallel& parallel) {
  const Conv3x3Layer layer{packed, nullptr, Conv3x3Layout::winograd, in_channels, out_channels};
  Conv3x3Params p{};
  p.layers = &layer;
  p.layer_count = 1;
  p.maps = maps;
  p.height = in.height;
  p.width = in.width;
  const TrainingIo<In, Out> io{in, out};
  Stage<WinogradKernel, TrainingIo<In, Out>>(p, io, parallel).run();
}

template <class X>
void moments_forward(const Deconv3x3MomentsParams& p, const Parallel& parallel) {
  const ActivatedIn<X> in{static_cast<const X*>(p.x), p.scale, p.shift, p.switches, p.height, p.width, p.in_channels};
  const MomentsOut<X> out{static_cast<X*>(p.y), p.rows, p.height, p.width, p.out_channels};
  const DeconvWeights weights{p.weight, p.in_channels, p.out_channels};
  run_layer(in, out, pack_weights<false>(weights, parallel), p.maps, p.in_channels, p.out_channels, parallel);
}

// Gradient: what gives the whole gradient of y, line by line.
template <class X, class Gradient>
void layer_gradients(const Deconv3x3MomentsBackwardParams& p, const Gradient& gradient, const Parallel& parallel) {
  const X* x = static_cast<const X*>(p.x);
  const int64_t half = p.switches ? 2 : 1;
  const GradientOut<X> out{x,      p.scale,         p.shift,        p.switches,   static_cast<X*>(p.grad_x),
                           p.rows, p.height / half, p.width / half, p.in_channels};
  const DeconvWeights weights{p.weight, p.in_channels, p.out_channels};
  run_layer(gradient, out, pack_weights<true>(weights, parallel), p.maps, p.out_channels, p.in_channels, parallel);

  const ActivatedIn<X> in{x, p.scale, p.shift, p.switches, p.height, p.width, p.in_channels};
  float* sums = static_cast<float*>(scratch(Scratch::weights, weights.packed_floats() * sizeof(float)));
  WeightGradient(in, gradient, weights, p.maps, parallel).run(sums, p.grad_weight);
}

template <class X>
MomentsGradient<X> moments_gradient(const Deconv3x3MomentsBackwardParams& p) {
  const float one_by_m = static_cast<float>(1.0 / static_cast<double>(p.maps * p.height * p.width));
  return {static_cast<const X*>(p.y), p.mean, p.grad_mean, p.grad_var, one_by_m};
}

template <class X>
void moments_backward(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel) {
  const GradientIn<X> gradient{static_cast<const X*>(p.grad_y), moments_gradient<X>(p), p.height, p.width,
                               p.out_channels};
  layer_gradients<X>(p, gradient, parallel);
}

template <class X>
void moments_backward_score(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel) {
  const Deconv3x3MomentsBackwardParams& layer = p.layer;
  const ScoreGradientIn<X> gradient{
      p.grad_score, p.score_scale, p.score_shift,     p.score_weight, moments_gradient<X>(layer),
      layer.height, layer.width,   layer.out_channels};
  layer_gradients<X>(layer, gradient, parallel);
}

inline void run_moments(const Deconv3x3MomentsParams& p, const Parallel& parallel) {
  p.dtype == Dtype::bfloat16 ? moments_forward<BF16>(p, parallel) : moments_forward<float>(p, parallel);
}

inline void run_moments_backward(const Deconv3x3MomentsBackwardParams& p, const Parallel& parallel) {
  p.dtype == Dtype::bfloat16 ? moments_backward<BF16>(p, parallel) : moments_backward<float>(p, parallel);
}

inline void run_moments_backward_score(const Deconv3x3MomentsBackwardScoreParams& p, const Parallel& parallel) {
  p.layer.dtype == Dtype::bfloat16 ? moments_backward_score<BF16>(p, parallel)
                                   : moments_backward_score<float>(p, parallel);
}

}  // namespace
}  // namespace ddn::cpu
