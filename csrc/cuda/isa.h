// Which matrix instructions the convolution uses on the current device.
#pragma once

namespace ddn::cuda {

enum class Isa { mma, wgmma };  // of a warp, sm_80 and later; of a warpgroup, sm_90a

// The best that the current device has and that was built, but not above the environment variable DDN_MAX_CUDA_ISA (mma
// or wgmma), which is read at every call; an error where it names neither. Returns a cudaError_t as int.
int isa(Isa& found);

}  // namespace ddn::cuda
