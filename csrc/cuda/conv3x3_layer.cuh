// One layer's launch, as the stage (conv3x3.cu) calls it; conv3x3_bfloat16.cu and conv3x3_float16.cu hold the portable
// kernels, conv3x3_wgmma_bfloat16.cu and conv3x3_wgmma_float16.cu those of sm_90a.
#pragma once
#include "cuda/conv3x3_tile.cuh"
#include "kernels.h"

namespace ddn::cuda {

int conv3x3_layer_bfloat16(const Conv3x3Launch& p, const Conv3x3Plan& plan, Conv3x3Input input, int maps,
                           Stream stream);
int conv3x3_layer_float16(const Conv3x3Launch& p, const Conv3x3Plan& plan, Conv3x3Input input, int maps, Stream stream);

int conv3x3_wgmma_layer_bfloat16(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream);
int conv3x3_wgmma_layer_float16(const Conv3x3Launch& p, const Conv3x3Plan& plan, int maps, Stream stream);

}  // namespace ddn::cuda
