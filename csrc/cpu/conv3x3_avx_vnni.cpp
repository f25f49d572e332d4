#include "cpu/conv3x3.h"
#include "cpu/conv3x3_float.h"

namespace ddn::cpu {

void conv3x3_avx_vnni(const Conv3x3Params& p, const Parallel& parallel) {
  run_stage<FloatKernel>(p, parallel);
}

}  // namespace ddn::cpu
