// conv3x3: 3x3 convolutions that follow each other, unpooling before and pooling or scoring after them (SPEC sections 2
// and 6, identities 5 to 9). Which kernel runs is decided by the weights' layout and the instruction set:
//
//   pairs           AMX tiles in bfloat16; else widened to float
//   direct          float, tap by tap
//   winograd        float, F(4x4, 3x3)
//   winograd_int16  the same with products of 16-bit integers
//
// Where a stage mixes layouts, maps between its layers are float. AVX512_BF16 has no variant: at twice float's rate its
// dot products come to half of what winograd reaches in float, and to a quarter of what it does in integers
// (docs/cpu.md).
#include "cpu/conv3x3.h"

#include "cpu/variants.h"
#include "kernels.h"

namespace ddn::cpu {
namespace {

using Stage = void (*)(const Conv3x3Params&, const Parallel&);

constexpr Variant<Stage> kFloat[] = {{Isa::plain, conv3x3_plain},
                                     {Isa::avx2, DDN_AVX2(conv3x3_avx2)},
                                     {Isa::avx_vnni, DDN_AVX_VNNI(conv3x3_avx_vnni)},
                                     {Isa::avx512, DDN_AVX512(conv3x3_avx512)},
                                     {Isa::avx512_vnni, DDN_AVX512_VNNI(conv3x3_avx512_vnni)}};
constexpr Variant<Stage> kPairs[] = {kFloat[0], kFloat[1], kFloat[2],
                                     kFloat[3], kFloat[4], {Isa::amx_bf16, DDN_AMX(conv3x3_amx)}};

bool all_pairs(const Conv3x3Params& p) {
  for (int64_t l = 0; l < p.layer_count; ++l)
    if (p.layers[l].layout != Conv3x3Layout::pairs) return false;
  return true;
}

}  // namespace

void conv3x3(const Conv3x3Params& p, const Parallel& parallel) {
  if (p.maps == 0) return;
  (all_pairs(p) ? best_variant(kPairs, isa()) : best_variant(kFloat, isa()))(p, parallel);
}

}  // namespace ddn::cpu
