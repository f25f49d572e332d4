// The filter of a resize along one axis, as kernels read it.
#pragma once
#include <cstdint>

namespace ddn::cpu {

// y[i] = sum over t of weight[i][t] * x[index[i][t]].
struct Taps {
  int64_t count;         // T
  const int64_t* index;  // [outputs,T], each in 0..size_in-1
  const void* weight;    // [outputs,T] of the kernel's dtype
};

}  // namespace ddn::cpu
