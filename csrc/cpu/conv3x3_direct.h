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
};

// total[n][v] += sum over blocks [begin, end), taps and inputs of in[n] * weights.
template <class Weights, int Pixels>
DDN_INLINE void multiply_span(const Span& s, const typename Weights::Element* weights, int64_t begin, int64_t end,
                              int first, Vec (&total)[Pixels][2]) {
  weights += begin * s.taps * Weights::kTap;
  for (int64_t b = begin; b < end; ++b) {
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
}

// Sums of some 300 products are made in registers and then added up: rounding grows with the length of either, not
// with their product.
template <class Weights, int Pixels>
void span_tile(const Span& s, const typename Weights::Element* weights) {
  const int64_t together = s.taps == 1 ? 8 : 1;
  for (int first = 0; first < kBlock; first += kOutputs) {
    float* out = s.out + first;
    for (int64_t begin = 0; begin < s.in_blocks; begin += together) {
      const int64_t end = least(begin + together, s.in_blocks);
      Vec total[Pixels][2] = {};
      multiply_span<Weights, Pixels>(s, weights, begin, end, first, total);
      const bool biased = s.bias && end == s.in_blocks;
#pragma GCC unroll 12
      for (int n = 0; n < Pixels; ++n)
        for (int v = 0; v < 2; ++v) {
          float* at = out + n * kBlock + v * kWidth;
          const Vec sum = begin > 0 ? load(at) + total[n][v] : total[n][v];
          store(at, biased ? relu(sum + load(s.bias + first + v * kWidth)) : sum);
        }
    }
  }
}

// A tile of 1 to kPixels pixels.
template <class Weights, int Pixels = kPixels>
void tile_of(const Span& s, const typename Weights::Element* weights, int64_t pixels) {
  if constexpr (Pixels > 0) {
    if (pixels == Pixels) return span_tile<Weights, Pixels>(s, weights);
    tile_of<Weights, Pixels - 1>(s, weights, pixels);
  }
}

// `pixels` pixels in tiles of nearly the same size: a last tile of one pixel would waste its loads.
template <class Weights>
void span(Span s, const typename Weights::Element* weights, int64_t pixels) {
  for (int64_t tiles = (pixels + kPixels - 1) / kPixels; tiles > 0; --tiles) {
    const int64_t now = (pixels + tiles - 1) / tiles;
    tile_of<Weights>(s, weights, now);
    pixels -= now;
    s.in += now * kBlock;
    s.out += now * kBlock;
  }
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
