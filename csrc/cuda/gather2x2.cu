#include "cuda/gather2x2.cuh"

#include "kernels.h"

namespace ddn::cuda {
namespace {

template <class U>
int launch_gather(const Gather2x2Params& p, Stream stream) {
  if (is_wide(p)) return launch(gather2x2_kernel<U, 8>, p, items<8>(p.passes, p.height, p.width, p.channels), stream);
  return launch(gather2x2_kernel<U, 4>, p, items<4>(p.passes, p.height, p.width, p.channels), stream);
}

}  // namespace

int gather2x2(const Gather2x2Params& p, Stream stream) {
  switch (element_bytes(p.dtype)) {
    case 2: return launch_gather<uint16_t>(p, stream);
    case 4: return launch_gather<uint32_t>(p, stream);
    case 8: return launch_gather<uint64_t>(p, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
