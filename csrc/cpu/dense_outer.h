// The variants of dense_outer; dense_outer.cpp chooses. Each computes tasks [begin, end) of dense_outer_tasks(p).
#pragma once
#include "params.h"

namespace ddn::cpu {

constexpr int64_t kOuterRows = 384, kOuterColumns = 512;  // of y in a task

inline int64_t dense_outer_tasks(const DenseOuterParams& p) {
  return (p.rows + kOuterRows - 1) / kOuterRows * ((p.columns + kOuterColumns - 1) / kOuterColumns);
}

void dense_outer_plain(const DenseOuterParams& p, int64_t begin, int64_t end);
void dense_outer_avx2(const DenseOuterParams& p, int64_t begin, int64_t end);
void dense_outer_avx512(const DenseOuterParams& p, int64_t begin, int64_t end);

}  // namespace ddn::cpu
