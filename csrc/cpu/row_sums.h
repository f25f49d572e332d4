// Sums that kernels leave for each row of a map, added up in float64 in the rows' order: the result depends neither on
// threads nor on how rows were cut.
#pragma once
#include "cpu/parallel.h"

namespace ddn::cpu {

struct RowSums {
  const float* values;  // [rows,kinds,channels rounded up to 32]
  int64_t rows, kinds, channels;

  float at(int64_t row, int64_t kind, int64_t channel) const {
    return values[(row * kinds + kind) * ((channels + 31) / 32 * 32) + channel];
  }

  double total(int64_t kind, int64_t channel) const {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row) sum += at(row, kind, channel);
    return sum;
  }

  // to[kind][channel]
  void store_totals(float* const* to, const Parallel& parallel) const {
    parallel(kinds * channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        to[k / channels][k % channels] = static_cast<float>(total(k / channels, k % channels));
    });
  }
};

}  // namespace ddn::cpu
