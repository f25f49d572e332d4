#include "cuda/conv3x3_launch.cuh"

namespace ddn::cuda {

int conv3x3_layer_float16(const Conv3x3Launch& p, const Conv3x3Plan& plan, Conv3x3Input input, int maps,
                          Stream stream) {
  return launch_conv3x3<Float16>(p, plan, input, maps, stream);
}

}  // namespace ddn::cuda
