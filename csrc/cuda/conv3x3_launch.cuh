// One layer's kernel for one type of values: the choice among its tiles and inputs, and the launch. Each type is
// compiled in a file of its own (conv3x3_bfloat16.cu, conv3x3_float16.cu), for the time that takes.
#pragma once
#include "cuda/conv3x3.cuh"
#include "cuda/conv3x3_layer.cuh"

namespace ddn::cuda {

template <class Tile>
int launch_conv3x3_tile(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  const auto kernel = conv3x3_kernel<Tile>;
  if (const cudaError_t error = allow_shared_memory(kernel, Tile::kBytes)) return error;
  dim3 grid{};
  grid.x = static_cast<unsigned>(maps * plan.tile_rows * plan.tile_columns);
  grid.y = static_cast<unsigned>(plan.out_tiles);
  grid.z = static_cast<unsigned>(plan.slices);
  DDN_LAUNCH_SHARED(kernel, grid, Tile::kThreads, Tile::kBytes, stream, p);
  return cudaGetLastError();
}

template <class T, Conv3x3Input INPUT>
int launch_conv3x3_input(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  switch (plan.kind) {
    case Conv3x3TileKind::large:
      return launch_conv3x3_tile<Conv3x3Tile<T, INPUT, Conv3x3TileKind::large>>(p, plan, maps, stream);
    case Conv3x3TileKind::narrow:
      return launch_conv3x3_tile<Conv3x3Tile<T, INPUT, Conv3x3TileKind::narrow>>(p, plan, maps, stream);
    case Conv3x3TileKind::small:
      return launch_conv3x3_tile<Conv3x3Tile<T, INPUT, Conv3x3TileKind::small>>(p, plan, maps, stream);
  }
  return cudaErrorInvalidValue;
}

template <class T>
int launch_conv3x3(const Conv3x3Launch& p, const Conv3x3Plan& plan, Conv3x3Input input, int maps, Stream stream) {
  switch (input) {
    case Conv3x3Input::map: return launch_conv3x3_input<T, Conv3x3Input::map>(p, plan, maps, stream);
    case Conv3x3Input::pooled: return launch_conv3x3_input<T, Conv3x3Input::pooled>(p, plan, maps, stream);
    case Conv3x3Input::image:
      return launch_conv3x3_tile<Conv3x3Tile<T, Conv3x3Input::image, Conv3x3TileKind::narrow>>(p, plan, maps, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
