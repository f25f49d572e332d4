// The filter of a resize along one axis as a table, for kernels on the CPU (csrc/resize_taps.h).
#pragma once
#include <cstdint>
#include <vector>

#include "resize_taps.h"

namespace ddn::cpu {

struct ResizeTable {
  int64_t taps;
  std::vector<int64_t> index;
  std::vector<double> weight;

  // Of the first `outputs` of size_out.
  template <class Kernel>
  static ResizeTable of(int64_t size_in, int64_t size_out, int64_t outputs) {
    const ResizeTaps<Kernel> filter{size_in, size_out};
    ResizeTable table{.taps = filter.taps(), .index = {}, .weight = {}};
    table.index.resize(static_cast<size_t>(outputs * table.taps));
    table.weight.resize(table.index.size());
    for (int64_t i = 0; i < outputs; ++i)
      filter.fill(i, table.index.data() + i * table.taps, table.weight.data() + i * table.taps);
    return table;
  }
};

}  // namespace ddn::cpu
