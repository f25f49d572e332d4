// Rows of a 3x3 convolution in float: blocked map times weights, tap by tap.
//
// One register tile is kPixels pixels x kOutputs channels; per input channel it loads kOutputs weights, broadcasts
// kPixels values and does kPixels * kOutputs / kWidth multiply-adds. The same tile multiplies the transformed maps of
// conv3x3_winograd.h, with one tap.
#pragma once
#include "cpu/conv3x3_maps.h"

namespace ddn::cpu {
namespace {

constexpr int kPixels = kWidth == 16 ? 12 : 6;  // with 2 vectors of outputs: 24 of 32 registers, 12 of 16
constexpr int kOutputs = 2 * kWidth;

// weights [input,32] float32, one tap of one block.
struct DirectWeights {
  using Element = float;
  static constexpr int64_t kTap = kBlock * kBlock;

  // Calls step(k, w0, w1) with the weights of each input k to outputs [first, first + kOutputs).
  template <class Step>
  static DDN_INLINE void each_input(const float* tap, int first, Step step) {
#pragma GCC unroll 4
    for (int k = 0; k < kBlock; ++k) step(k, load(tap + k * kBlock + first), load(tap + k * kBlock + first + kWidth));
  }
};

// weights [half,pair,16,2] bfloat16, widened on the way: for machines without bfloat16 products.
struct PairWeights {
  using Element = BF16;
  static constexpr int64_t kTap = kBlock * kBlock;

  template <class Step>
  static DDN_INLINE void each_input(const BF16* tap, int first, Step step) {
    for (int pair = 0; pair < kBlock / 2; ++pair) {
      UVec both[2];
      for (int v = 0; v < 2; ++v) {
        const int output = first + v * kWidth;
        both[v] = load_bits<UVec>(tap + (output / 16 * 16 + pair) * 32 + output % 16 * 2);
      }
      step(2 * pair, (Vec)(both[0] << 16), (Vec)(both[1] << 16));
      step(2 * pair + 1, (Vec)(both[0] & 0xffff0000u), (Vec)(both[1] & 0xffff0000u));
    }
  }
};

struct Span {       // consecutive pixels of a blocked map to compute
  const float* in;  // the first pixel's value under the first tap
  int64_t in_plane;
  int64_t in_blocks;
  const int64_t* offsets;  // elements from there to those under the others
  int taps;
  float* out;
  const float* bias;  // [32] of this block of outputs; null: neither bias nor ReLU
  bool add = false;   // to what is in `out`
};

// total[n][v] += sum over taps and the inputs of block b of in[n] * weights.
template <class Weights, int Pixels>
DDN_INLINE void multiply(const Span& s, const typename Weights::Element* weights, int64_t b, int first,
                         Vec (&total)[Pixels][2]) {
  weights += b * s.taps * Weights::kTap;
  for (int t = 0; t < s.taps; ++t, weights += Weights::kTap) {
    const float* at = s.in + b * s.in_plane + s.offsets[t];
    Weights::each_input(weights, first, [&](int k, Vec w0, Vec w1) __attribute__((always_inline)) {
#pragma GCC unroll 12
      for (int n = 0; n < Pixels; ++n) {
        const Vec value = splat(at[n * kBlock + k]);
        total[n][0] += value * w0;
        total[n][1] += value * w1;
      }
    });
  }
}

// Sums of a block's products, some 300 with nine taps, are made in registers and then added up: rounding grows with the
// length of either, not with their product.
template <class Weights, int Pixels>
void span_tile(const Span& s, const typename Weights::Element* weights) {
  for (int first = 0; first < kBlock; first += kOutputs) {
    float* out = s.out + first;
    for (int64_t b = 0; b < s.in_blocks; ++b) {
      Vec total[Pixels][2] = {};
      multiply<Weights, Pixels>(s, weights, b, first, total);
      const bool add = s.add || b > 0, biased = s.bias && b + 1 == s.in_blocks;
#pragma GCC unroll 12
      for (int n = 0; n < Pixels; ++n)
        for (int v = 0; v < 2; ++v) {
          float* at = out + n * kBlock + v * kWidth;
          const Vec sum = add ? load(at) + total[n][v] : total[n][v];
          store(at, biased ? relu(sum + load(s.bias + first + v * kWidth)) : sum);
        }
    }
  }
}

// Calls tile.template operator()<n>() for n = count, from 1 to Most.
template <int Most, class Tile>
DDN_INLINE void with_count(int64_t count, const Tile& tile) {
  if constexpr (Most > 0) {
    if (count == Most) return tile.template operator()<Most>();
    with_count<Most - 1>(count, tile);
  }
}

template <class Weights>
void span(const Span& all, const typename Weights::Element* weights, int64_t pixels) {
  in_even_parts(pixels, kPixels, [&](int64_t first, int64_t count) {
    Span s = all;
    s.in += first * kBlock, s.out += first * kBlock;
    with_count<kPixels>(count, [&]<int Pixels>() { span_tile<Weights, Pixels>(s, weights); });
  });
}

template <class Weights>
void direct_rows(const RowsJob<float>& job) {
  int64_t offsets[9];
  const int taps = tap_offsets(job.layer, job.in.pitch, offsets);
  const int64_t in_blocks = in_blocks_of(job.layer);
  const int64_t pixels = job.count * job.in.pitch - 1;
  for (int64_t b = job.block_begin; b < job.block_end; ++b) {
    float bias[kBlock];
    load_bias(job.layer, b, bias);
    const auto* weights =
        static_cast<const typename Weights::Element*>(job.layer.weight) + b * in_blocks * taps * Weights::kTap;
    for (int64_t m = 0; m < job.maps; ++m) {
      const Rows<float> in = job.in_of(m), out = job.out_of(m);
      span<Weights>(
          {in.pixel(0, job.in_row, -1), in.plane, in_blocks, offsets, taps, out.pixel(b, job.out_row, 0), bias},
          weights, pixels);
      out.zero_borders(b, job.out_row, job.count);
    }
  }
}

}  // namespace
}  // namespace ddn::cpu
