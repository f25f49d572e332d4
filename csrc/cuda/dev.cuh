// Device primitives, one set of names with two back ends: nvcc, and with DDN_EMU the host (csrc/emu/emu.h).
// Kernels use these and plain C++ only, so that the same source runs under g++ and its sanitizers.
#pragma once
#include <cstdint>

#ifdef DDN_EMU
#include "emu/emu.h"
#else
#include <cuda_runtime.h>

#define DDN_DEVICE __device__ __forceinline__
#define DDN_GLOBAL __global__
#define DDN_UNROLL _Pragma("unroll")
#define DDN_LAUNCH(kernel, blocks, threads, stream, params) kernel<<<blocks, threads, 0, stream>>>(params)

namespace ddn {

// 16 bytes at a 16-byte boundary, through the read-only path.
DDN_DEVICE uint4 load16(const void* at) {
  return __ldg(static_cast<const uint4*>(at));
}
DDN_DEVICE void store16(void* at, uint4 value) {
  *static_cast<uint4*>(at) = value;
}
// A violated contract that would touch memory of others: the launch fails, as torch's own indexing does.
DDN_DEVICE void require(bool holds) {
  if (!holds) __trap();
}

}  // namespace ddn
#endif
