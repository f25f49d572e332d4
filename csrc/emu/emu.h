// Host back end of cuda/dev.cuh: a launch is a loop over blocks and threads, a thread is a function call. Enough for
// kernels whose threads never meet; one with shared memory and barriers needs its threads as fibers that yield at each
// barrier, behind the same names. Checked beyond results: alignment of wide accesses, violated contracts and, under
// -fsanitize=address, every access out of bounds, since the tests give each buffer its own heap block.
#pragma once
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define DDN_DEVICE inline
#define DDN_GLOBAL static
#define DDN_UNROLL

struct uint4 {
  uint32_t x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};
using cudaError_t = int;
using cudaStream_t = struct CUstream_st*;
constexpr cudaError_t cudaSuccess = 0, cudaErrorInvalidValue = 1;
inline cudaError_t cudaGetLastError() {
  return cudaSuccess;
}

inline dim3 blockDim, blockIdx, threadIdx;

namespace ddn::emu {

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "emulation: %s (block %u, thread %u)\n", what, blockIdx.x, threadIdx.x);
  std::abort();
}

template <class Kernel, class Params>
void launch(Kernel kernel, unsigned blocks, unsigned threads, const Params& params) {
  blockDim = {threads};
  for (blockIdx = {0}; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx = {0}; threadIdx.x < threads; ++threadIdx.x) kernel(params);
}

inline void require_aligned(const void* at) {
  if (reinterpret_cast<uintptr_t>(at) % 16) die("16-byte access off a 16-byte boundary");
}

}  // namespace ddn::emu

#define DDN_LAUNCH(kernel, blocks, threads, stream, params) \
  ((void)(stream), ::ddn::emu::launch(kernel, blocks, threads, params))

namespace ddn {

inline uint4 load16(const void* at) {
  emu::require_aligned(at);
  uint4 value;
  std::memcpy(&value, at, sizeof value);
  return value;
}
inline void store16(void* at, uint4 value) {
  emu::require_aligned(at);
  std::memcpy(at, &value, sizeof value);
}
inline void require(bool holds) {
  if (!holds) emu::die("contract violated");
}

}  // namespace ddn
