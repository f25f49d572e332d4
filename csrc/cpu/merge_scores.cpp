// merge_scores: the choice among its variants, and the plain one (merge_rows.h says how it works).
#include "cpu/merge_scores.h"

#include <algorithm>
#include <vector>

#include "cpu/merge_rows.h"
#include "cpu/resize_table.h"
#include "cpu/variants.h"

namespace ddn::cpu {

namespace plain {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  p.dtype == Dtype::float64 ? merge_rows<double>(p, taps, begin, end) : merge_rows<float>(p, taps, begin, end);
}
}  // namespace plain

void merge_scores(const MergeScoresParams& p, const Parallel& parallel) {
  using Kernel = void (*)(const MergeScoresParams&, const Taps&, int64_t, int64_t);
  static constexpr Variant<Kernel> variants[] = {
      {Isa::plain, plain::merge_rows_of},
      {Isa::avx2, DDN_AVX2(avx2::merge_rows_of)},
      {Isa::avx512, DDN_AVX512(avx512::merge_rows_of)},
  };
  const bool wide = p.dtype == Dtype::float64;
  const Kernel kernel = best_variant(variants, wide ? Isa::plain : isa());
  const ResizeTable table = ResizeTable::of<Cubic>(p.side, p.square, std::max(p.height, p.width));
  const std::vector<float> narrow(table.weight.begin(), table.weight.end());
  const void* weight = wide ? static_cast<const void*>(table.weight.data()) : narrow.data();
  const Taps taps{table.taps, table.index.data(), weight};
  parallel(p.height, [&](int64_t begin, int64_t end) { kernel(p, taps, begin, end); });
}

}  // namespace ddn::cpu
