// Rows of seg_score and of its gradients: pixels one after the other, channels innermost, a register at a time.
#pragma once
#include "cpu/deconv3x3_io.h"

namespace ddn::cpu {
namespace {

template <class X>
void score_rows(const SegScoreParams& p, int64_t begin, int64_t end) {
  const int64_t channels = p.channels;
  const X* x = static_cast<const X*>(p.x) + begin * p.width * channels;
  float* y = p.y + begin * p.width * 2;
  for (int64_t j = 0; j < (end - begin) * p.width; ++j, x += channels, y += 2) {
    Vec total[2] = {};
    for (int64_t c = 0; c < channels; c += kWidth) {
      const int some = static_cast<int>(least(channels - c, kWidth));
      const Vec value = relu(load_some(p.scale + c, some) * load_some(x + c, some) + load_some(p.shift + c, some));
      for (int k = 0; k < 2; ++k) total[k] += value * load_some(p.weight + k * channels + c, some);
    }
    for (int k = 0; k < 2; ++k) y[k] = sum(total[k]) + p.bias[k];
  }
}

// grad_x where it is wanted, and of the row the sums that are the gradients of shift, scale and the rows of weight.
template <class X>
void score_backward_row(const SegScoreBackwardParams& p, int64_t row) {
  const int64_t channels = p.channels, at = row * p.width * channels;
  const X* x = static_cast<const X*>(p.x) + at;
  X* grad_x = p.grad_x ? static_cast<X*>(p.grad_x) + at : nullptr;
  const float* grad_y = p.grad_y + row * p.width * 2;
  const int64_t padded = blocks_of(channels) * kBlock;
  float* sums = p.sums + row * 4 * padded;
  for (int64_t c = 0; c < channels; c += kWidth) {
    const int some = static_cast<int>(least(channels - c, kWidth));
    const Vec scale = load_some(p.scale + c, some), shift = load_some(p.shift + c, some);
    const Vec w0 = load_some(p.weight + c, some), w1 = load_some(p.weight + channels + c, some);
    Vec of_shift{}, of_scale{}, of_w0{}, of_w1{};
    for (int64_t j = 0; j < p.width; ++j) {
      const Vec value = load_some(x + j * channels + c, some), activated = scale * value + shift;
      const Vec g = score_gradient(activated, w0, w1, grad_y + 2 * j);
      of_shift += g;
      of_scale += g * value;
      of_w0 += splat(grad_y[2 * j]) * relu(activated);
      of_w1 += splat(grad_y[2 * j + 1]) * relu(activated);
      if (grad_x) store_some(grad_x + j * channels + c, scale * g, some);
    }
    store(sums + c, of_shift);
    store(sums + padded + c, of_scale);
    store(sums + 2 * padded + c, of_w0);
    store(sums + 3 * padded + c, of_w1);
  }
}

inline void run_seg_score(const SegScoreParams& p, int64_t begin, int64_t end) {
  p.dtype == Dtype::bfloat16 ? score_rows<BF16>(p, begin, end) : score_rows<float>(p, begin, end);
}

inline void run_seg_score_backward(const SegScoreBackwardParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row)
    p.dtype == Dtype::bfloat16 ? score_backward_row<BF16>(p, row) : score_backward_row<float>(p, row);
}

}  // namespace
}  // namespace ddn::cpu
