// The launch that both kernels of the convolution share.
#pragma once
#include "cuda/conv3x3_tile.cuh"
#include "kernels.h"

namespace ddn::cuda {

template <class Tile, class Kernel>
int launch_conv3x3_tile(Kernel kernel, const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  if (const cudaError_t error = allow_shared_memory(kernel, Tile::kBytes)) return error;
  dim3 grid{};
  grid.x = static_cast<unsigned>(plan.tiles(maps));
  grid.z = static_cast<unsigned>(plan.slices);
  DDN_LAUNCH_SHARED(kernel, grid, Tile::kThreads, Tile::kBytes, stream, p);
  return cudaGetLastError();
}

}  // namespace ddn::cuda
