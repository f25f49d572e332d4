// network_input in its variants, one per instruction set.
#pragma once
#include "cpu/taps.h"
#include "kernels.h"

namespace ddn::cpu {

namespace plain {
void network_input_of(const NetworkInputParams& p, const Taps& taps);
}
namespace avx2 {
void network_input_of(const NetworkInputParams& p, const Taps& taps);
}
namespace avx512 {
void network_input_of(const NetworkInputParams& p, const Taps& taps);
}

}  // namespace ddn::cpu
