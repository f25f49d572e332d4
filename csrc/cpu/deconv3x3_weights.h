// Weights [C,3,3,O] of a 3x3 transposed convolution as Winograd's F(4x4, 3x3) wants them, and their gradient back.
//
//   forward   U[O/32][36][C/32][input][output] of the convolution it equals, the kernel turned around (identity 9)
//   backward  U[C/32][36][O/32][input][output] with inputs and outputs swapped: the gradient's convolution
//   gradient  G^T u G of sums laid out as the forward weights are
#pragma once
#include "cpu/conv3x3_winograd.h"

namespace ddn::cpu {
namespace {

// G g for one column of a kernel: 3 taps to 6 points (the matrix of ddn_fast/packing.py).
DDN_INLINE void transform_kernel(const Vec (&g)[3], Vec (&u)[6]) {
  const Vec small = -2.0f / 3 * g[0] - 1.0f / 3 * g[2], large = 1.0f / 6 * g[0] + 1.0f / 3 * g[2];
  const Vec odd = kRoot / 6 * g[1];
  u[0] = g[0];
  u[1] = small - 2 * odd;
  u[2] = small + 2 * odd;
  u[3] = large + odd;
  u[4] = large - odd;
  u[5] = g[2];
}

// G^T u, the transpose.
DDN_INLINE void transform_kernel_back(const Vec (&u)[6], Vec (&g)[3]) {
  const Vec small = u[1] + u[2], large = u[3] + u[4];
  g[0] = u[0] - 2.0f / 3 * small + 1.0f / 6 * large;
  g[1] = kRoot / 6 * (u[3] - u[4]) - kRoot / 3 * (u[1] - u[2]);
  g[2] = u[5] - 1.0f / 3 * small + 1.0f / 3 * large;
}

struct DeconvWeights {
  const float* weight;  // [C,3,3,O]
  int64_t in_channels, out_channels;

  int64_t in_blocks() const {
    return blocks_of(in_channels);
  }
  int64_t out_blocks() const {
    return blocks_of(out_channels);
  }
  int64_t packed_floats() const {
    return kPoints * in_blocks() * out_blocks() * kBlock * kBlock;
  }

  // Packs one of the in_blocks() * out_blocks() pairs of blocks.
  template <bool Backward>
  void pack(int64_t pair, float* packed) const {
    const int64_t in = pair % in_blocks(), out = pair / in_blocks();
    float taps[9][kBlock * kBlock];
    load_taps<Backward>(in, out, taps);
    const int64_t rows = Backward ? out : in, columns = Backward ? in : out;
    const int64_t point = (Backward ? out_blocks() : in_blocks()) * kBlock * kBlock;
    float* to = packed + columns * kPoints * point + rows * kBlock * kBlock;
    for (int at = 0; at < kBlock * kBlock; at += kWidth) {
      Vec half[3][6];
#pragma GCC unroll 3
      for (int x = 0; x < 3; ++x) {
        const Vec column[3] = {load(taps[x] + at), load(taps[3 + x] + at), load(taps[6 + x] + at)};
        transform_kernel(column, half[x]);
      }
#pragma GCC unroll 6
      for (int i = 0; i < 6; ++i) {
        const Vec row[3] = {half[0][i], half[1][i], half[2][i]};
        Vec u[6];
        transform_kernel(row, u);
#pragma GCC unroll 6
        for (int j = 0; j < 6; ++j) store(to + (i * 6 + j) * point + at, u[j]);
      }
    }
  }

  // grad_weight of channel c of block `in`, from sums [O/32][36][C/32][32][32].
  void gradient(int64_t c, const float* sums, float* grad_weight) const {
    const int64_t point = in_blocks() * kBlock * kBlock;
    for (int64_t o = 0; o < out_channels; o += kWidth) {
      const float* from =
          sums + o / kBlock * kPoints * point + c / kBlock * kBlock * kBlock + c % kBlock * kBlock + o % kBlock;
      Vec half[3][6];
#pragma GCC unroll 6
      for (int j = 0; j < 6; ++j) {
        Vec u[6], g[3];
#pragma GCC unroll 6
        for (int i = 0; i < 6; ++i) u[i] = load(from + (i * 6 + j) * point);
        transform_kernel_back(u, g);
        for (int i = 0; i < 3; ++i) half[i][j] = g[i];
      }
      for (int i = 0; i < 3; ++i) {
        Vec g[3];
        transform_kernel_back(half[i], g);
        for (int j = 0; j < 3; ++j)
          store_some(grad_weight + ((c * 3 + 2 - i) * 3 + 2 - j) * out_channels + o, g[j],
                     static_cast<int>(least(out_channels - o, kWidth)));
      }
    }
  }

 private:
  // Nine taps of a pair of blocks as [input][output] of the convolution to do, zeros where there is no channel.
  template <bool Backward>
  void load_taps(int64_t in, int64_t out, float (&taps)[9][kBlock * kBlock]) const {
    const int ins = channels_in(in, in_channels), outs = channels_in(out, out_channels);
    if (ins < kBlock || outs < kBlock) std::memset(taps, 0, sizeof taps);
    for (int c = 0; c < ins; ++c)
      for (int t = 0; t < 9; ++t) {
        const float* from = weight + ((in * kBlock + c) * 9 + t) * out_channels + out * kBlock;
        if (Backward)
          for (int o = 0; o < outs; ++o) taps[t][o * kBlock + c] = from[o];
        else
          std::memcpy(taps[8 - t] + c * kBlock, from, outs * sizeof(float));
      }
  }
};

// The stage's kernel for weights in the winograd layout alone.
struct WinogradKernel {
  using E = float;

  static void enter() {
  }
  static void leave() {
  }
  static size_t scratch_bytes(const Conv3x3Layer& layer) {
    return winograd_scratch<FloatNumbers>(layer);
  }
  static int64_t row_unit(const Conv3x3Layer&) {
    return 4;
  }
  static void rows(const RowsJob<float>& job, void* scratch) {
    winograd_rows<FloatNumbers>(job, scratch);
  }
  static size_t together_bytes(const Conv3x3Layer& layer, int64_t maps, int64_t height, int64_t width) {
    return winograd_together_bytes<FloatNumbers>(layer, maps, height, width);
  }
  static void together(const RowsJob<float>& job, void* memory, const Parallel& parallel) {
    winograd_together<FloatNumbers>(job, memory, parallel);
  }
};

}  // namespace
}  // namespace ddn::cpu
