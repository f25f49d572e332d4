// Device primitives, one set of names with two back ends: nvcc, and with DDN_EMU the host (csrc/emu/emu.h).
// Kernels use these and plain C++ only, so that the same source runs under g++ and its sanitizers. Those of warps and
// shared memory: warp.cuh.
#pragma once
#include <cstdint>

#include "switches.h"

#ifdef DDN_EMU
#include "emu/emu.h"
#else
#include <cuda_runtime.h>

#define DDN_DEVICE __device__ __forceinline__
#define DDN_GLOBAL __global__
#define DDN_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define DDN_UNROLL _Pragma("unroll")
#define DDN_NO_UNROLL _Pragma("unroll 1")
#define DDN_SHARED_MEMORY(name) extern __shared__ __align__(128) unsigned char name[]
#define DDN_LAUNCH(kernel, blocks, threads, stream, params) kernel<<<blocks, threads, 0, stream>>>(params)
#define DDN_LAUNCH_SHARED(kernel, grid, threads, shared_bytes, stream, params) \
  kernel<<<grid, threads, shared_bytes, stream>>>(params)

namespace ddn {

// 16 bytes at a 16-byte boundary, through the read-only path.
DDN_DEVICE uint4 load16(const void* at) {
  return __ldg(static_cast<const uint4*>(at));
}
// The same of what other blocks of this launch have written: past the first-level cache.
DDN_DEVICE uint4 load16_shared_by_blocks(const void* at) {
  return __ldcg(static_cast<const uint4*>(at));
}
DDN_DEVICE void store16(void* at, uint4 value) {
  *static_cast<uint4*>(at) = value;
}
DDN_DEVICE void store4(void* at, uint32_t value) {
  *static_cast<uint32_t*>(at) = value;
}
// A violated contract that would touch memory of others: the launch fails, as torch's own indexing does.
DDN_DEVICE void require(bool holds) {
  if (!holds) __trap();
}
DDN_DEVICE float exponential(float x) {
  return expf(x);
}
DDN_DEVICE double exponential(double x) {
  return exp(x);
}

// Host side. More than 48 KiB of shared memory must be asked for, on each device; and that as many blocks share a
// multiprocessor as its shared memory can hold.
template <class Kernel>
inline cudaError_t allow_shared_memory(Kernel kernel, int bytes) {
  if (const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes))
    return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
}
inline cudaError_t compute_capability(int& major, int& minor) {
  int device = 0;
  if (const cudaError_t error = cudaGetDevice(&device)) return error;
  if (const cudaError_t error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device)) return error;
  return cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
}
inline cudaError_t multiprocessors(int& count) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  return error ? error : cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
}
inline cudaError_t set_zero(void* at, size_t bytes, cudaStream_t stream) {
  return cudaMemsetAsync(at, 0, bytes, stream);
}

}  // namespace ddn
#endif
