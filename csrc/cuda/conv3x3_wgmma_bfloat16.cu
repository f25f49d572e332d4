#include "cuda/conv3x3_wgmma_launch.cuh"

namespace ddn::cuda {

int conv3x3_wgmma_layer_bfloat16(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  return launch_conv3x3_wgmma<BFloat16>(p, plan, maps, stream);
}

}  // namespace ddn::cuda
