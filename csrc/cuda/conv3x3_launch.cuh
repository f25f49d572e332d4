// One layer's kernel for one type of values: the choice among its tiles and inputs, and the launch. Each type is
// compiled in a file of its own (conv3x3_bfloat16.cu, conv3x3_float16.cu), for the time that takes.
#pragma once
#include "cuda/conv3x3.cuh"
#include "cuda/conv3x3_launch_tile.cuh"
#include "cuda/conv3x3_layer.cuh"

namespace ddn::cuda {

template <class T, Conv3x3Input INPUT, Conv3x3TileKind KIND>
int launch_conv3x3_kind(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  using Tile = Conv3x3Tile<T, INPUT, KIND>;
  return launch_conv3x3_tile<Tile>(conv3x3_kernel<Tile>, p, plan, maps, stream);
}

template <class T, Conv3x3Input INPUT>
int launch_conv3x3_input(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream) {
  switch (plan.kind) {
    case Conv3x3TileKind::large: return launch_conv3x3_kind<T, INPUT, Conv3x3TileKind::large>(p, plan, maps, stream);
    case Conv3x3TileKind::narrow: return launch_conv3x3_kind<T, INPUT, Conv3x3TileKind::narrow>(p, plan, maps, stream);
    case Conv3x3TileKind::small: return launch_conv3x3_kind<T, INPUT, Conv3x3TileKind::small>(p, plan, maps, stream);
    default: return cudaErrorInvalidValue;
  }
}

template <class T>
int launch_conv3x3(const Conv3x3Launch& p, const Conv3x3Plan& plan, Conv3x3Input input, int maps, Stream stream) {
  switch (input) {
    case Conv3x3Input::map: return launch_conv3x3_input<T, Conv3x3Input::map>(p, plan, maps, stream);
    case Conv3x3Input::pooled: return launch_conv3x3_input<T, Conv3x3Input::pooled>(p, plan, maps, stream);
    case Conv3x3Input::image:
      return launch_conv3x3_kind<T, Conv3x3Input::image, Conv3x3TileKind::narrow>(p, plan, maps, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace ddn::cuda
