// dense for bfloat16 weights by vdpbf16ps: a pair of weights is broadcast, the lanes are 16 rows of x.
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kGroup = 16;  // outputs at a time
constexpr int kPair = 8;    // with two blocks of rows: as many sums, half the broadcasts

struct PairProducts {
  template <int G, int Blocks>
  DDN_INLINE void add(const Panel<BF16>& panel, const BF16* weight, const uint32_t* x, float* total, bool ahead) const {
    __m512 sum[Blocks][G];
    for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) sum[b][g] = _mm512_setzero_ps();
    const int64_t pairs = panel.inputs / 2;
    for (int64_t k0 = 0; k0 < pairs; k0 += 16) {
      if (ahead) fetch_ahead<G>(panel, weight, 2 * k0);
      const int64_t end = least(k0 + 16, pairs);
      for (int64_t k = k0; k < end; ++k)
        step<G, Blocks>(panel, x + k * kRows, sum, [&](int g) __attribute__((always_inline)) {
          return load_bits<int>(weight + g * panel.stride + 2 * k);
        });
    }
    if (panel.inputs % 2)
      step<G, Blocks>(panel, x + pairs * kRows, sum, [&](int g) __attribute__((always_inline)) {
        return static_cast<int>(weight[g * panel.stride + 2 * pairs].bits);
      });
    for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
        float* at = total + (b * kMostOutputs + g) * kRows;
        store(at, panel.first ? (Vec)sum[b][g] : load(at) + (Vec)sum[b][g]);
      }
  }

  // One pair of inputs: weight_of(g) is the pair of weights of output g.
  template <int G, int Blocks, class WeightOf>
  DDN_INLINE static void step(const Panel<BF16>& panel, const uint32_t* x, __m512 (&sum)[Blocks][G],
                              WeightOf weight_of) {
    __m512bh pair[Blocks];
#pragma GCC unroll 2
    for (int b = 0; b < Blocks; ++b) pair[b] = (__m512bh)load_bits<__m512i>(x + b * panel.x_stride);
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      const __m512bh w = (__m512bh)_mm512_set1_epi32(weight_of(g));
#pragma GCC unroll 2
      for (int b = 0; b < Blocks; ++b) sum[b][g] = _mm512_dpbf16_ps(sum[b][g], pair[b], w);
    }
  }
};

void multiply_pairs(const DenseParams& p, const void* packed, int64_t begin, int64_t end) {
  multiply_panels<BF16, BF16>(p, packed, begin, end, outputs_together<kGroup, BF16>(p.inputs),
                              [](const Panel<BF16>& panel)
                                  __attribute__((always_inline)) { add_all<kGroup, kPair>(panel, PairProducts{}); });
}

}  // namespace

namespace avx512_bf16 {
const DenseKernel dense_bfloat16{packed_bytes<BF16>, pack<BF16, BF16>, multiply_pairs};
}  // namespace avx512_bf16
}  // namespace ddn::cpu
