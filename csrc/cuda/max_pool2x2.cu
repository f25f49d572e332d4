#include "cuda/max_pool2x2.cuh"

#include "kernels.h"

namespace ddn::cuda {
namespace {

template <class T>
int launch_pool(const MaxPool2x2Params& p, Stream stream) {
  if (is_wide(p)) return launch(max_pool2x2_kernel<T, 8>, p, items<8>(p.images, p.height, p.width, p.channels), stream);
  return launch(max_pool2x2_kernel<T, 4>, p, items<4>(p.images, p.height, p.width, p.channels), stream);
}

}  // namespace

int max_pool2x2(const MaxPool2x2Params& p, Stream stream) {
  switch (p.dtype) {
    case Dtype::float32: return launch_pool<float>(p, stream);
    case Dtype::float64: return launch_pool<double>(p, stream);
    case Dtype::bfloat16: return launch_pool<BFloat16>(p, stream);
    case Dtype::float16: return launch_pool<Float16>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
