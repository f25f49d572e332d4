#include "cpu/network_input_rows.h"

namespace ddn::cpu::avx512 {
void network_input_of(const NetworkInputParams& p, const Taps& taps) {
  input_rows_of(p, taps);
}
}  // namespace ddn::cpu::avx512
