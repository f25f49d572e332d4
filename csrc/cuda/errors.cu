#include <cuda_runtime.h>

#include "kernels.h"

namespace ddn::cuda {

const char* error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

bool is_missing_code(int error) {
  return error == cudaErrorNoKernelImageForDevice || error == cudaErrorInvalidDeviceFunction ||
         error == cudaErrorUnsupportedPtxVersion;
}

}  // namespace ddn::cuda
