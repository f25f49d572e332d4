// The variants of the convolution's stage; conv3x3.cpp chooses. Each is compiled with its own flags.
#pragma once
#include "cpu/parallel.h"
#include "params.h"

namespace ddn::cpu {

void conv3x3_plain(const Conv3x3Params& p, const Parallel& parallel);
void conv3x3_avx2(const Conv3x3Params& p, const Parallel& parallel);
void conv3x3_avx_vnni(const Conv3x3Params& p, const Parallel& parallel);
void conv3x3_avx512(const Conv3x3Params& p, const Parallel& parallel);
void conv3x3_avx512_vnni(const Conv3x3Params& p, const Parallel& parallel);
// only for stages whose weights are all in the pairs layout:
void conv3x3_amx(const Conv3x3Params& p, const Parallel& parallel);

}  // namespace ddn::cpu
