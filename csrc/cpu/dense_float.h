// dense in float32 arithmetic, for weights of either dtype: a weight is broadcast, the lanes are 16 rows of x.
#pragma once
#include "cpu/dense_blocks.h"

namespace ddn::cpu {
namespace {

constexpr int kVecs = kRows / kWidth;  // registers that 16 rows are
// Outputs at a time: their sums fill most registers.
constexpr int kGroup = kWidth == 16 ? 16 : kWidth == 8 ? 6 : 3;

struct FloatProducts {
  template <int G>
  DDN_INLINE void add(const Panel<float>& panel, const float* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    Vec sum[G][kVecs] = {};
    for (int64_t k = 0; k < panel.inputs; ++k) {
      if (ahead && k % 16 == 0) fetch_ahead<G>(panel, weight + k);
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
        const Vec w = splat(weight[g * panel.stride + k]);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) sum[g][v] += w * load(x + k * kRows + v * kWidth);
      }
    }
    finish(sum, total, panel.first);
  }

  // Two bfloat16 a step: as the upper and, shifted there, the lower half of a broadcast word.
  template <int G>
  DDN_INLINE void add(const Panel<BF16>& panel, const BF16* weight, const uint32_t* packed, float* total,
                      bool ahead) const {
    const float* x = reinterpret_cast<const float*>(packed);
    Vec sum[G][kVecs] = {};
    int64_t k = 0;
    for (; k + 2 <= panel.inputs; k += 2) {
      if (ahead && k % 32 == 0) fetch_ahead<G>(panel, weight + k);
#pragma GCC unroll 16
      for (int g = 0; g < G; ++g) {
        const UVec pair = UVec{} + load_bits<uint32_t>(weight + g * panel.stride + k);
        const Vec even = (Vec)(pair << 16), odd = (Vec)(pair & 0xffff0000u);
#pragma GCC unroll 4
        for (int v = 0; v < kVecs; ++v) {
          sum[g][v] += even * load(x + k * kRows + v * kWidth);
          sum[g][v] += odd * load(x + (k + 1) * kRows + v * kWidth);
        }
      }
    }
    if (k < panel.inputs)
      for (int g = 0; g < G; ++g) {
        const Vec w = (Vec)(UVec{} + (static_cast<uint32_t>(weight[g * panel.stride + k].bits) << 16));
        for (int v = 0; v < kVecs; ++v) sum[g][v] += w * load(x + k * kRows + v * kWidth);
      }
    finish(sum, total, panel.first);
  }

  template <int G>
  DDN_INLINE static void finish(const Vec (&sum)[G][kVecs], float* total, bool first) {
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
      for (int v = 0; v < kVecs; ++v) {
        float* at = total + g * kRows + v * kWidth;
        store(at, first ? sum[g][v] : load(at) + sum[g][v]);
      }
  }
};

template <class W>
void multiply_float(const DenseParams& p, const void* packed, int64_t begin, int64_t end) {
  multiply_panels<float, W>(p, packed, begin, end, kGroup, [](const Panel<W>& panel) __attribute__((always_inline)) {
    add_in_groups<kGroup>(panel, FloatProducts{});
  });
}

}  // namespace
}  // namespace ddn::cpu
