// Small functions that kernels and host code both call: compiled for the device too where nvcc compiles. Inlined in
// debug builds, too, so that no file of an instruction set leaves them for others to be linked to.
#pragma once

#ifdef __CUDACC__
#define DDN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DDN_HOST_DEVICE __attribute__((always_inline)) inline
#endif
