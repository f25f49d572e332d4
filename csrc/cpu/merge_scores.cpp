// merge_scores: the table of its filter, the choice among its variants, and the plain one (merge_rows.h says how it
// works).
#include "cpu/merge_scores.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/merge_rows.h"
#include "cpu/variants.h"

namespace ddn::cpu {

namespace plain {
void merge_rows_of(const MergeScoresParams& p, const Taps& taps, int64_t begin, int64_t end) {
  p.dtype == Dtype::float64 ? merge_rows<double>(p, taps, begin, end) : merge_rows<float>(p, taps, begin, end);
}
}  // namespace plain

namespace {

double cubic(double x) {
  x = std::abs(x);
  if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
  return x <= 2 ? ((-0.5 * x + 2.5) * x - 4) * x + 2 : 0;
}

struct Table {
  int64_t taps;
  std::vector<int64_t> index;
  std::vector<double> weight;
};

// Pixel centres lie at half-integers; the kernel is stretched where the axis shrinks; weights sum to 1; beyond the
// edges the signal is mirrored. As resize_taps of ddn_fast/images.py.
Table bicubic_table(int64_t size_in, int64_t size_out, int64_t count) {
  if (size_in == size_out) {
    Table same{.taps = 1, .index = {}, .weight = std::vector<double>(static_cast<size_t>(count), 1.0)};
    for (int64_t i = 0; i < count; ++i) same.index.push_back(i);
    return same;
  }
  const double scale = static_cast<double>(size_out) / static_cast<double>(size_in), shrink = std::min(scale, 1.0);
  const double reach = 2 / shrink;
  Table table{.taps = static_cast<int64_t>(std::floor(2 * reach)) + 1, .index = {}, .weight = {}};
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (static_cast<double>(i) + 0.5) / scale - 0.5;
    const int64_t first = static_cast<int64_t>(std::ceil(centre - reach));  // outside it the kernel is 0
    double sum = 0;
    for (int64_t t = 0; t < table.taps; ++t) {
      const int64_t mirrored = ((first + t) % (2 * size_in) + 2 * size_in) % (2 * size_in);
      table.index.push_back(mirrored < size_in ? mirrored : 2 * size_in - 1 - mirrored);
      table.weight.push_back(cubic(shrink * (centre - static_cast<double>(first + t))));
      sum += table.weight.back();
    }
    for (int64_t t = 0; t < table.taps; ++t) table.weight[static_cast<size_t>(i * table.taps + t)] /= sum;
  }
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
