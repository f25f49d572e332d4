#include "cuda/merge_scores.cuh"

#include <algorithm>

#include "kernels.h"

namespace ddn::cuda {
namespace {

int64_t rounded(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}

// The workspace: [scores | the filter's weights | its indices].
struct Sizes {
  int64_t taps, scores, weights, indices;

  explicit Sizes(const MergeScoresParams& p) : taps(ResizeTaps<Cubic>{p.side, p.square}.taps()) {
    const int64_t table = std::max(p.height, p.width) * taps, bytes = element_bytes(p.dtype);
    scores = rounded((p.classes + 1) * p.side * p.side * bytes);
    weights = rounded(table * bytes), indices = rounded(table * 4);
  }
  int64_t bytes() const {
    return scores + weights + indices;
  }
};

template <class T>
int launch_merge(const MergeScoresParams& p, Stream stream) {
  const Sizes sizes(p);
  char* const memory = static_cast<char*>(p.workspace);
  const MergeScoresLaunch<T> launch{static_cast<const T*>(p.difference),
                                    reinterpret_cast<T*>(memory),
                                    reinterpret_cast<T*>(memory + sizes.scores),
                                    reinterpret_cast<int*>(memory + sizes.scores + sizes.weights),
                                    p.y,
                                    ResizeTaps<Cubic>{p.side, p.square},
                                    static_cast<int>(sizes.taps),
                                    p.classes,
                                    p.side,
                                    p.height,
                                    p.width};
  const auto blocks = [](int64_t items) { return (items + kMergeThreads - 1) / kMergeThreads; };
  const int64_t first = blocks(p.side * p.side + std::max(p.height, p.width)), second = blocks(p.height * p.width);
  if (first > INT32_MAX || second > INT32_MAX || p.side > INT32_MAX) return cudaErrorInvalidValue;
  DDN_LAUNCH(pixel_scores_kernel<T>, static_cast<unsigned>(first), kMergeThreads, stream, launch);
  if (const cudaError_t error = cudaGetLastError()) return error;
  DDN_LAUNCH(merge_scores_kernel<T>, static_cast<unsigned>(second), kMergeThreads, stream, launch);
  return cudaGetLastError();
}

}  // namespace

int64_t merge_scores_workspace_bytes(const MergeScoresParams& p) {
  return Sizes(p).bytes();
}

int merge_scores(const MergeScoresParams& p, Stream stream) {
  if (p.dtype == Dtype::float64) return launch_merge<double>(p, stream);
  if (p.dtype == Dtype::float32) return launch_merge<float>(p, stream);
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
