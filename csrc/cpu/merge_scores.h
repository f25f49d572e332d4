// merge_scores in its variants, one per instruction set; float64 has the plain one only.
#pragma once
#include "kernels.h"

namespace ddn::cpu {

// The filter along one axis: y[i] = sum over t of weight[i][t] * x[index[i][t]].
struct Taps {
  int64_t count;         // T
  const int64_t* index;  // [max(h,w),T], each in 0..S-1
  const void* weight;    // [max(h,w),T] of the op's dtype
};

namespace plain {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end);  // of y
}
namespace avx2 {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end);  // of y
}
namespace avx512 {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end);  // of y
}

}  // namespace ddn::cpu
