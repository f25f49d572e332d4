// dense in float32 arithmetic, for weights of either dtype: a weight is broadcast, the lanes are 16 rows of x.
#pragma once
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kVecs = kRows / kWidth;  // registers that 16 rows are
// Outputs at a time: their sums fill most registers.
constexpr int kGroup = kWidth == 16 ? 16 : kWidth == 8 ? 6 : 3;
constexpr int kPair = kWidth == 16 ? 8 : 0;  // with two blocks of rows: as many sums, half the broadcasts
constexpr int kWide = 64;                    // bfloat16 of an output widened together

template <class W>
constexpr int kLine = 64 / sizeof(W);  // weights in a line of the cache

struct FloatProducts {
  template <int G, int Blocks>
  DDN_INLINE void add(const Panel<float>& panel, const float* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    Vec sum[Blocks][G][kVecs] = {};
    for (int64_t k0 = 0; k0 < panel.inputs; k0 += kLine<float>, x += kLine<float> * kRows) {
      if (ahead) fetch_ahead<G>(panel, weight, k0);
      const float* from = weight + k0;
      const auto multiply = [&](int64_t inputs) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int64_t k = 0; k < inputs; ++k)
          step(panel, x + k * kRows, sum,
               [&](int g) __attribute__((always_inline)) { return splat(from[g * panel.stride + k]); });
      };
      if (k0 + kLine<float> <= panel.inputs)
        multiply(kLine<float>);
      else
        multiply(panel.inputs - k0);
    }
    finish(sum, total, panel.first);
  }

  // bfloat16 are widened some at a time, for all outputs, and broadcast from there as floats are.
  template <int G, int Blocks>
  DDN_INLINE void add(const Panel<BF16>& panel, const BF16* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    alignas(64) float wide[G][kWide];
    Vec sum[Blocks][G][kVecs] = {};
    for (int64_t k0 = 0; k0 < panel.inputs; k0 += kWide, x += kWide * kRows) {
      if (ahead)
        for (int64_t k = 0; k < kWide; k += kLine<BF16>) fetch_ahead<G>(panel, weight, k0 + k);
      const int count = static_cast<int>(least(kWide, panel.inputs - k0));
      const auto multiply = [&](int inputs) __attribute__((always_inline)) {
#pragma GCC unroll 8
        for (int k = 0; k < inputs; ++k)
          step(panel, x + k * kRows, sum, [&](int g) __attribute__((always_inline)) { return splat(wide[g][k]); });
      };
      if (count == kWide) {
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
          for (int k = 0; k < kWide; k += kSplit) widen_split(&wide[g][k], weight + g * panel.stride + k0 + k);
        multiply(kWide);
      } else {
        for (int g = 0; g < G; ++g) {
          alignas(64) BF16 some[kWide] = {};
          std::memcpy(some, weight + g * panel.stride + k0, count * sizeof(BF16));
          for (int k = 0; k < kWide; k += kSplit) widen_split(&wide[g][k], some + k);
        }
        multiply((count + 31) / 32 * 32);
      }
    }
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
