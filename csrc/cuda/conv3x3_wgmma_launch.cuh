// One layer's kernel of sm_90a for one type of values: the choice among its tiles, and the launch. Each type is
// compiled in a file of its own (conv3x3_wgmma_bfloat16.cu, conv3x3_wgmma_float16.cu), for sm_90a alone.
#pragma once
#include "cuda/conv3x3_launch_tile.cuh"
#include "cuda/conv3x3_layer.cuh"
#include "cuda/conv3x3_wgmma.cuh"

namespace ddn::cuda {

template <class T, Conv3x3TileKind KIND>
int launch_conv3x3_wgmma_tile(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  using Tile = Conv3x3WgmmaTile<T, KIND>;
  return launch_conv3x3_tile<Tile>(conv3x3_wgmma_kernel<Tile>, p, plan, maps, stream);
}

template <class T>
int launch_conv3x3_wgmma(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  switch (plan.kind) {
    case Conv3x3TileKind::tall: return launch_conv3x3_wgmma_tile<T, Conv3x3TileKind::tall>(p, plan, maps, stream);
    case Conv3x3TileKind::wide: return launch_conv3x3_wgmma_tile<T, Conv3x3TileKind::wide>(p, plan, maps, stream);
    case Conv3x3TileKind::compact: return launch_conv3x3_wgmma_tile<T, Conv3x3TileKind::compact>(p, plan, maps, stream);
    default: return cudaErrorInvalidValue;
  }
}

}  // namespace ddn::cuda
