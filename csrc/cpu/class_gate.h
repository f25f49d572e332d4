// class_gate's product in its variants, one per instruction set.
#pragma once
#include "kernels.h"

namespace ddn::cpu {

constexpr int kGateTogether = 4;  // pairs that share the reading of a row

// y[q][c] = sum over i of scale[i][q] * weight[on[i]][c]: of a matrix, the rows that are on.
struct GateSums {
  const void* weight;  // [rows,columns]
  Dtype dtype;         // of weight
  int64_t columns;
  const int64_t* on;   // [count], ascending
  const float* scale;  // [count][kGateTogether]
  int64_t count;
  int pairs;                // 1..kGateTogether
  float* y[kGateTogether];  // [columns] each
};

}  // namespace ddn::cpu

namespace ddn::cpu::plain {
void row_sums(const GateSums& sums, int64_t begin, int64_t end);  // columns [begin, end)
}
namespace ddn::cpu::avx2 {
void row_sums(const GateSums& sums, int64_t begin, int64_t end);
}
namespace ddn::cpu::avx512 {
void row_sums(const GateSums& sums, int64_t begin, int64_t end);
}
