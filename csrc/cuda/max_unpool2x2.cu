#include "cuda/max_unpool2x2.cuh"

#include "kernels.h"

namespace ddn::cuda {
namespace {

template <class U>
int launch_unpool(const MaxUnpool2x2Params& p, Stream stream) {
  if (is_wide(p))
    return launch(max_unpool2x2_kernel<U, 8>, p, items<8>(p.passes, p.height, p.width, p.channels), stream);
  return launch(max_unpool2x2_kernel<U, 4>, p, items<4>(p.passes, p.height, p.width, p.channels), stream);
}

}  // namespace

int max_unpool2x2(const MaxUnpool2x2Params& p, Stream stream) {
  switch (element_bytes(p.dtype)) {
    case 2: return launch_unpool<uint16_t>(p, stream);
    case 4: return launch_unpool<uint32_t>(p, stream);
    case 8: return launch_unpool<uint64_t>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
