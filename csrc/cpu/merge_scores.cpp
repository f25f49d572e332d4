// merge_scores: the table of its filter, the choice among its variants, and the plain one (merge_rows.h says how it
// works).
#include "cpu/merge_scores.h"

#include <algorithm>
#include <vector>

#include "bicubic.h"
#include "cpu/merge_rows.h"
#include "cpu/variants.h"

namespace ddn::cpu {

namespace plain {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  p.dtype == Dtype::float64 ? merge_rows<double>(p, taps, begin, end) : merge_rows<float>(p, taps, begin, end);
}
}  // namespace plain

namespace {

struct Table {
  int64_t taps;
  std::vector<int64_t> index;
  std::vector<double> weight;
};

Table bicubic_table(int64_t size_in, int64_t size_out, int64_t count) {
  const Bicubic filter{size_in, size_out};
  Table table{.taps = filter.taps(), .index = {}, .weight = {}};
  table.index.resize(static_cast<size_t>(count * table.taps));
  table.weight.resize(table.index.size());
  for (int64_t i = 0; i < count; ++i)
    filter.fill(i, table.index.data() + i * table.taps, table.weight.data() + i * table.taps);
  return table;
}

}  // namespace

void merge_scores(const MergeScoresParams& p, const Parallel& parallel) {
  using Kernel = void (*)(const MergeScoresParams&, const Taps&, int64_t, int64_t);
  static constexpr Variant<Kernel> variants[] = {
      {Isa::plain, plain::merge_rows_of},
      {Isa::avx2, DDN_AVX2(avx2::merge_rows_of)},
      {Isa::avx512, DDN_AVX512(avx512::merge_rows_of)},
  };
  const bool wide = p.dtype == Dtype::float64;
  const Kernel kernel = best_variant(variants, wide ? Isa::plain : isa());
  const Table table = bicubic_table(p.side, p.square, std::max(p.height, p.width));
  const std::vector<float> narrow(table.weight.begin(), table.weight.end());
  const void* weight = wide ? static_cast<const void*>(table.weight.data()) : narrow.data();
  const Taps taps{table.taps, table.index.data(), weight};
  parallel(p.height, [&](int64_t begin, int64_t end) { kernel(p, taps, begin, end); });
}

}  // namespace ddn::cpu
