// dense in float32 arithmetic, for weights of either dtype: a weight is broadcast, the lanes are 16 rows of x.
#pragma once
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kVecs = kRows / kWidth;  // registers that 16 rows are
// Outputs at a time: their sums fill most registers.
constexpr int kGroup = kWidth == 16 ? 16 : kWidth == 8 ? 6 : 3;
constexpr int kPair = kWidth == 16 ? 8 : 0;  // with two blocks of rows: as many sums, half the broadcasts

struct FloatProducts {
  template <int G, int Blocks>
  DDN_INLINE void add(const Panel<float>& panel, const float* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    Vec sum[Blocks][G][kVecs] = {};
    for (int64_t k = 0; k < panel.inputs; ++k) {
      if (ahead && k % 16 == 0) fetch_ahead<G>(panel, weight, k);
      step(panel, x + k * kRows, sum,
           [&](int g) __attribute__((always_inline)) { return splat(weight[g * panel.stride + k]); });
    }
    finish(sum, total, panel.first);
  }

  // Two bfloat16 a step: as the upper and, shifted there, the lower half of a broadcast word.
  template <int G, int Blocks>
  DDN_INLINE void add(const Panel<BF16>& panel, const BF16* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    Vec sum[Blocks][G][kVecs] = {};
    int64_t k = 0;
    for (; k + 2 <= panel.inputs; k += 2) {
      if (ahead && k % 32 == 0) fetch_ahead<G>(panel, weight, k);
      const auto word = [&](int g) __attribute__((always_inline)) {
        return UVec{} + load_bits<uint32_t>(weight + g * panel.stride + k);
      };
      step(panel, x + k * kRows, sum, [&](int g) __attribute__((always_inline)) { return (Vec)(word(g) << 16); });
      step(panel, x + (k + 1) * kRows, sum,
           [&](int g) __attribute__((always_inline)) { return (Vec)(word(g) & 0xffff0000u); });
    }
    if (k < panel.inputs)
      step(panel, x + k * kRows, sum, [&](int g) __attribute__((always_inline)) {
        return (Vec)(UVec{} + (static_cast<uint32_t>(weight[g * panel.stride + k].bits) << 16));
      });
    finish(sum, total, panel.first);
  }

  // One input: weight_of(g) is the weight of output g in all lanes.
  template <int G, int Blocks, class W, class WeightOf>
  DDN_INLINE static void step(const Panel<W>& panel, const float* x, Vec (&sum)[Blocks][G][kVecs], WeightOf weight_of) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      const Vec w = weight_of(g);
#pragma GCC unroll 2
      for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[b][g][v] += w * load(x + b * panel.x_stride + v * kWidth);
    }
  }

  template <int G, int Blocks>
  DDN_INLINE static void finish(const Vec (&sum)[Blocks][G][kVecs], float* total, bool first) {
    for (int b = 0; b < Blocks; ++b)
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          float* at = total + (b * kMostOutputs + g) * kRows + v * kWidth;
          store(at, first ? sum[b][g][v] : load(at) + sum[b][g][v]);
        }
  }
};

template <class W>
void multiply_float(const DenseParams& p, const void* packed, int64_t begin, int64_t end) {
  multiply_panels<float, W>(p, packed, begin, end, outputs_together<kGroup, W>(p.inputs),
                            [](const Panel<W>& panel)
                                __attribute__((always_inline)) { add_all<kGroup, kPair>(panel, FloatProducts{}); });
}

}  // namespace
}  // namespace ddn::cpu
