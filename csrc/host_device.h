// Small functions that kernels and host code both call: compiled for the device too where nvcc compiles.
#pragma once

#ifdef __CUDACC__
#define DDN_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DDN_HOST_DEVICE inline
#endif
