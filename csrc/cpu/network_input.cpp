// network_input: the choice among its variants, and the plain one (network_input_rows.h says how it works).
#include <algorithm>

#include "cpu/network_input_rows.h"
#include "cpu/resize_table.h"
#include "cpu/variants.h"

namespace ddn::cpu {

namespace plain {
void network_input_of(const NetworkInputParams& p, const Taps& taps) {
  input_rows_of(p, taps);
}
}  // namespace plain

void network_input(const NetworkInputParams& p) {
  using Kernel = void (*)(const NetworkInputParams&, const Taps&);
  static constexpr Variant<Kernel> variants[] = {
      {Isa::plain, plain::network_input_of},
      {Isa::avx2, DDN_AVX2(avx2::network_input_of)},
      {Isa::avx512, DDN_AVX512(avx512::network_input_of)},
  };
  const ResizeTable table = ResizeTable::of<Triangle>(std::max(p.height, p.width), p.side, p.side);
  best_variant(variants, isa())(p, {table.taps, table.index.data(), table.weight.data()});
}

}  // namespace ddn::cpu
