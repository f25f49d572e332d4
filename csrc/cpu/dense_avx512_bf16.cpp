// dense for bfloat16 weights by vdpbf16ps: a pair of weights is broadcast, the lanes are 16 rows of x.
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kGroup = 16;  // outputs at a time

struct PairProducts {
  template <int G>
  DDN_INLINE void add(const Panel<BF16>& panel, const BF16* weight, const uint32_t* x, float* total, bool ahead) const {
    __m512 sum[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = _mm512_setzero_ps();
    const int64_t pairs = panel.inputs / 2;
    for (int64_t k0 = 0; k0 < pairs; k0 += 16) {
      if (ahead) fetch_ahead<G>(panel, weight + 2 * k0);
      const int64_t end = least(k0 + 16, pairs);
      for (int64_t k = k0; k < end; ++k) {
        const __m512bh pair = (__m512bh)load_bits<__m512i>(x + k * kRows);
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) {
          const int w = load_bits<int>(weight + g * panel.stride + 2 * k);
          sum[g] = _mm512_dpbf16_ps(sum[g], pair, (__m512bh)_mm512_set1_epi32(w));
        }
      }
    }
    if (panel.inputs % 2)
      for (int g = 0; g < G; ++g) {
        const int w = weight[g * panel.stride + 2 * pairs].bits;
        const __m512bh pair = (__m512bh)load_bits<__m512i>(x + pairs * kRows);
        sum[g] = _mm512_dpbf16_ps(sum[g], pair, (__m512bh)_mm512_set1_epi32(w));
      }
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      float* at = total + g * kRows;
      store(at, panel.first ? (Vec)sum[g] : load(at) + (Vec)sum[g]);
    }
  }
};

void multiply_pairs(const DenseParams& p, const void* packed, int64_t begin, int64_t end) {
  multiply_panels<BF16, BF16>(p, packed, begin, end, kGroup,
                              [](const Panel<BF16>& panel)
                                  __attribute__((always_inline)) { add_in_groups<kGroup>(panel, PairProducts{}); });
}

}  // namespace

namespace avx512_bf16 {
const DenseKernel dense_bfloat16{packed_bytes<BF16>, pack<BF16, BF16>, multiply_pairs};
}  // namespace avx512_bf16
}  // namespace ddn::cpu
