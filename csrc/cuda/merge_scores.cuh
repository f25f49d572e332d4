// merge_scores: label map of one image from its passes (SPEC section 7.3): y = arg max over k of the bicubic resize of
//   score[k] = s[k] / sum of s,  s[0] = sigmoid(-d[0]),  s[k] = sigmoid(d[k]);  equal shares where all s are exactly 0.
//
// Two kernels. The first makes the normalised scores, one thread a pixel of the network's output, and the filter's
// table (resize_taps.h), one thread a row or column of the result. The second resizes and compares, one thread a pixel
// of the result, 32 neighbours a warp: its taps overlap those of the next, so scores come from the caches. NaN is in
// all planes, as in their sum: background. Bytes: d read, scores (K+1)*S*S written and read once from memory, y
// written; work taps^2 * (K+1) a pixel, 25 where the map grows. Threads: 256 a block.
#pragma once
#include "cuda/dev.cuh"
#include "params.h"
#include "resize_taps.h"

namespace ddn {

constexpr int kMergeThreads = 256;

template <class T>
struct MergeScoresLaunch {
  const T* difference;  // [P,S,S]
  T* score;             // [K+1,S,S]
  T* weight;            // [max(h,w),taps]
  int* index;           // [max(h,w),taps]
  uint8_t* y;           // [h,w]
  ResizeTaps<Cubic> filter;
  int taps;
  int64_t classes, side, height, width;
};

template <class T>
DDN_GLOBAL void pixel_scores_kernel(const MergeScoresLaunch<T> p) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, plane = p.side * p.side;
  if (item >= plane) {
    const int64_t i = item - plane;
    if (i < p.height || i < p.width) p.filter.fill(i, p.index + i * p.taps, p.weight + i * p.taps);
    return;
  }
  const int64_t skip = p.classes == 1 ? 0 : 1;  // one pass is both background and class
  T sum = 0;
  for (int64_t k = 0; k <= p.classes; ++k) {
    const T d = p.difference[(k == 0 ? 0 : k - 1 + skip) * plane + item];
    const T s = T(1) / (T(1) + exponential(k == 0 ? d : -d));
    p.score[k * plane + item] = s;
    sum += s;
  }
  for (int64_t k = 0; k <= p.classes; ++k) {
    T& s = p.score[k * plane + item];
    s = sum <= 0 ? T(1) / static_cast<T>(p.classes + 1) : s / sum;
  }
}

template <class T>
DDN_GLOBAL void merge_scores_kernel(const MergeScoresLaunch<T> p) {
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (item >= p.height * p.width) return;
  const int64_t row = item / p.width * p.taps, column = item % p.width * p.taps;
  T best = 0;
  int label = 0;
  for (int64_t k = 0; k <= p.classes; ++k) {
    const T* score = p.score + k * p.side * p.side;
    T value = 0;
    for (int ty = 0; ty < p.taps; ++ty) {
      const T* from = score + p.index[row + ty] * p.side;
      T across = 0;
      for (int tx = 0; tx < p.taps; ++tx) across += p.weight[column + tx] * from[p.index[column + tx]];
      value += p.weight[row + ty] * across;
    }
    if (value > best || k == 0) best = value, label = static_cast<int>(k);
  }
  p.y[item] = static_cast<uint8_t>(label);
}

}  // namespace ddn
