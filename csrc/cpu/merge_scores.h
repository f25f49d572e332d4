// merge_scores in its variants, one per instruction set; float64 has the plain one only.
#pragma once
#include "cpu/taps.h"
#include "kernels.h"

namespace ddn::cpu {

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
